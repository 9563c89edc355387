# The CUDA decoder, for A100, H100 and B200, and as PTX for what comes after. Included where ECGFAST_CUDA is on.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100)
endif()
enable_language(CUDA)

add_library(ecgfast_cuda SHARED codec_cuda.cu)
# The static runtime: PyTorch's wheel brings its own, under a name that differs by release.
set_target_properties(ecgfast_cuda PROPERTIES CUDA_STANDARD 17 CUDA_RUNTIME_LIBRARY Static
                                              CUDA_VISIBILITY_PRESET hidden)
target_compile_options(ecgfast_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Werror all-warnings -Xptxas -warn-spills>)
install(TARGETS ecgfast_cuda LIBRARY DESTINATION ecgfast_kernels)
