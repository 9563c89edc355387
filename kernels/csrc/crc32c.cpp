// CRC-32C: three SSE4.2 streams where the CPU has the instruction, eight tables elsewhere.
#include "codec_backend.h"

#if defined(ECGFAST_X86)
#include <nmmintrin.h>
#endif

namespace ecgfast {
namespace {

struct Tables {
  uint32_t byte[8][256];  // byte[n][b]: the effect of byte b, n bytes before the end

  Tables() {
    for (uint32_t b = 0; b < 256; ++b) {
      uint32_t value = b;
      for (int i = 0; i < 8; ++i) value = value >> 1 ^ (value & 1 ? 0x82F63B78u : 0);
      byte[0][b] = value;
    }
    for (int n = 1; n < 8; ++n)
      for (int b = 0; b < 256; ++b)
        byte[n][b] = byte[n - 1][b] >> 8 ^ byte[0][byte[n - 1][b] & 255];
  }
};

const Tables kTables;

uint32_t update_portable(uint32_t value, const uint8_t* data, int64_t n) {
  const auto& table = kTables.byte;
  for (; n >= 8; n -= 8, data += 8) {
    const uint64_t word = load<uint64_t>(data) ^ value;
    value = 0;
    for (int i = 0; i < 8; ++i) value ^= table[7 - i][word >> 8 * i & 255];
  }
  for (; n > 0; --n) value = value >> 8 ^ table[0][(value ^ *data++) & 255];
  return value;
}

#if defined(ECGFAST_X86)

constexpr int kStream = 512;  // bytes of each of the three streams

// What kStream zero bytes do to a checksum, by the checksum's bytes: its bits act one by one.
struct Shift {
  uint32_t byte[4][256];

  Shift() {
    const uint8_t zeros[kStream] = {};
    for (int n = 0; n < 4; ++n)
      for (uint32_t b = 0; b < 256; ++b)
        byte[n][b] = update_portable(b << 8 * n, zeros, kStream);
  }
  uint32_t operator()(uint32_t value) const {
    return byte[0][value & 255] ^ byte[1][value >> 8 & 255] ^ byte[2][value >> 16 & 255] ^
           byte[3][value >> 24];
  }
};

const Shift kShift;

// One crc32 instruction starts per cycle but takes three: three streams keep it busy.
__attribute__((target("sse4.2"))) uint32_t update_sse42(uint32_t value, const uint8_t* data,
                                                        int64_t n) {
  uint64_t a = value;
  for (; n >= 3 * kStream; n -= 3 * kStream, data += 3 * kStream) {
    uint64_t b = 0, c = 0;
    for (int i = 0; i < kStream; i += 8) {
      a = _mm_crc32_u64(a, load<uint64_t>(data + i));
      b = _mm_crc32_u64(b, load<uint64_t>(data + kStream + i));
      c = _mm_crc32_u64(c, load<uint64_t>(data + 2 * kStream + i));
    }
    a = kShift(kShift(uint32_t(a)) ^ uint32_t(b)) ^ uint32_t(c);
  }
  for (; n >= 8; n -= 8, data += 8) a = _mm_crc32_u64(a, load<uint64_t>(data));
  uint32_t tail = uint32_t(a);
  for (; n > 0; --n) tail = _mm_crc32_u8(tail, *data++);
  return tail;
}

uint32_t update(uint32_t value, const uint8_t* data, int64_t n) {
  static const bool fast = __builtin_cpu_supports("sse4.2");
  return fast ? update_sse42(value, data, n) : update_portable(value, data, n);
}

#else

uint32_t update(uint32_t value, const uint8_t* data, int64_t n) {
  return update_portable(value, data, n);
}

#endif

}  // namespace

uint32_t crc32c(const uint8_t* data, int64_t num_bytes) {
  return ~update(~0u, data, num_bytes);
}

uint32_t chunk_crc(const uint8_t* chunk, int64_t num_bytes) {
  const uint8_t zeros[4] = {};
  uint32_t value = update(~0u, chunk, kCrcOffset);
  value = update(value, zeros, 4);
  return ~update(value, chunk + kHeaderBytes, num_bytes - kHeaderBytes);
}

}  // namespace ecgfast

extern "C" uint32_t ecgfast_crc32c(const uint8_t* data, int64_t num_bytes) {
  return ecgfast::crc32c(data, num_bytes);
}
