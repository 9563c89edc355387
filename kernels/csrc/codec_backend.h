// What one instruction set offers to the codec: whole records, so that a call costs nothing.
#pragma once
#include "codec_format.h"

namespace ecgfast {

// A chunk whose header, checksum and column table were checked. Bytes up to `readable` may be
// loaded (they belong to the caller's buffer), bytes behind the chunk's end are never used.
struct Chunk {
  const uint8_t* data;
  const uint8_t* readable;
  Header header;
};

struct Backend {
  const char* name;
  int32_t (*decode)(const Chunk& chunk, int16_t* out_CT);
  int32_t (*decode_patches)(const Chunk& chunk, const float* mean_C, const float* rstd_C,
                            uint16_t* out_NP);
  void (*patches)(const int16_t* signal_CT, int num_leads, int num_timesteps, const float* mean_C,
                  const float* rstd_C, uint16_t* out_NP);
  int64_t (*encode)(const int16_t* signal_CT, int num_leads, int num_timesteps, uint8_t* out);
};

extern const Backend kPortable;
#if defined(ECGFAST_X86)
extern const Backend kAvx2;
extern const Backend kAvx512;
#endif

uint32_t crc32c(const uint8_t* data, int64_t num_bytes);
uint32_t chunk_crc(const uint8_t* chunk, int64_t num_bytes);  // its own field counts as 0

}  // namespace ecgfast
