// What a lane of a warp can do, twice: as CUDA intrinsics, and as calls into an emulator that runs
// 32 lanes on a CPU. The decoder is written over these, so that its logic is tested without a GPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_fp16.h>

#define ECG_LANE __device__ __forceinline__
#define ECG_BOTH __host__ __device__ constexpr

namespace warp {

constexpr unsigned kAllLanes = 0xffffffffu;

ECG_LANE uint32_t lane_index() { return threadIdx.x & 31u; }
ECG_LANE uint32_t broadcast(uint32_t value, int source) {
  return __shfl_sync(kAllLanes, value, source);
}
// `value` plus that of the lane `distance` below, where there is one. The shuffle's own predicate
// guards the addition: one instruction less than a comparison and a select.
ECG_LANE uint32_t plus_below(uint32_t value, int distance) {
  asm volatile(
      "{\n\t.reg .u32 below;\n\t.reg .pred exists;\n\t"
      "shfl.sync.up.b32 below|exists, %0, %1, 0, 0xffffffff;\n\t"
      "@exists add.u32 %0, %0, below;\n\t}"
      : "+r"(value)
      : "r"(distance));
  return value;
}
ECG_LANE bool any(bool condition) { return __any_sync(kAllLanes, condition); }
ECG_LANE void sync() { __syncwarp(); }

ECG_LANE uint32_t count_bits(uint32_t value) { return __popc(value); }
// (high:low) >> (shift mod 32), low word
ECG_LANE uint32_t funnel(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}
// (high:low) >> min(shift, 32), low word
ECG_LANE uint32_t funnel_to_32(uint32_t low, uint32_t high, uint32_t shift) {
  return __funnelshift_rc(low, high, shift);
}
// C++ leaves shifts by 32 undefined; the instructions shift everything out
ECG_LANE uint32_t shift_left(uint32_t value, uint32_t shift) {
  uint32_t result;
  asm("shl.b32 %0, %1, %2;" : "=r"(result) : "r"(value), "r"(shift));
  return result;
}
ECG_LANE uint32_t shift_right_signed(uint32_t value, uint32_t shift) {
  uint32_t result;
  asm("shr.s32 %0, %1, %2;" : "=r"(result) : "r"(value), "r"(shift));
  return result;
}

ECG_LANE uint32_t load_byte(const uint8_t* at) { return __ldg(at); }
ECG_LANE int64_t load_index(const int64_t* at) {
  return __ldg(reinterpret_cast<const long long*>(at));
}
ECG_LANE float load_float(const float* at) { return __ldg(at); }
ECG_LANE uint32_t load_word(const uint32_t* at) { return __ldg(at); }
ECG_LANE uint32_t load_shared(const uint32_t* at) { return *at; }
ECG_LANE void store_word(uint32_t* at, uint32_t value) { *at = value; }
ECG_LANE void store_words(void* at, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  *static_cast<uint4*>(at) = make_uint4(a, b, c, d);  // a union here became four 4-byte stores
}

// 16 bytes into shared memory without a register between; bytes beyond `available` become 0
ECG_LANE void copy_async(uint32_t* shared, const uint8_t* global, uint32_t available) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(available)
               : "memory");
}
ECG_LANE void wait_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
}

ECG_LANE uint32_t float_bits(float value) { return __float_as_uint(value); }
ECG_LANE float bits_float(uint32_t bits) { return __uint_as_float(bits); }
// z = (value - mean) * rstd, each rounded once, never fused
ECG_LANE float normalise(int32_t value, float mean, float rstd) {
  return __fmul_rn(__fsub_rn(static_cast<float>(value), mean), rstd);
}
ECG_LANE uint32_t pack_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
ECG_LANE void record_status(int32_t* status,
                            int32_t code) {  // the lowest code wins, whichever warp comes first
  int32_t seen = atomicCAS(status, 0, code);
  while (seen > code) seen = atomicCAS(status, seen, code);
}

}  // namespace warp

#else  // emulated: tests/kernels/warp_emulator.cpp defines these

#define ECG_LANE inline
#define ECG_BOTH constexpr

namespace warp {

uint32_t lane_index();
uint32_t broadcast(uint32_t value, int source);
uint32_t plus_below(uint32_t value, int distance);
bool any(bool condition);
void sync();
uint32_t count_bits(uint32_t value);
uint32_t funnel(uint32_t low, uint32_t high, uint32_t shift);
uint32_t funnel_to_32(uint32_t low, uint32_t high, uint32_t shift);
uint32_t shift_left(uint32_t value, uint32_t shift);
uint32_t shift_right_signed(uint32_t value, uint32_t shift);
uint32_t load_byte(const uint8_t* at);
int64_t load_index(const int64_t* at);
float load_float(const float* at);
uint32_t load_word(const uint32_t* at);
uint32_t load_shared(const uint32_t* at);
void store_word(uint32_t* at, uint32_t value);
void store_words(void* at, uint32_t a, uint32_t b, uint32_t c, uint32_t d);
void copy_async(uint32_t* shared, const uint8_t* global, uint32_t available);
void wait_copies();
uint32_t float_bits(float value);
float bits_float(uint32_t bits);
float normalise(int32_t value, float mean, float rstd);
uint32_t pack_halves(float low, float high);
void record_status(int32_t* status, int32_t code);

}  // namespace warp

#endif
