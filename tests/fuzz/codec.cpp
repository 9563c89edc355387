// Decodes mutated chunks under the address and undefined-behaviour sanitizers.
//
// Usage: codec NUM_CHUNKS SEED. tests/fuzz/codec.py builds and runs it. Each mutated chunk lies
// at the end of its own allocation, so that a read behind it is caught, and is decoded by every
// backend of this CPU into buffers of the exact size: all must give the same status, and the same
// values where they give any. A chunk that decodes is encoded again and must come back.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "codec.h"
#include "codec_backend.h"

namespace {

using Bytes = std::vector<uint8_t>;
using Random = std::mt19937_64;

struct Seed {
  int32_t num_leads, num_timesteps;
  Bytes chunk;
};

int pick(Random& random, int n) { return int(random() % uint64_t(n)); }

std::vector<int16_t> make_signal(Random& random, int num_leads, int num_timesteps) {
  std::vector<int16_t> signal(size_t(num_leads) * num_timesteps);
  const int kind = pick(random, 6), step = 1 << pick(random, 12);
  int value = 0;
  for (size_t i = 0; i < signal.size(); ++i) {
    value = kind == 0 ? int(random()) : value + pick(random, 2 * step + 1) - step;
    if (kind == 1 && i % 50) value = 0;
    signal[i] = int16_t(kind == 2 ? int(4.88 * (value % 6000)) : kind == 3 ? value / 64 * 5 : value);
  }
  return signal;
}

Seed make_seed(Random& random) {
  Seed seed;
  seed.num_leads = 1 + pick(random, 16);
  seed.num_timesteps = 250 * (1 + pick(random, 5));
  const auto signal = make_signal(random, seed.num_leads, seed.num_timesteps);
  const int64_t bound = ecgfast_encode_bound(seed.num_leads, seed.num_timesteps);
  seed.chunk.resize(size_t(bound));
  int64_t length = 0;
  if (ecgfast_encode(signal.data(), 1, seed.num_leads, seed.num_timesteps, seed.chunk.data(), bound,
                     &length, 1) != ECGFAST_OK)
    std::abort();
  seed.chunk.resize(size_t(length));
  return seed;
}

// One to eight changes; half of them where the structure is: header, table, column heads.
Bytes mutate(Random& random, const Seed& seed, const Seed& other) {
  Bytes chunk = seed.chunk;
  for (int changes = 1 + pick(random, 8); changes > 0 && !chunk.empty(); --changes) {
    const int reach = pick(random, 2) ? int(chunk.size()) : std::min(int(chunk.size()), 100);
    const size_t at = size_t(pick(random, reach));
    switch (pick(random, 7)) {
      case 0: chunk[at] ^= uint8_t(1 << pick(random, 8)); break;
      case 1: chunk[at] = uint8_t(random()); break;
      case 2: chunk[at] = pick(random, 2) ? 0xff : 0; break;
      case 3: chunk[at] = uint8_t(chunk[at] + (pick(random, 2) ? 1 : -1)); break;
      case 4: chunk.resize(at); break;
      case 5: chunk.insert(chunk.end(), size_t(1 + pick(random, 64)), uint8_t(random())); break;
      default: {
        const size_t n = std::min({chunk.size() - at, other.chunk.size(), size_t(1 + pick(random, 40))});
        std::memcpy(&chunk[at], &other.chunk[other.chunk.size() - n], n);
      }
    }
  }
  if (pick(random, 2) && chunk.size() >= 16) {  // keep the frame, so that columns are reached
    std::memcpy(chunk.data(), seed.chunk.data(), std::min<size_t>(12, seed.chunk.size()));
  }
  if (pick(random, 2) && chunk.size() >= 16) {
    const uint32_t crc = ecgfast::chunk_crc(chunk.data(), int64_t(chunk.size()));
    std::memcpy(&chunk[12], &crc, 4);
  }
  return chunk;
}

struct Result {
  int32_t status;
  std::vector<int16_t> signal;
  std::vector<uint16_t> patches;
};

Result decode(const Bytes& chunk, const Seed& seed, bool check) {
  // A malloc of the exact size: the sanitizer guards the byte behind it.
  std::unique_ptr<uint8_t[]> exact(new uint8_t[chunk.size() + !chunk.size()]);
  if (!chunk.empty()) std::memcpy(exact.get(), chunk.data(), chunk.size());
  const int64_t offset = 0, length = int64_t(chunk.size());
  const EcgfastChunks one = {exact.get(), length, &offset, &length, 1, seed.num_leads,
                             seed.num_timesteps};
  const std::vector<float> mean(16, 12.5f), rstd(16, 0.01f);
  Result result;
  int64_t bad = -1;
  result.signal.resize(size_t(seed.num_leads) * seed.num_timesteps);
  result.status = ecgfast_decode(&one, result.signal.data(), 1, check, &bad);
  if (result.status != ECGFAST_OK) return result;
  result.patches.resize(size_t(seed.num_leads) * (seed.num_timesteps / 250) * 256);
  if (ecgfast_decode_patches(&one, mean.data(), rstd.data(), result.patches.data(), 1, check, &bad) !=
      ECGFAST_OK)
    std::abort();
  return result;
}

void fail(const char* what, const char* backend, const Bytes& chunk) {
  std::fprintf(stderr, "%s on %s:", what, backend);
  for (uint8_t byte : chunk) std::fprintf(stderr, " %02x", byte);
  std::fprintf(stderr, "\n");
  std::exit(1);
}

void check_encoding(const Result& result, const Seed& seed, const char* backend, const Bytes& chunk) {
  const int64_t bound = ecgfast_encode_bound(seed.num_leads, seed.num_timesteps);
  Bytes again(static_cast<size_t>(bound));
  int64_t length = 0;
  ecgfast_encode(result.signal.data(), 1, seed.num_leads, seed.num_timesteps, again.data(), bound,
                 &length, 1);
  again.resize(size_t(length));
  const Result back = decode(again, seed, true);
  if (back.status != ECGFAST_OK || back.signal != result.signal) fail("round trip", backend, chunk);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: codec NUM_CHUNKS SEED\n");
    return 2;
  }
  const long num_chunks = std::atol(argv[1]);
  Random random(uint64_t(std::atol(argv[2])));
  std::vector<const char*> backends;
  for (const char* name : {"portable", "avx2", "avx512vbmi"})
    if (ecgfast_set_backend(name) == ECGFAST_OK) backends.push_back(name);
  std::vector<Seed> seeds;
  for (int i = 0; i < 64; ++i) seeds.push_back(make_seed(random));
  long decoded = 0, counts[16] = {};
  for (long i = 0; i < num_chunks; ++i) {
    if (i % 4 == 0) seeds[size_t(pick(random, 64))] = make_seed(random);
    const Seed& seed = seeds[size_t(pick(random, 64))];
    const Bytes chunk = mutate(random, seed, seeds[size_t(pick(random, 64))]);
    const bool check = pick(random, 4) == 0;
    Result first;
    for (const char* backend : backends) {
      ecgfast_set_backend(backend);
      Result result = decode(chunk, seed, check);
      if (backend == backends[0]) {
        ++counts[result.status & 15];
        first = std::move(result);
      } else if (result.status != first.status) {
        fail("status differs", backend, chunk);
      } else if (result.status == ECGFAST_OK &&
                 (result.signal != first.signal || result.patches != first.patches)) {
        fail("values differ", backend, chunk);
      }
      if (first.status == ECGFAST_OK && i % 16 == 0) check_encoding(first, seed, backend, chunk);
    }
    decoded += first.status == ECGFAST_OK;
  }
  std::printf("%ld chunks, %zu backends, %ld decoded; refused by code:", num_chunks,
              backends.size(), decoded);
  for (int code = 1; code <= 9; ++code) std::printf(" %d: %ld", code, counts[code]);
  std::printf("\n");
  return 0;
}
