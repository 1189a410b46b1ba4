// What decides: which lane a query waits in, and what a free worker does.
#pragma once

#include <cstdint>
#include <limits>

namespace recsys_opt::serving {

class Core;

// Of a free worker: a batch of `samples` from the head of a lane (fewer, where there are fewer) on
// a path of its device; or nothing (path -1), and to be asked again at `wake` at the latest. It is
// asked again after every arrival and every batch that ends, anyway.
struct Decision {
  int32_t path = -1;
  int32_t lane = 0;
  int64_t samples = 0;
  double wake = std::numeric_limits<double>::infinity();
};

class Policy {
 public:
  virtual ~Policy() = default;
  // A run begins.
  virtual void begin(const Core&) {}
  // The lane of a query that arrives now: a path's, or core.shared_lane(); -1: rejected.
  virtual int32_t arrive(const Core& core, int32_t size, double deadline) = 0;
  // It may give queries up first.
  virtual Decision start(Core& core, int32_t worker) = 0;
};

}  // namespace recsys_opt::serving
