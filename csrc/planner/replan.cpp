#include "planner/replan.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "planner/anneal.h"

namespace recsys_opt::planner {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kTight = 1.02;  // see kTightShare
// Of more stripes than this, each counts as the first, which has the hottest row.
constexpr double kExactStripes = 8;
constexpr double kDear = 1e3;  // a byte's price where no more bytes may move than must
constexpr size_t kMostPrices = 1024;

// Every price at which some cell enters the fast tier, where these are few: a device's time is then
// all but exact. Else the usual grid. Loads climb from price to price, so that none may be so near
// the next, or nothing, that rounding hides which is higher.
std::vector<double> prices_of(const Problem& p, double expected, double seconds) {
  constexpr double kNear = 1e-4;
  const double fast = *std::max_element(p.devices.fast_bytes.begin(), p.devices.fast_bytes.end());
  const double low = 1e-6 * seconds / std::max(fast, 1.0);
  std::vector<double> all;
  for (const Option& o : p.options) {
    if (o.tiers != Tiers::kSplit) continue;
    for (double rate : p.tables[o.table].rate) all.push_back(saving(o, rate));
    std::sort(all.begin(), all.end(), std::greater<>());
    all.erase(std::unique(all.begin(), all.end()), all.end());
    if (all.size() > kMostPrices) return price_grid(p, expected, seconds);
  }
  std::vector<double> found;
  for (double price : all) {
    if (price > low && (found.empty() || price < found.back() * (1 - kNear)))
      found.push_back(price);
  }
  found.push_back(0);
  return found;
}

bool exact_stripes(const Option& o, const std::vector<double>& dealt) {
  return o.parts > 1 && (!dealt.empty() || o.parts <= kExactStripes);
}

}  // namespace

Curve piece_rows(const Problem& p, const Moves& moves, int32_t option, size_t piece) {
  const Option& o = p.options[option];
  const Curve& whole = p.tables[o.table];
  if (o.parts <= 1) return whole;
  const auto stripes = static_cast<int64_t>(o.parts);
  const int64_t stripe = static_cast<int64_t>(piece) % stripes;
  const std::vector<double>& dealt = moves.dealt[option];
  return dealt.empty() ? whole.stripe(stripe, stripes)
                       : whole.part(dealt.data() + stripe * whole.cells());
}

Replan::Replan(const Problem& p, const Moves& moves, double price, double bound, uint64_t seed)
    : problem_(p),
      moves_(moves),
      prices_(prices_of(p, price, bound)),
      at_(prices_.size(), PricedClasses(p)),
      profiles_(p.options.size()),
      bound_(bound),
      random_(seed) {
  for (size_t l = 0; l < prices_.size(); ++l) at_[l].set(prices_[l]);
  PricedClasses at_price(p);
  at_price.set(price);
  const size_t tables = p.tables.size();
  const double capacity = bound + price * p.devices.fast_bytes[0];
  for (size_t t = 0; t < tables; ++t) {
    std::vector<std::pair<double, int32_t>> found;
    double least_bytes = kInfinity;
    for (int32_t o = p.first_option[t]; o < p.first_option[t + 1]; ++o) {
      least_bytes = std::min(least_bytes, moves.bytes[o]);
      const auto most =
          p.pinned[t].empty() ? p.devices.count() : static_cast<int32_t>(p.pinned[t].size());
      if (p.options[o].pieces > most) continue;
      found.push_back({at_price.weight(at_price.split(p.options[o])) * p.options[o].pieces, o});
    }
    model_bytes_ += least_bytes;
    std::sort(found.begin(), found.end());
    auto& options = options_.emplace_back();
    auto& dearness = dearness_.emplace_back();
    bool split = false;
    for (const auto& [weight, o] : found) {
      const bool first_split = !split && p.options[o].tiers != Tiers::kFast;
      if (first_split || o == moves.old_option[t] ||
          (options.size() < kMostOptions && weight <= kWorthTrying * found.front().first)) {
        options.push_back(o);
        dearness.push_back(weight / found.front().first);
        split = split || first_split;
      }
    }
    weight_.push_back(found.empty() ? 0 : found.front().first);
    small_.push_back(!found.empty() && at_price.weight(at_price.split(
                                           p.options[found.front().second])) < kSmall * capacity);
  }
  all_.resize(p.devices.count());
  std::iota(all_.begin(), all_.end(), 0);
  for (int32_t d = 0; d < p.devices.count(); ++d) {
    loads_.emplace_back(prices_, p.devices.fast_bytes[d], p.devices.total_bytes[d]);
  }
  on_.resize(p.devices.count());
  now_.option.assign(tables, -1);
  now_.devices.resize(tables);
  best_.seconds = kInfinity;
}

