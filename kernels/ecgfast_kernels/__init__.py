"""Native and Triton kernels of ecgfast; importing this imports neither torch nor triton."""
