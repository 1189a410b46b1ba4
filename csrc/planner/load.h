// A device's time as a function of what it holds, quick to ask.
//
// For a grid of prices, a piece has the fast bytes and seconds that it would take at that price.
// Sums over the pieces of a device give those of the device; its own price lies where the fast
// bytes meet its capacity, between two grid points, and its time is read off the chord. (A chord
// lies above the convex curve: times are never too small, and by less than the step of the grid.)
#pragma once

#include <cstdint>
#include <vector>

#include "planner/problem.h"

namespace recsys_opt::planner {

// Prices from "nothing is fast" (infinity) to "everything is" (0), dense around the expected one.
std::vector<double> price_grid(const Problem& problem, double expected);

// fast bytes and seconds of a piece, or of a device, at each price.
struct Profile {
  std::vector<float> bytes, seconds;
  double total_bytes = 0;
};

// Profiles of options, made when first asked for.
class Profiles {
 public:
  Profiles(const Problem& problem, const std::vector<double>& prices);
  const Profile& of(int32_t option);
  int32_t levels() const { return static_cast<int32_t>(at_.size()); }

 private:
  const Problem& problem_;
  std::vector<PricedClasses> at_;  // [levels]
  std::vector<Profile> profiles_;
};

class Load {
 public:
  Load(int32_t levels, double fast_bytes, double total_bytes);

  void add(const Profile& piece);
  void remove(const Profile& piece);
  double seconds() const { return seconds_; }
  // Whether it could hold the piece too, and what of it must be fast.
  bool has_room(const Profile& piece) const {
    return total_ + piece.total_bytes <= capacity_ && bytes_[0] + piece.bytes[0] <= fast_;
  }
  // Its time with one piece more (null: as it is); infinity where there is no room.
  double seconds_with(const Profile* more) const;

 private:
  void settle();

  std::vector<double> bytes_, sums_;  // [levels] fast bytes, seconds
  double fast_, capacity_, total_ = 0, seconds_ = 0;
};

}  // namespace recsys_opt::planner
