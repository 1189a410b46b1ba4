// A device's time as a function of what it holds, quick to ask.
//
// By weak duality (and strong, but for rounding to rows) the time of a device is the most, over
// prices of a byte of the fast tier, of
//     sum over its pieces of (seconds + price * fast bytes at that price) - price * capacity.
// A load keeps this sum at a grid of prices. It is concave in the price, so the most is found by
// climbing from where it was; between two prices of the grid it is larger by less than the grid's
// step squared.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "planner/problem.h"

namespace recsys_opt::planner {

// Prices from one at which nothing is worth being fast down to 0, dense around the expected one.
// Prices at which a device's fast tier comes to next to nothing of `seconds` are left out.
std::vector<double> price_grid(const Problem& problem, double expected, double seconds);

// A piece at each price of the grid.
struct Profile {
  std::vector<double> weight;  // seconds + price * fast bytes
  double total_bytes = 0;
  double must_be_fast = 0;  // bytes
};

// Profiles of options' pieces, made when first asked for. Stripes of a table differ by their
// hottest rows; those from the kStripes-th on count as the kStripes-th.
class Profiles {
 public:
  Profiles(const Problem& problem, std::vector<double> prices);
  const Profile& of(int32_t option, int32_t piece) {
    const Profile& profile = profiles_[first_[option] + kind(option, piece)];
    return profile.weight.empty() ? make(option, kind(option, piece)) : profile;
  }
  // Pieces of one kind have the same profile.
  int32_t kind(int32_t option, int32_t piece) const {
    const int32_t stripes = stripes_[option];
    return stripes == 1 ? 0 : std::min(piece % stripes, kStripes - 1);
  }
  const std::vector<double>& prices() const { return prices_; }

 private:
  static constexpr int32_t kStripes = 8;
  const Profile& make(int32_t option, int32_t kind);

  const Problem& problem_;
  std::vector<double> prices_;
  std::vector<PricedClasses> at_;         // [levels]
  std::vector<int32_t> first_, stripes_;  // [options]
  std::vector<Profile> profiles_;
};

class Load {
 public:
  Load(const std::vector<double>& prices, double fast_bytes, double total_bytes);

  void add(const Profile& piece);
  void remove(const Profile& piece);
  double seconds() const { return seconds_; }
  // At one price of the grid; never more than seconds().
  double seconds_at(int32_t level) const { return value_[level]; }
  // The level at which seconds_at is seconds().
  int32_t level() const { return level_; }
  // Whether it could hold the piece too, and what of it must be fast.
  bool has_room(const Profile& piece) const {
    return total_ + piece.total_bytes <= capacity_ && must_ + piece.must_be_fast <= fast_;
  }
  bool has_room(double more_bytes, double more_that_must_be_fast) const {
    return total_ + more_bytes <= capacity_ && must_ + more_that_must_be_fast <= fast_;
  }
  // Its time with one piece more; infinity where there is no room.
  double seconds_with(const Profile& more) const;
  // Its time where `more(level)` is added to what it holds.
  template <class More>
  double climb(const More& more, int32_t* level = nullptr) const {
    const auto last = static_cast<int32_t>(value_.size()) - 1;
    int32_t at = level_;
    double top = value_[at] + more(at);
    for (double next; at < last && (next = value_[at + 1] + more(at + 1)) > top; ++at) top = next;
    if (at == level_) {
      for (double next; at > 0 && (next = value_[at - 1] + more(at - 1)) > top; --at) top = next;
    }
    if (level) *level = at;
    return top;
  }

 private:
  void settle();

  std::vector<double> value_;  // [levels]
  double fast_, capacity_, total_ = 0, must_ = 0, seconds_ = 0;
  int32_t level_;
};

}  // namespace recsys_opt::planner
