// Functions that the compiler makes twice, for any x86-64 and for AVX2; the loader of the library
// takes the one that the machine can run. Both give the same bits: nothing is fused or reordered.
#pragma once
#include <cstdint>

// glibc alone has the loader for it. What such a function calls has to be inlined to be made twice.
#if defined(__x86_64__) && defined(__GLIBC__)
#define ECGFAST_CLONES __attribute__((target_clones("avx2", "default")))
#define ECGFAST_INLINE inline __attribute__((always_inline))
#else
#define ECGFAST_CLONES
#define ECGFAST_INLINE inline
#endif
