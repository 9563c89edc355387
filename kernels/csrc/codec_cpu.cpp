// The C interface: checks, threads and the choice of an instruction set.
#include <mutex>

#include "codec_backend.h"
#include "threads.h"

namespace ecgfast {
namespace {

#if defined(ECGFAST_X86)
bool has_avx512() {
  return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"); }
#endif

// The backend of that name, the fastest for an empty name, null if this machine cannot run it.
const Backend* find_backend(const char* name) {
  const bool any = name[0] == 0;
#if defined(ECGFAST_X86)
  if (has_avx512() && (any || !std::strcmp(name, kAvx512.name))) return &kAvx512;
  if (has_avx2() && (any || !std::strcmp(name, kAvx2.name))) return &kAvx2;
#endif
  return any || !std::strcmp(name, kPortable.name) ? &kPortable : nullptr;
}

std::atomic<const Backend*> chosen{nullptr};

const Backend& backend() {
  const Backend* now = chosen.load(std::memory_order_acquire);
  if (now == nullptr) chosen.store(now = find_backend(""), std::memory_order_release);
  return *now;
}

// Everything about record i that can be checked before its columns are read.
int32_t open_chunk(const EcgfastChunks& chunks, int64_t i, bool check, Chunk& chunk) {
  const int64_t offset = chunks.offsets[i], length = chunks.lengths[i];
  if (offset < 0 || length < 0 || offset > chunks.buffer_bytes ||
      length > chunks.buffer_bytes - offset)
    return ECGFAST_RANGE;
  chunk.data = chunks.buffer + offset;
  chunk.readable = chunks.buffer + chunks.buffer_bytes;
  if (int32_t status = parse_header(chunk.data, length, chunk.header)) return status;
  if (chunk.header.num_leads != chunks.num_leads ||
      chunk.header.num_timesteps != chunks.num_timesteps)
    return ECGFAST_SHAPE;
  if (check && chunk_crc(chunk.data, length) != chunk.header.crc) return ECGFAST_CHECKSUM;
  if (int32_t status = check_quantum(chunk.header)) return status;
  return check_columns(chunk.data, length, chunk.header);
}

// Decodes every record, remembers the lowest one that failed.
template <class Decode>
int32_t decode_all(const EcgfastChunks& chunks, int32_t num_threads, bool check, int64_t* bad,
                   Decode decode) {
  std::mutex guard;
  int32_t first_status = ECGFAST_OK;
  *bad = -1;
  for_each_record(chunks.num_records, num_threads, [&](int64_t i) {
    Chunk chunk;
    int32_t status = open_chunk(chunks, i, check, chunk);
    if (status == ECGFAST_OK) status = decode(i, chunk);
    if (status == ECGFAST_OK) return;
    std::lock_guard<std::mutex> hold(guard);
    if (*bad < 0 || i < *bad) {
      *bad = i;
      first_status = status;
    }
  });
  return first_status;
}

}  // namespace
}  // namespace ecgfast

using ecgfast::Chunk;

extern "C" const char* ecgfast_backend(void) { return ecgfast::backend().name; }

extern "C" int32_t ecgfast_set_backend(const char* name) {
  const ecgfast::Backend* found = ecgfast::find_backend(name);
  if (found == nullptr) return ECGFAST_BACKEND;
  ecgfast::chosen.store(found, std::memory_order_release);
  return ECGFAST_OK;
}

extern "C" int64_t ecgfast_encode_bound(int32_t num_leads, int32_t num_timesteps) {
  const int64_t num_columns = num_timesteps / ecgfast::kColumn;
  return ecgfast::kHeaderBytes + num_columns * (4 + ecgfast::max_column_bytes(num_leads)) +
         ecgfast::kOverread;
}

extern "C" int32_t ecgfast_encode(const int16_t* signal, int64_t num_records, int32_t num_leads,
                                  int32_t num_timesteps, uint8_t* out, int64_t stride,
                                  int64_t* lengths, int32_t num_threads) {
  if (num_leads < 1 || num_leads > ecgfast::kMaxLeads || num_timesteps < ecgfast::kColumn ||
      num_timesteps > ecgfast::kMaxTimesteps || num_timesteps % ecgfast::kColumn)
    return ECGFAST_SHAPE;
  if (stride < ecgfast_encode_bound(num_leads, num_timesteps)) return ECGFAST_MEMORY;
  const auto& backend = ecgfast::backend();
  const int64_t values = int64_t(num_leads) * num_timesteps;
  ecgfast::for_each_record(num_records, num_threads, [&](int64_t i) {
    uint8_t* chunk = out + i * stride;
    lengths[i] = backend.encode(signal + i * values, num_leads, num_timesteps, chunk);
    const uint32_t crc = ecgfast::chunk_crc(chunk, lengths[i]);
    std::memcpy(chunk + ecgfast::kCrcOffset, &crc, sizeof crc);
  });
  return ECGFAST_OK;
}

extern "C" int32_t ecgfast_decode(const EcgfastChunks* chunks, int16_t* out, int32_t num_threads,
                                  int32_t check, int64_t* bad) {
  const auto& backend = ecgfast::backend();
  const int64_t values = int64_t(chunks->num_leads) * chunks->num_timesteps;
  return ecgfast::decode_all(*chunks, num_threads, check, bad, [&](int64_t i, const Chunk& chunk) {
    return backend.decode(chunk, out + i * values);
  });
}

extern "C" int32_t ecgfast_decode_patches(const EcgfastChunks* chunks, const float* mean,
                                          const float* rstd, uint16_t* out, int32_t num_threads,
                                          int32_t check, int64_t* bad) {
  const auto& backend = ecgfast::backend();
  const int64_t leads = chunks->num_leads;
  const int64_t values = leads * (chunks->num_timesteps / ecgfast::kColumn) * ecgfast::kRow;
  return ecgfast::decode_all(*chunks, num_threads, check, bad, [&](int64_t i, const Chunk& chunk) {
    return backend.decode_patches(chunk, mean + i * leads, rstd + i * leads, out + i * values);
  });
}

extern "C" void ecgfast_patches(const int16_t* signal, int64_t num_records, int32_t num_leads,
                                int32_t num_timesteps, const float* mean, const float* rstd,
                                uint16_t* out, int32_t num_threads) {
  const auto& backend = ecgfast::backend();
  const int64_t values = int64_t(num_leads) * num_timesteps;
  const int64_t patches = int64_t(num_leads) * (num_timesteps / ecgfast::kColumn) * ecgfast::kRow;
  ecgfast::for_each_record(num_records, num_threads, [&](int64_t i) {
    backend.patches(signal + i * values, num_leads, num_timesteps, mean + i * num_leads,
                    rstd + i * num_leads, out + i * patches);
  });
}
