// The policies. Those that bind a query to a path when it arrives run it alone; those that bind
// late let it wait in the shared lane, from which free workers take batches.
#pragma once

#include <cstdint>
#include <vector>

#include "serving/core.h"
#include "serving/policy.h"

namespace recsys_opt::serving {

// Binds a query to a path when it arrives. Each device runs what is bound to it in the order of
// the deadlines, one query at a time (in parts, where it is larger than the path takes).
class Binding : public Policy {
 public:
  int32_t arrive(const Core& core, int32_t size, double deadline) final {
    return choose(core, size, deadline);
  }
  Decision start(Core& core, int32_t worker) final;

 protected:
  // The path of a query that arrives now.
  virtual int32_t choose(const Core& core, int32_t size, double deadline) = 0;
  // When a query would be done: after what its device has to do before.
  static double finish_time(const Core& core, int32_t path, int32_t size);
};

// All queries on one path.
class StaticPath : public Binding {
 public:
  explicit StaticPath(int32_t path) : path_(path) {}

 protected:
  int32_t choose(const Core&, int32_t, double) override { return path_; }

 private:
  int32_t path_;
};

// Queries of at least `size` samples on one path, the others on another (DeepRecSys, ISCA 2020,
// which finds the size by hill climbing: recsys_opt.serving.tuning).
class Threshold : public Binding {
 public:
  Threshold(int32_t small, int32_t large, int64_t size)
      : small_(small), large_(large), size_(size) {}

 protected:
  int32_t choose(const Core&, int32_t size, double) override {
    return size >= size_ ? large_ : small_;
  }

 private:
  int32_t small_, large_;
  int64_t size_;
};

// MP-Rec (ASPLOS 2023) as we read it: the most accurate representation that is expected to meet
// the deadline behind what is bound already, on the device where it would be done first; where none
// does, the path that would be done first.
class MPRec : public Binding {
 public:
  void begin(const Core& core) override;

 protected:
  int32_t choose(const Core& core, int32_t size, double deadline) override;

 private:
  std::vector<int32_t> paths_;  // by descending accuracy
};

// The path that would be done first.
class EarliestFinish : public Binding {
 protected:
  int32_t choose(const Core& core, int32_t size, double deadline) override;
};

// Binding at arrival at a price, drift plus penalty (Neely 2010): the time that a path takes of its
// device costs the more, the longer the device's backlog; accuracy, in units of the most accurate
// path's gain over the least, is worth what the slowest path of the fastest device takes longer,
// where the backlog is half of what is left to the deadline.
class Priced : public Binding {
 public:
  void begin(const Core& core) override;

 protected:
  int32_t choose(const Core& core, int32_t size, double deadline) override;

 private:
  double least_ = 0, gain_ = 0;
};

}  // namespace recsys_opt::serving
