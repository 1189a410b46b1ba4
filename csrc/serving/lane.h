// Waiting queries in the order of their deadlines.
#pragma once

#include <cstdint>
#include <vector>

namespace recsys_opt::serving {

// Samples of a query that wait for a worker.
struct Waiting {
  double deadline;
  uint32_t slot;  // of the query
  int32_t first, count;
};

// A ring. Queries mostly arrive in the order of their deadlines, so that a push is at the end.
class Lane {
 public:
  Lane() : ring_(64) {}
  bool empty() const { return size_ == 0; }
  int64_t queries() const { return size_; }
  int64_t samples() const { return samples_; }
  const Waiting& head() const { return ring_[begin_]; }
  const Waiting& operator[](int64_t i) const { return ring_[at(i)]; }

  // Behind those with the same deadline.
  void push(const Waiting& waiting) {
    if (size_ == static_cast<int64_t>(ring_.size())) grow();
    int64_t i = size_++;
    for (; i > 0 && ring_[at(i - 1)].deadline > waiting.deadline; --i) {
      ring_[at(i)] = ring_[at(i - 1)];
    }
    ring_[at(i)] = waiting;
    samples_ += waiting.count;
  }
  // Takes `count` samples off the head, which leaves the lane with its last ones.
  void take(int32_t count) {
    Waiting& head = ring_[begin_];
    samples_ -= count;
    head.first += count;
    head.count -= count;
    if (head.count == 0) {
      begin_ = at(1);
      --size_;
    }
  }
  // Takes all that waits of a query.
  void erase(uint32_t slot) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const Waiting waiting = ring_[at(i)];
      if (waiting.slot == slot) {
        samples_ -= waiting.count;
      } else {
        ring_[at(kept++)] = waiting;
      }
    }
    size_ = kept;
  }

 private:
  int64_t at(int64_t i) const { return (begin_ + i) & (static_cast<int64_t>(ring_.size()) - 1); }
  void grow() {
    std::vector<Waiting> larger(2 * ring_.size());
    for (int64_t i = 0; i < size_; ++i) larger[i] = ring_[at(i)];
    ring_.swap(larger);
    begin_ = 0;
  }

  std::vector<Waiting> ring_;
  int64_t begin_ = 0, size_ = 0, samples_ = 0;
};

}  // namespace recsys_opt::serving
