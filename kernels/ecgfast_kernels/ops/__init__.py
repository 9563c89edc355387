"""The operators of the models: PyTorch references, Triton kernels and what chooses between them."""