const Profile& Replan::profile(int32_t option, size_t piece) {
  const Option& o = problem_.options[option];
  auto& of_option = profiles_[option];
  const bool exact = exact_stripes(o, moves_.dealt[option]);
  const size_t at = exact ? piece % static_cast<size_t>(o.parts) : 0;
  if (of_option.empty()) of_option.resize(exact ? static_cast<size_t>(o.parts) : 1);
  Profile& found = of_option[at];
  if (!found.weight.empty()) return found;
  const Curve c = piece_rows(problem_, moves_, option, at);
  found.total_bytes = c.rows.back() * o.bytes_per_row;
  if (o.tiers == Tiers::kFast) found.must_be_fast = found.total_bytes;
  for (const PricedClasses& price : at_) found.weight.push_back(price.weight(price.split(o, c)));
  return found;
}

// A hair for every byte that moves.
double Replan::height() const {
  return planner::height(loads_, reference_) + 1e-6 * now_.moved_bytes / model_bytes_;
}

double Replan::moved_by(int32_t option, const std::vector<int32_t>& devices) const {
  double bytes = moves_.bytes[option];
  for (size_t i = 0; i < devices.size(); ++i) bytes -= kept_on(option, i, devices[i]);
  return std::max(bytes, 0.0);
}

void Replan::put_in(int32_t t, int32_t option, const std::vector<int32_t>& devices) {
  for (size_t i = 0; i < devices.size(); ++i) {
    loads_[devices[i]].add(profile(option, i));
    on_[devices[i]].push_back(t);
  }
  now_.option[t] = option;
  now_.devices[t] = devices;
  now_.moved_bytes += moved_by(option, devices);
}

void Replan::take_out(int32_t t) {
  const int32_t option = now_.option[t];
  const std::vector<int32_t>& devices = now_.devices[t];
  for (size_t i = 0; i < devices.size(); ++i) {
    loads_[devices[i]].remove(profile(option, i));
    auto& held = on_[devices[i]];
    held.erase(std::find(held.begin(), held.end(), t));
  }
  now_.moved_bytes -= moved_by(option, devices);
  now_.option[t] = -1;
  now_.devices[t].clear();
}

bool Replan::stays(int32_t t) const {
  return now_.option[t] == moves_.old_option[t] && now_.devices[t] == moves_.old_devices[t];
}

double Replan::cost_on(int32_t d, int32_t option, size_t piece) {
  ++trials_;
  const double after = loads_[d].seconds_with(profile(option, piece)), before = loads_[d].seconds();
  return problem_.options[option].place == Place::kEverywhere
             ? kTypical * (after - before) / reach_
             : penalty(after, reach_) - penalty(before, reach_);
}

// The pieces that have most in common with what a device has go there, the others in order; at
// times in any order.
void Replan::match_pieces(int32_t option, double byte_price, std::vector<int32_t>* devices) {
  if (devices->size() < 2) return;
  struct Pair {
    double kept;
    size_t piece, at;
  };
  if (noise_ > 0) {  // any order may be better where stripes are not equal
    for (size_t i = 0; i + 1 < devices->size(); ++i) {
      std::swap((*devices)[i], (*devices)[i + random_.next() % (devices->size() - i)]);
    }
  }
  if (noise_ > 0 && byte_price == 0) return;
  const size_t n = devices->size();
  std::vector<Pair> pairs;
  for (size_t at = 0; at < n; ++at) {
    if (moves_.old_piece[problem_.options[option].table][(*devices)[at]] < 0) continue;
    for (size_t i = 0; i < n; ++i) {
      const double kept = kept_on(option, i, (*devices)[at]);
      if (kept > 0) pairs.push_back({kept, i, at});
    }
  }
  if (pairs.empty()) return;
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Pair& a, const Pair& b) { return a.kept > b.kept; });
  std::vector<int32_t> found(n, -1);
  std::vector<char> used(n, 0);
  for (const Pair& pair : pairs) {
    if (found[pair.piece] >= 0 || used[pair.at]) continue;
    found[pair.piece] = (*devices)[pair.at];
    used[pair.at] = 1;
  }
  size_t at = 0;
  for (int32_t& d : found) {
    if (d >= 0) continue;
    while (used[at]) ++at;
    d = (*devices)[at++];
  }
  *devices = found;
}

