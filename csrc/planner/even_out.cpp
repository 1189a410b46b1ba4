// The search's finer moves: what two devices hold is parted anew between them; one table is cut in
// another way and the devices that this concerns are evened out.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "planner/anneal.h"
#include "planner/search.h"

namespace recsys_opt::planner {
namespace {

constexpr size_t kHalf = 4, kFlips = 2 * kHalf;  // pieces parted at a time: all 2^kFlips ways
constexpr size_t kLooks = 4;                     // ways whose times are looked at
// Tables among which one is taken to be cut in a cheaper way; how often they are listed; for which
// share of the steps.
constexpr size_t kDear = 32;
constexpr int64_t kListEvery = 64;
constexpr double kCheaper = 0.7;

struct Way {
  double most;  // of the two times, to first order
  uint32_t mask;
};

}  // namespace

// The pieces that can change over from a to b or back; of tables that are on both, two pieces that
// change places.
void Search::collect_flips(int32_t a, int32_t b) {
  flips_.clear();
  const auto piece_on = [&](int32_t t, int32_t device) {
    const auto& on = now_.devices[t];
    const auto found = std::find(on.begin(), on.end(), device);
    return found == on.end() ? -1 : static_cast<int32_t>(found - on.begin());
  };
  const auto add = [&](const Spot& spot, int32_t other, bool given) {
    const int32_t option = now_.option[spot.table];
    const Option& o = problem_.options[option];
    if (!problem_.pinned[spot.table].empty()) return;
    const int32_t there = o.pieces > 1 ? piece_on(spot.table, other) : -1;
    if (there >= 0) {
      if (!given || profiles_.kind(option, there) == profiles_.kind(option, spot.piece)) return;
      flips_.push_back({spot.table, spot.piece, there, &profiles_.of(option, spot.piece),
                        &profiles_.of(option, there)});
    } else if (o.place == Place::kAny) {
      const Profile* profile = &profiles_.of(option, spot.piece);
      if (given) {
        flips_.push_back({spot.table, spot.piece, -1, profile, nullptr});
      } else {
        flips_.push_back({spot.table, -1, spot.piece, nullptr, profile});
      }
    }
  };
  for (const Spot& spot : on_[a]) add(spot, b, true);
  for (const Spot& spot : on_[b]) add(spot, a, false);
  for (size_t i = 0; i < std::min(kFlips, flips_.size()); ++i) {
    std::swap(flips_[i], flips_[i + random_.next() % (flips_.size() - i)]);
  }
  if (flips_.size() > kFlips) flips_.resize(kFlips);
}

// Parts what a and b hold between them in the best of all ways, to first order (each piece at its
// weight at the price of either device); of the best few of these, in the one that is best.
bool Search::repartition(int32_t a, int32_t b) {
  if (a == b) return false;
  collect_flips(a, b);
  const size_t n = flips_.size();
  if (n == 0) return false;
  trials_ += 12;
  const int32_t at_a = loads_[a].level(), at_b = loads_[b].level();
  // Sums over the subsets of each half of the flips.
  constexpr size_t kSubsets = size_t{1} << kHalf;
  std::array<double, kSubsets> low_a{}, low_b{}, high_a{}, high_b{};
  const auto sums = [&](size_t begin, std::array<double, kSubsets>& sum_a,
                        std::array<double, kSubsets>& sum_b) {
    const size_t count = begin >= n ? 0 : std::min(kHalf, n - begin);
    for (size_t i = 0; i < count; ++i) {
      const double more_a = flips_[begin + i].weight(at_a);
      const double more_b = -flips_[begin + i].weight(at_b);
      for (size_t m = size_t{1} << i; m < size_t{2} << i; ++m) {
        sum_a[m] = sum_a[m ^ (size_t{1} << i)] + more_a;
        sum_b[m] = sum_b[m ^ (size_t{1} << i)] + more_b;
      }
    }
    return size_t{1} << count;
  };
  const size_t low = sums(0, low_a, low_b), high = sums(kHalf, high_a, high_b);
  std::array<Way, kLooks> ways;
  ways.fill({std::numeric_limits<double>::infinity(), 0});
  const double time_a = loads_[a].seconds(), time_b = loads_[b].seconds();
  constexpr size_t kLanes = 8;
  std::array<double, kSubsets> most;
  for (size_t h = 0; h < high; ++h) {
    const double base_a = time_a + high_a[h], base_b = time_b + high_b[h];
    std::array<double, kLanes> least;
    least.fill(std::numeric_limits<double>::infinity());
    for (size_t l = 0; l < kSubsets; l += kLanes) {
      for (size_t i = 0; i < kLanes; ++i) {
        const double x = base_a + low_a[l + i], y = base_b + low_b[l + i];
        most[l + i] = x > y ? x : y;
        least[i] = most[l + i] < least[i] ? most[l + i] : least[i];
      }
    }
    if (*std::min_element(least.begin(), least.end()) >= ways.back().most) continue;
    for (size_t l = 0; l < low; ++l) {
      if (most[l] >= ways.back().most) continue;
      Way way{most[l], static_cast<uint32_t>(h << kHalf | l)};
      for (Way& other : ways) {
        if (way.most < other.most) std::swap(way, other);
      }
    }
  }
  double best = power(time_a, reference_) + power(time_b, reference_);
  best *= 1 - 1e-9;
  uint32_t chosen = 0;
  for (const Way& way : ways) {
    // Times to first order are never too large.
    if (std::isinf(way.most) || power(way.most, reference_) >= best) break;
    if (way.mask == 0) continue;
    double bytes = 0, must = 0;
    for (uint32_t m = way.mask; m; m &= m - 1) {
      const Flip& f = flips_[std::countr_zero(m)];
      bytes += (f.to ? f.to->total_bytes : 0) - (f.from ? f.from->total_bytes : 0);
      must += (f.to ? f.to->must_be_fast : 0) - (f.from ? f.from->must_be_fast : 0);
    }
    if (!loads_[a].has_room(bytes, must) || !loads_[b].has_room(-bytes, -must)) continue;
    const auto more = [&](int32_t level) {
      double sum = 0;
      for (uint32_t m = way.mask; m; m &= m - 1) sum += flips_[std::countr_zero(m)].weight(level);
      return sum;
    };
    const double after_a = loads_[a].climb(more);
    const double after_b = loads_[b].climb([&](int32_t level) { return -more(level); });
    const double height = power(after_a, reference_) + power(after_b, reference_);
    if (height < best) {
      best = height;
      chosen = way.mask;
    }
  }
  for (uint32_t m = chosen; m; m &= m - 1) {
    const Flip f = flips_[std::countr_zero(m)];
    if (f.from) leave(a, {f.table, f.from_piece});
    if (f.to) leave(b, {f.table, f.to_piece});
    if (f.from) enter(b, {f.table, f.from_piece});
    if (f.to) enter(a, {f.table, f.to_piece});
  }
  return chosen != 0;
}

// Between the slowest of the devices that the step has touched and others, most of them touched
// too.
void Search::even_out(int times) {
  const auto devices = static_cast<uint64_t>(problem_.devices.count());
  for (int i = 0; i < times; ++i) {
    int32_t slow = saved_devices_[0].device;
    for (size_t j = 1; j < saved_device_count_; ++j) {
      const int32_t d = saved_devices_[j].device;
      if (loads_[d].seconds() > loads_[slow].seconds()) slow = d;
    }
    const int32_t other = random_.uniform() < 0.7
                              ? saved_devices_[random_.next() % saved_device_count_].device
                              : static_cast<int32_t>(random_.next() % devices);
    repartition(slow, other);
  }
}

// The tables whose cut is dearest, beside the cheapest one.
void Search::list_dear() {
  dear_.clear();
  for (size_t t = 0; t < options_.size(); ++t) {
    const auto& ways = options_[t];
    const size_t i = std::find(ways.begin(), ways.end(), now_.option[t]) - ways.begin();
    const double excess = (dearness_[t][i] - 1) * weight_[t];
    if (excess > 0) dear_.push_back({-excess, static_cast<int32_t>(t)});
  }
  const size_t keep = std::min(kDear, dear_.size());
  std::partial_sort(dear_.begin(), dear_.begin() + static_cast<int64_t>(keep), dear_.end());
  dear_.resize(keep);
}

// Takes a table and cuts it in another way, most often a cheaper one. The devices that it goes to
// may be too slow then: they are evened out.
bool Search::cut_otherwise() {
  if (cuts_++ % kListEvery == 0) list_dear();
  const bool cheaper = !dear_.empty() && random_.uniform() < kCheaper;
  const int32_t t = cheaper ? dear_[random_.next() % dear_.size()].second
                            : static_cast<int32_t>(random_.next() % options_.size());
  const auto& ways = options_[t];
  if (ways.size() < 2) return false;
  const size_t now = std::find(ways.begin(), ways.end(), now_.option[t]) - ways.begin();
  const size_t other = cheaper && now > 0
                           ? random_.next() % now
                           : (now + 1 + random_.next() % (ways.size() - 1)) % ways.size();
  open_.clear();
  take_out(t);
  choice_.cost = std::numeric_limits<double>::infinity();
  consider(t, ways[other], 1.0);
  if (std::isinf(choice_.cost)) return false;
  put_in(t, choice_.option, choice_.devices);
  return true;
}

}  // namespace recsys_opt::planner
