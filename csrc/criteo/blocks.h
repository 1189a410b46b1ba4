// Second reading of a part's value blocks (PartReader): counting them again, or turning them into
// ids.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "criteo/reader.h"
#include "criteo/vocabulary.h"

namespace criteo {

// Counts the values of a blocks file. Meter::done advances by rows.
void count_blocks(const std::string& path, Counts& counts, int threads, Meter& meter);

// The id tables of all columns.
class Vocabulary {
 public:
  // ranked[c]: the values of column c, in id order.
  Vocabulary(const std::vector<std::span<const uint32_t>>& ranked, int threads);

  // Writes the ids of a blocks file of `rows` rows as .npy. Meter::done advances by rows.
  void map_blocks(const std::string& blocks_path, const std::string& sparse_path, int64_t rows,
                  int threads, Meter& meter) const;

 private:
  std::vector<IdTable> tables_;
};

}  // namespace criteo