// The cheapest devices for an option's pieces, in the order of the pieces; false where none are.
bool Replan::find_devices(int32_t t, int32_t option, double byte_price,
                          std::vector<int32_t>* devices) {
  const Option& o = problem_.options[option];
  const std::vector<int32_t>& pinned = problem_.pinned[t];
  const auto kept_most = [&](int32_t d) {
    double most = 0;
    if (moves_.old_piece[t][d] < 0) return most;
    for (size_t i = 0; i < static_cast<size_t>(o.pieces); ++i) {
      most = std::max(most, kept_on(option, i, d));
    }
    return most;
  };
  devices->clear();
  if (o.place == Place::kEverywhere) {
    *devices = all_;
  } else if (o.place == Place::kNode) {
    double least = kInfinity;
    int32_t best = -1;
    const int32_t per_node = problem_.devices.per_node;
    for (int32_t node = 0; node < problem_.devices.nodes; ++node) {
      double sum = 0;
      for (int32_t d = node * per_node; d < (node + 1) * per_node; ++d) {
        if (!pinned.empty() && std::find(pinned.begin(), pinned.end(), d) == pinned.end()) {
          sum = kInfinity;
          break;
        }
        sum += cost_on(d, option, 0) - byte_price * kept_most(d);
      }
      if (sum < least) {
        least = sum;
        best = node;
      }
    }
    if (best < 0) return false;
    for (int32_t i = 0; i < per_node; ++i) devices->push_back(best * per_node + i);
  } else {
    const bool any = pinned.empty() && static_cast<size_t>(o.pieces) <= open_.size();
    costs_.clear();
    for (int32_t d : !pinned.empty() ? pinned : any ? open_ : all_) {
      costs_.push_back({cost_on(d, option, 0) - byte_price * kept_most(d), d});
    }
    if (static_cast<size_t>(o.pieces) > costs_.size()) return false;
    std::nth_element(costs_.begin(), costs_.begin() + (o.pieces - 1), costs_.end());
    for (int32_t i = 0; i < o.pieces; ++i) devices->push_back(costs_[i].second);
    std::sort(devices->begin(), devices->end());
  }
  match_pieces(option, byte_price, devices);
  return true;
}

void Replan::consider(int32_t t, int32_t option, double byte_price) {
  std::vector<int32_t> devices;
  if (!find_devices(t, option, byte_price, &devices)) return;
  double moved = moved_by(option, devices);
  if (now_.moved_bytes + moved > limit_) {  // then where it moves least
    if (!find_devices(t, option, kDear * problem_.devices.count() / model_bytes_, &devices)) return;
    moved = moved_by(option, devices);
    if (now_.moved_bytes + moved > limit_) return;
  }
  double cost = byte_price * moved;
  for (size_t i = 0; i < devices.size(); ++i) cost += cost_on(devices[i], option, i);
  cost *= 1 + noise_ * (2 * random_.uniform() - 1);
  if (cost < choice_.cost) choice_ = {cost, option, devices};
}

bool Replan::insert(int32_t t) {
  choice_.cost = kInfinity;
  for (size_t i = 0; i < options_[t].size(); ++i) {
    const int32_t option = options_[t][i];
    if (tight_ && small_[t] && dearness_[t][i] > kTight && option != moves_.old_option[t] &&
        !std::isinf(choice_.cost)) {
      continue;
    }
    consider(t, option, byte_price_);
  }
  if (std::isinf(choice_.cost)) return false;
  put_in(t, choice_.option, choice_.devices);
  return true;
}

}  // namespace recsys_opt::planner
