// How the search places tables: each in the way, and on the devices, that cost least.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "planner/anneal.h"
#include "planner/search.h"

namespace recsys_opt::planner {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Where only ways that cost little more than the cheapest are wanted.
constexpr double kTight = 1.005;

}  // namespace

// What a piece adds to the penalty of a device; of one that goes to every device, at the slope of a
// typical one.
double Search::cost_on(int32_t d, const Profile& piece, bool everywhere) {
  ++trials_;
  const Load& load = loads_[d];
  double before, after;
  if (priced_) {  // as if the device's fast tier were full at the expected price
    if (!load.has_room(piece)) return kInfinity;
    const double full = price_ * problem_.devices.fast_bytes[d];
    const double scale = reach_ / (reach_ + full);
    before = (load.seconds_at(price_level_) + full) * scale;
    after = before + piece.weight[price_level_] * scale;
  } else {
    before = load.seconds();
    after = load.seconds_with(piece);
  }
  return everywhere ? kTypical * (after - before) / reach_
                    : penalty(after, reach_) - penalty(before, reach_);
}

// Takes the option as the choice if the best devices for its pieces make it cheaper than the choice
// so far. Of stripes, the hottest goes where there is most time left.
void Search::consider(int32_t t, int32_t option, double noise) {
  const Option& o = problem_.options[option];
  const Devices& devices = problem_.devices;
  const Profile& first = profiles_.of(option, 0);
  const std::vector<int32_t>& pinned = problem_.pinned[t];
  const bool everywhere = o.place == Place::kEverywhere;
  costs_.clear();
  if (o.place == Place::kNode) {
    double least = kInfinity;
    int32_t best = -1;
    for (int32_t node = 0; node < devices.nodes; ++node) {
      double sum = 0;
      for (int32_t i = 0; i < devices.per_node; ++i) {
        const int32_t d = node * devices.per_node + i;
        const bool allowed =
            pinned.empty() || std::find(pinned.begin(), pinned.end(), d) != pinned.end();
        sum += allowed ? cost_on(d, first, false) : kInfinity;
      }
      if (sum < least) {
        least = sum;
        best = node;
      }
    }
    for (int32_t i = 0; best >= 0 && i < devices.per_node; ++i) {
      const int32_t d = best * devices.per_node + i;
      costs_.push_back({cost_on(d, first, false), d});
    }
    if (best < 0) return;
  } else {
    const bool any = static_cast<size_t>(o.pieces) <= open_.size();
    const std::vector<int32_t>& among = everywhere        ? all_
                                        : !pinned.empty() ? pinned
                                        : any             ? open_
                                                          : all_;
    for (int32_t d : among) costs_.push_back({cost_on(d, first, everywhere), d});
    if (static_cast<size_t>(o.pieces) < costs_.size()) {
      std::nth_element(costs_.begin(), costs_.begin() + (o.pieces - 1), costs_.end());
      costs_.resize(o.pieces);
    }
  }
  if (o.parts > 1) {
    std::sort(costs_.begin(), costs_.end(), [&](const auto& a, const auto& b) {
      return loads_[a.second].seconds() < loads_[b.second].seconds();
    });
    for (int32_t i = 1; i < o.pieces; ++i) {
      costs_[i].first = cost_on(costs_[i].second, profiles_.of(option, i), everywhere);
    }
  }
  double cost = 0;
  for (const auto& [more, d] : costs_) cost += more;
  cost *= noise;
  if (cost < choice_.cost) {
    choice_.cost = cost;
    choice_.option = option;
    choice_.devices.clear();
    for (const auto& [more, d] : costs_) choice_.devices.push_back(d);
  }
}

bool Search::insert(int32_t t) {
  choice_.cost = kInfinity;
  for (size_t i = 0; i < options_[t].size(); ++i) {
    // Dearer ways to cut it only where a piece of the cheapest fills much of a device, or has no
    // room.
    if (i > 0 && tight_ && small_[t] && !std::isinf(choice_.cost) && dearness_[t][i] > kTight)
      break;
    consider(t, options_[t][i], 1 + noise_ * (2 * random_.uniform() - 1));
  }
  if (std::isinf(choice_.cost)) return false;
  put_in(t, choice_.option, choice_.devices);
  return true;
}

bool Search::place_all(const std::vector<int32_t>& order) {
  open_.clear();
  begin();
  const Devices& devices = problem_.devices;
  loads_.clear();
  for (int32_t d = 0; d < devices.count(); ++d) {
    loads_.emplace_back(profiles_.prices(), devices.fast_bytes[d], devices.total_bytes[d]);
  }
  on_.assign(devices.count(), {});
  now_.option.assign(order.size(), -1);
  now_.devices.assign(order.size(), {});
  for (int32_t t : order) {
    if (insert(t)) continue;
    now_.unplaced = t;
    return false;
  }
  now_.unplaced = -1;
  return true;
}

void Search::construct(double reach, bool priced) {
  reach_ = reach;
  noise_ = 0;
  priced_ = priced;
  tight_ = priced;
  std::vector<int32_t> order(problem_.tables.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return weight_[a] > weight_[b]; });
  bool placed = place_all(order);
  if (!placed) {  // the largest first: then what has no room by weight may have it
    const auto bytes = [&](int32_t t) {
      return problem_.tables[t].rows.back() *
             problem_.options[problem_.first_option[t]].bytes_per_row;
    };
    std::stable_sort(order.begin(), order.end(),
                     [&](int32_t a, int32_t b) { return bytes(a) > bytes(b); });
    placed = place_all(order);
  }
  priced_ = false;
  if (placed) {
    keep_if_best();
  } else if (std::isinf(best_.seconds)) {
    best_.unplaced = now_.unplaced;
  }
}

}  // namespace recsys_opt::planner
