// The order in which an epoch visits records: the stable ascending order of their Philox keys.
#include <algorithm>
#include <memory>
#include <new>

#include "codec.h"

namespace {

constexpr uint32_t kOrderDomain = 1u << 31;  // keeps these keys apart from those of the masks

// Philox4x32-10 (Salmon et al. 2011, section 3.3): words 0 and 1 as one 64-bit key.
inline uint64_t order_key(uint64_t seed, uint32_t epoch, uint64_t record) {
  uint32_t c0 = uint32_t(record), c1 = uint32_t(record >> 32), c2 = epoch, c3 = kOrderDomain;
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return uint64_t(c1) << 32 | c0;
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
  while (bits < 20 && num_records >> (bits + 4)) ++bits;  // about 16 records in a bucket
  const int shift = 64 - bits;
  const int64_t num_buckets = int64_t(1) << bits;
  const std::unique_ptr<int64_t[]> end(new (std::nothrow) int64_t[num_buckets + 1]());
  if (!end) return ECGFAST_MEMORY;
  int64_t most = 0;
  for (int64_t i = 0; i < num_records; ++i) ++end[(order_key(seed, epoch, i) >> shift) + 1];
  for (int64_t b = 1; b <= num_buckets; ++b) {
    most = std::max(most, end[b]);
    end[b] += end[b - 1];
  }
  // end[b] is where bucket b starts; filling it moves it to where the bucket ends.
  for (int64_t i = 0; i < num_records; ++i) out[end[order_key(seed, epoch, i) >> shift]++] = i;
  const std::unique_ptr<Entry[]> bucket(new (std::nothrow) Entry[most]);
  if (!bucket) return ECGFAST_MEMORY;
  for (int64_t b = 0, from = 0; b < num_buckets; from = end[b++]) {
    const int64_t count = end[b] - from;
    for (int64_t i = 0; i < count; ++i)
      bucket[i] = {order_key(seed, epoch, out[from + i]), out[from + i]};
    std::sort(bucket.get(), bucket.get() + count);
    for (int64_t i = 0; i < count; ++i) out[from + i] = bucket[i].record;
  }
  return ECGFAST_OK;
}
