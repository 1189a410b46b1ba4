// Waiting queries in the order of their deadlines.
#pragma once

#include <cstdint>
#include <vector>

namespace recsys_opt::serving {

// Samples of a query that wait for a worker.
struct Waiting {
  double deadline;
  double rate;  // samples a second at which the whole query would just be in time, from its arrival
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
  // Sum over the queries of samples / (deadline - arrival).
  double rate() const { return size_ ? rate_ : 0.0; }
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
    add(waiting, 1);
  }
  // Takes `count` samples off the head, which leaves the lane with its last ones.
  void take(int32_t count) {
    Waiting& head = ring_[begin_];
    const double share = head.rate * count / head.count;
    samples_ -= count;
    rate_ -= share;
    head.rate -= share;
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
        add(waiting, -1);
      } else {
        ring_[at(kept++)] = waiting;
      }
    }
    size_ = kept;
  }

 private:
  int64_t at(int64_t i) const { return (begin_ + i) & (static_cast<int64_t>(ring_.size()) - 1); }
  void add(const Waiting& waiting, int sign) {
    samples_ += sign * waiting.count;
    rate_ = sign > 0 && size_ == 1 ? waiting.rate : rate_ + sign * waiting.rate;
  }
  void grow() {
    std::vector<Waiting> larger(2 * ring_.size());
    for (int64_t i = 0; i < size_; ++i) larger[i] = ring_[at(i)];
    ring_.swap(larger);
    begin_ = 0;
  }

  std::vector<Waiting> ring_;
  int64_t begin_ = 0, size_ = 0, samples_ = 0;
  double rate_ = 0;  // starts anew with the first query after an empty lane: no error adds up
};

}  // namespace recsys_opt::serving
