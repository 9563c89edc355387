// The order in which an epoch visits records: the stable ascending order of their Philox keys.
#include <algorithm>
#include <memory>
#include <new>

#include "codec.h"

namespace {

constexpr uint32_t kOrderDomain = 1u << 31;  // keeps these keys apart from those of the masks

#if defined(ECGFAST_X86) && defined(__linux__)
#define ECGFAST_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ECGFAST_CLONES
#endif

constexpr int64_t kBlock = 512;  // keys made at a time, so that the rounds run in vectors

// Philox4x32-10 (Salmon et al. 2011, section 3.3): words 0 and 1 as one 64-bit key per record.
ECGFAST_CLONES void order_keys(uint64_t seed, uint32_t epoch, const int64_t* record, int64_t n,
                               uint64_t* key) {
  for (int64_t i = 0; i < n; ++i) {
    uint64_t c0 = uint32_t(record[i]), c1 = uint64_t(record[i]) >> 32, c2 = epoch;
    uint64_t c3 = kOrderDomain;
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t p0 = uint64_t(0xD2511F53u) * uint32_t(c0);
      const uint64_t p1 = uint64_t(0xCD9E8D57u) * uint32_t(c2);
      c0 = p1 >> 32 ^ c1 ^ k0;
      c1 = uint32_t(p1);
      c2 = p0 >> 32 ^ c3 ^ k1;
      c3 = uint32_t(p0);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    key[i] = c1 << 32 | c0;
  }
}

// Calls take(record, key) for all records in ascending order.
template <class Take>
void for_each_key(uint64_t seed, uint32_t epoch, int64_t num_records, Take take) {
  int64_t record[kBlock];
  uint64_t key[kBlock];
  for (int64_t from = 0; from < num_records; from += kBlock) {
    const int64_t count = std::min(kBlock, num_records - from);
    for (int64_t i = 0; i < count; ++i) record[i] = from + i;
    order_keys(seed, epoch, record, count, key);
    for (int64_t i = 0; i < count; ++i) take(record[i], key[i]);
  }
}

struct Entry {
  uint64_t key;
  int64_t record;
  bool operator<(const Entry& other) const {  // ties by record: the order is stable
    return key < other.key || (key == other.key && record < other.record);
  }
};

}  // namespace

// Records are counted into buckets by their keys' top bits, put there in a second pass, and each
// bucket is sorted with keys made anew: nothing but the output and the counters is ever held.
extern "C" int32_t ecgfast_epoch_order(uint64_t seed, uint32_t epoch, int64_t num_records,
                                       int64_t* out) {
  int bits = 1;
  while (bits < 20 && num_records >> (bits + 6)) ++bits;  // about 64 records in a bucket
  const int shift = 64 - bits;
  const int64_t num_buckets = int64_t(1) << bits;
  const std::unique_ptr<int64_t[]> end(new (std::nothrow) int64_t[num_buckets + 1]());
  if (!end) return ECGFAST_MEMORY;
  for_each_key(seed, epoch, num_records, [&](int64_t, uint64_t key) { ++end[(key >> shift) + 1]; });
  int64_t most = 0;
  for (int64_t b = 1; b <= num_buckets; ++b) {
    most = std::max(most, end[b]);
    end[b] += end[b - 1];
  }
  // end[b] is where bucket b starts; filling it moves it to where the bucket ends.
  for_each_key(seed, epoch, num_records,
               [&](int64_t record, uint64_t key) { out[end[key >> shift]++] = record; });
  const std::unique_ptr<Entry[]> bucket(new (std::nothrow) Entry[most]);
  const std::unique_ptr<uint64_t[]> keys(new (std::nothrow) uint64_t[most]);
  if (!bucket || !keys) return ECGFAST_MEMORY;
  for (int64_t b = 0, from = 0; b < num_buckets; from = end[b++]) {
    const int64_t count = end[b] - from;
    order_keys(seed, epoch, out + from, count, keys.get());
    for (int64_t i = 0; i < count; ++i) bucket[i] = {keys[i], out[from + i]};
    std::sort(bucket.get(), bucket.get() + count);
    for (int64_t i = 0; i < count; ++i) out[from + i] = bucket[i].record;
  }
  return ECGFAST_OK;
}
