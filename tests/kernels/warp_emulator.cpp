// Runs warp_decode.h and warp_gather.h on a CPU: 32 lanes as fibers that meet at every shuffle, and
// every access checked against its buffer.
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <vector>

#include "warp_decode.h"
#include "warp_gather.h"

namespace {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 128 * 1024;

struct Region {
  const uint8_t* begin;
  size_t bytes;
};

struct Warp {
  ucontext_t scheduler, lanes[kLanes];
  std::unique_ptr<uint8_t[]> stacks{new uint8_t[kLanes * kStackBytes]};
  uint32_t slots[2][kLanes];
  uint64_t meetings[kLanes];
  bool finished[kLanes];
  int lane;
  std::vector<Region> readable, writable;
  uint8_t* stage;
  size_t stage_bytes;
  char fault[200];
};

Warp emulated;
void (*lane_program)();

void fault(const char* what, const void* at) {
  if (emulated.fault[0] == 0)
    std::snprintf(emulated.fault, sizeof emulated.fault, "lane %d: %s at %p", emulated.lane, what,
                  at);
}

bool inside(const std::vector<Region>& regions, const void* at, size_t bytes) {
  const auto* const p = static_cast<const uint8_t*>(at);
  for (const Region& region : regions)
    if (p >= region.begin && p + bytes <= region.begin + region.bytes) return true;
  return false;
}

bool staged(const void* at, size_t bytes) {
  return inside({{emulated.stage, emulated.stage_bytes}}, at, bytes);
}

// Give `value`, wait until every lane has given its own, and return what all gave.
const uint32_t* meet(uint32_t value) {
  const uint64_t round = emulated.meetings[emulated.lane]++;
  emulated.slots[round & 1][emulated.lane] = value;
  swapcontext(&emulated.lanes[emulated.lane], &emulated.scheduler);
  return emulated.slots[round & 1];
}

void lane_main() {
  lane_program();
  emulated.finished[emulated.lane] = true;
}

// Run every lane to its next meeting, again and again; all must meet equally often.
void run_warp(void (*program)()) {
  lane_program = program;
  for (int i = 0; i < kLanes; ++i) {
    emulated.meetings[i] = 0;
    emulated.finished[i] = false;
    getcontext(&emulated.lanes[i]);
    emulated.lanes[i].uc_stack.ss_sp = emulated.stacks.get() + i * kStackBytes;
    emulated.lanes[i].uc_stack.ss_size = kStackBytes;
    emulated.lanes[i].uc_link = &emulated.scheduler;
    makecontext(&emulated.lanes[i], lane_main, 0);
  }
  do {
    for (emulated.lane = 0; emulated.lane < kLanes; ++emulated.lane)
      swapcontext(&emulated.scheduler, &emulated.lanes[emulated.lane]);
    for (int i = 1; i < kLanes; ++i)
      if (emulated.meetings[i] != emulated.meetings[0] ||
          emulated.finished[i] != emulated.finished[0]) {
        emulated.lane = i;
        return fault("left the warp: a shuffle stands in a branch that not all lanes take",
                     nullptr);
      }
  } while (!emulated.finished[0]);
}

template <class T>
T load(const T* at) {
  if (!inside(emulated.readable, at, sizeof(T))) {
    fault("read outside its buffer", at);
    return T{};
  }
  return *at;
}

uint16_t half_bits(float value) {  // round to nearest even, by the compiler's own conversion
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

}  // namespace

namespace warp {

uint32_t lane_index() { return static_cast<uint32_t>(emulated.lane); }
uint32_t broadcast(uint32_t value, int source) { return meet(value)[source]; }
uint32_t plus_below(uint32_t value, int distance) {
  const int source = emulated.lane - distance;
  const uint32_t* const all = meet(value);
  return source < 0 ? value : value + all[source];
}
bool any(bool condition) {
  const uint32_t* const all = meet(condition);
  bool result = false;
  for (int i = 0; i < kLanes; ++i) result = result || all[i];
  return result;
}
void sync() { meet(0); }

uint32_t count_bits(uint32_t value) { return static_cast<uint32_t>(__builtin_popcount(value)); }
uint32_t funnel(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
uint32_t funnel_to_32(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >>
                               (shift < 32 ? shift : 32));
}
uint32_t shift_left(uint32_t value, uint32_t shift) { return shift < 32 ? value << shift : 0; }
uint32_t shift_right_signed(uint32_t value, uint32_t shift) {
  return static_cast<uint32_t>(static_cast<int32_t>(value) >> (shift < 31 ? shift : 31));
}

uint32_t load_byte(const uint8_t* at) { return load(at); }
int64_t load_index(const int64_t* at) { return load(at); }
float load_float(const float* at) { return load(at); }
uint32_t load_word(const uint32_t* at) { return load(at); }
uint32_t load_shared(const uint32_t* at) {
  if (staged(at, 4)) return *at;
  fault("read outside shared memory", at);
  return 0;
}
void store_word(uint32_t* at, uint32_t value) {
  if (reinterpret_cast<uintptr_t>(at) % 4) fault("unaligned store", at);
  if (inside(emulated.writable, at, 4))
    std::memcpy(at, &value, 4);
  else
    fault("wrote outside its buffer", at);
}
void store_words(void* at, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t words[4] = {a, b, c, d};
  if (reinterpret_cast<uintptr_t>(at) % 16) fault("unaligned store", at);
  if (staged(at, 16) || inside(emulated.writable, at, 16))
    std::memcpy(at, words, 16);
  else
    fault("wrote outside its buffer", at);
}
void copy_async(uint32_t* shared, const uint8_t* global, uint32_t available) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fault("unaligned copy", shared);
  if (!staged(shared, 16)) return fault("copied outside shared memory", shared);
  if (available > 16 || !inside(emulated.readable, global, available))
    return fault("copied from outside", global);
  std::memset(shared, 0, 16);
  std::memcpy(shared, global, available);
}
void wait_copies() { meet(0); }

uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
float normalise(int32_t value, float mean, float rstd) {  // compiled with -ffp-contract=off
  return (static_cast<float>(value) - mean) * rstd;
}
uint32_t pack_halves(float low, float high) {
  return half_bits(low) | static_cast<uint32_t>(half_bits(high)) << 16;
}
void record_status(int32_t* status, int32_t code) {
  if (!inside(emulated.writable, status, 4)) return fault("wrote outside its buffer", status);
  if (*status == 0 || code < *status) *status = code;
}

}  // namespace warp

