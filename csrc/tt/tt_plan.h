#pragma once
// What one table has to compute for one batch, with every repetition removed.
//
// A prefix of an id is (i_0 .. i_{k-1}). Ids of a batch that share a prefix share the product of
// its cores, so the batch's distinct prefixes form a tree: level k holds the distinct prefixes of
// length k (its nodes), the children of a node are the nodes one level up, and the children of the
// top level (k = d - 1) are the distinct rows. The nodes of a level are sorted by their last index
// i_{k-1}: a group is the nodes that share it, and so the slice of core k - 1.
#include <cstdint>
#include <vector>

#include "tt_array.h"
#include "tt_embedding_bag.h"
#include "tt_ids.h"

namespace recsys_opt::tt {

struct Level {
  int64_t groups = 0;
  int64_t nodes = 0;
  Array<int32_t> group_index;  // [groups] the slice of core k - 1, ascending
  Array<int32_t> group_start;  // [groups + 1] into nodes
  Array<int32_t> parent;       // [nodes] level 2: i_0; above: the node one level down
  Array<int32_t> child_start;  // [nodes + 1] into child; at the top level, into rows
  Array<int32_t> child;        // nodes one level up, by parent (below the top level)
};

struct TablePlan {
  int64_t begin = 0;         // first index of the feature
  int64_t lookups = 0;       // without padding
  int64_t rows = 0;          // distinct ids
  bool one_per_bag = true;   // no bag has more than one lookup
  Array<int32_t> row_node;   // [rows] of the top level
  Array<int32_t> row_last;   // [rows] i_{d-1}
  Array<int32_t> row_start;  // [rows + 1] into lookup and bag
  Array<int32_t> lookup;     // [lookups] position in the feature's indices, by row
  Array<int32_t> row;        // [lookups]
  Array<int32_t> bag_of;     // [lookups]; empty where every bag has just one index: it is `lookup`
  // Only where bags have several lookups:
  Array<int32_t> row_of;      // [the feature's indices] -1: padding
  Array<int32_t> bag_size;    // [bags] lookups in it; for mean pooling
  std::vector<Level> levels;  // [d], levels[k] for k = 2 .. d-1, of two cores k = 1

  const Level& top() const { return levels.back(); }
  const int32_t* bag() const { return bag_of.size() ? bag_of.data() : lookup.data(); }
};

// Plans table t of a batch.
Fault make_plan(const Arguments& args, int64_t t, const Tensor& indices, const Tensor& offsets,
                TablePlan& plan);

}  // namespace recsys_opt::tt
