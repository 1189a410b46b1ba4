// The rows of a table that were seen, hottest first, in few bytes.
#pragma once

#include <cstdint>
#include <vector>

#include "access/counters.h"

namespace recsys_opt::access {

// Rows by how often they were looked up.
struct Ranked {
  std::vector<int64_t> counts;  // [K] of lookups, strictly descending
  std::vector<int64_t> rows;    // [K] rows that have as many
  // Ids hottest first, ascending among rows of equal count: of each run of equal counts the first
  // id, then the distances to the id before less one; varints of 7 bits a byte, lowest first.
  std::vector<uint8_t> ids;
  // Lookups in the later part, in the same order, as varints.
  std::vector<uint8_t> late;
  // By lookups in the earlier part, strictly descending and without 0: rows, and their lookups in
  // the later part.
  std::vector<int64_t> early_counts, early_rows, early_late;
};

// early and late: counters of the same table.
Ranked rank_rows(const Counters& early, const Counters& late);

// Inverse of the packing of ids; throws std::invalid_argument where the bytes are not of such runs
// in a table of `num_embeddings` rows.
template <class Id>
void unpack_ids(const uint8_t* data, int64_t size, const int64_t* rows, int64_t runs,
                int64_t num_embeddings, Id* out);

// Plain varints, and their inverse.
std::vector<uint8_t> pack_numbers(const uint64_t* numbers, int64_t count);
void unpack_numbers(const uint8_t* data, int64_t size, int64_t count, uint64_t* out);

}  // namespace recsys_opt::access