namespace {

ecgfast::device::Decode job;
ecgfast::device::Gather gather;
int64_t task_row;
int task_index;

template <class Output>
void decode_lane() {
  ecgfast::device::decode_column<Output>(job, task_row, task_index,
                                         reinterpret_cast<uint32_t*>(emulated.stage));
}

void gather_lane() { ecgfast::device::gather_lead(gather, task_row, task_index); }

template <class T>
void readable(const T* at, int64_t count) {
  if (at != nullptr)
    emulated.readable.push_back({reinterpret_cast<const uint8_t*>(at), count * sizeof(T)});
}

template <class Output>
const char* run(int64_t out_bytes) {
  emulated.readable.clear();
  readable(job.bytes, job.num_bytes);
  readable(job.offsets, job.num_stored);
  readable(job.lengths, job.num_stored);
  readable(job.records, job.num_records);
  readable(job.mean, job.num_stored * job.num_leads);
  readable(job.rstd, job.num_stored * job.num_leads);
  emulated.writable = {
      {static_cast<uint8_t*>(job.out), static_cast<size_t>(out_bytes)},
      {reinterpret_cast<uint8_t*>(job.status), static_cast<size_t>(4 * job.num_records)}};
  emulated.stage_bytes = 4 * (ecgfast::device::stage_words(job.num_leads) + Output::kStageWords);
  std::vector<uint8_t> memory(emulated.stage_bytes + 16);
  emulated.stage = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) % 16) % 16;
  emulated.fault[0] = 0;
  for (task_row = 0; task_row < job.num_records; ++task_row)
    for (task_index = 0; task_index < job.num_timesteps / ecgfast::kColumn; ++task_index) {
      std::memset(emulated.stage, 0xa5, emulated.stage_bytes);  // what another warp left there
      run_warp(decode_lane<Output>);
      if (emulated.fault[0]) return emulated.fault;
    }
  return nullptr;
}

}  // namespace

// Same arguments as the CUDA entry points; returns the first fault in words, or null.
extern "C" const char* emulate_decode_patches(const uint8_t* bytes, int64_t num_bytes,
                                              const int64_t* offsets, const int64_t* lengths,
                                              const int64_t* records, int64_t num_stored,
                                              int64_t num_records, const float* mean,
                                              const float* rstd, int32_t num_leads,
                                              int32_t num_timesteps, void* out, int32_t* status) {
  job = {bytes, num_bytes, offsets, lengths, records,   num_stored,   num_records,
         mean,  rstd,      out,     status,  num_leads, num_timesteps};
  return run<ecgfast::device::Patches>(num_records * num_leads * (num_timesteps / 250) * 512);
}

extern "C" const char* emulate_decode(const uint8_t* bytes, int64_t num_bytes,
                                      const int64_t* offsets, const int64_t* lengths,
                                      const int64_t* records, int64_t num_stored,
                                      int64_t num_records, int32_t num_leads, int32_t num_timesteps,
                                      void* out, int32_t* status) {
  job = {bytes,   num_bytes, offsets, lengths, records,   num_stored,   num_records,
         nullptr, nullptr,   out,     status,  num_leads, num_timesteps};
  return run<ecgfast::device::Signal>(num_records * num_leads * num_timesteps * 2);
}

extern "C" const char* emulate_gather_patches(const int16_t* signal, const int64_t* records,
                                              int64_t num_stored, int64_t num_records,
                                              const float* mean, const float* rstd,
                                              int32_t num_leads, int32_t num_timesteps, void* out,
                                              int32_t* status) {
  gather = {signal, records, num_stored, num_records, mean,
            rstd,   out,     status,     num_leads,   num_timesteps};
  emulated.readable.clear();
  readable(signal, num_stored * num_leads * num_timesteps);
  readable(records, num_records);
  readable(mean, num_stored * num_leads);
  readable(rstd, num_stored * num_leads);
  emulated.writable = {{static_cast<uint8_t*>(out),
                        static_cast<size_t>(num_records * num_leads * (num_timesteps / 250) * 512)},
                       {reinterpret_cast<uint8_t*>(status), static_cast<size_t>(4 * num_records)}};
  emulated.fault[0] = 0;
  for (task_row = 0; task_row < num_records; ++task_row)
    for (task_index = 0; task_index < num_leads && !emulated.fault[0]; ++task_index)
      run_warp(gather_lane);
  return emulated.fault[0] ? emulated.fault : nullptr;
}

// Bytes of shared memory that one warp takes.
extern "C" int emulate_stage_bytes(int32_t num_leads, int32_t to_signal) {
  const int output =
      to_signal ? ecgfast::device::Signal::kStageWords : ecgfast::device::Patches::kStageWords;
  return 4 * (ecgfast::device::stage_words(num_leads) + output);
}
