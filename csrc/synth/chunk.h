// Working memory of one thread.
#pragma once

#include "synth/generator.h"

namespace recsys_opt::synth {

// What a chunk of rows is made of, column by column.
struct Generator::Chunk {
  uint64_t draws[kChunk];
  uint64_t missing[kChunk];
  uint32_t full_id[kMaxSparse][kChunk];  // before folding
  uint32_t id[kMaxSparse][kChunk];
  uint32_t cell[kMaxSparse][kChunk];
  uint64_t normal_bits[5][kChunk];
  float factors[kFactors][kChunk];
  float place[kChunk];
  float logit[kChunk];
  float latent_sum[kLatent * kChunk];
  float latent_squares[kChunk];
};

}  // namespace recsys_opt::synth
