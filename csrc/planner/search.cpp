#include "planner/search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace recsys_opt::planner {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Options this much dearer than a table's cheapest, at the price of the bound, are not tried.
constexpr double kWorthTrying = 4.0;
constexpr size_t kMostOptions = 12;
constexpr size_t kMostOut = 24;
// For this share of the trials, small tables may be cut only in ways that cost little more than the
// cheapest.
constexpr double kTight = 1.02, kTightShare = 0.9, kSmall = 0.4;
constexpr double kTypical = 1.4;  // see cost_on
constexpr int kOthers =
    4;  // devices that a table may move to besides those that tables were taken from
constexpr double kSteep = 60;  // see penalty
// Temperatures of the acceptance, as shares of the slowest device's time.
constexpr uint64_t kFew = 64;  // tables
constexpr double kHotFew = 0.15, kHot = 1e-3, kCold = 1e-5;

}  // namespace

Search::Search(const Problem& p, const std::vector<double>& least, double price, double bound,
               uint64_t seed)
    : problem_(p),
      profiles_(p, price_grid(p, price)),
      price_(price),
      at_price_(p),
      state_(seed * 0x9E3779B97F4A7C15ull + 1) {
  const size_t tables = p.tables.size();
  at_price_.set(price);
  options_.resize(tables);
  dearness_.resize(tables);
  small_.resize(tables);
  weight_.resize(tables);
  for (size_t t = 0; t < tables; ++t) {
    std::vector<std::pair<double, int32_t>> found;
    for (int32_t o = p.first_option[t]; o < p.first_option[t + 1]; ++o) {
      if (std::isinf(least[o])) continue;
      if (!p.pinned[t].empty() && p.options[o].pieces > static_cast<int32_t>(p.pinned[t].size()))
        continue;
      found.push_back({at_price_.weight(p.options[o]) * p.options[o].pieces, o});
    }
    std::sort(found.begin(), found.end());
    // Among them one that need not be fast: there may be no room for another that must.
    bool split = false;
    for (const auto& [weight, o] : found) {
      const bool first_split = !split && p.options[o].tiers != Tiers::kFast;
      if (first_split ||
          (options_[t].size() < kMostOptions && weight <= kWorthTrying * found.front().first)) {
        options_[t].push_back(o);
        dearness_[t].push_back(weight / found.front().first);
        split = split || first_split;
      }
    }
    const double capacity = (bound + price * p.devices.fast_bytes[0]);
    small_[t] =
        !found.empty() && at_price_.weight(p.options[found.front().second]) < kSmall * capacity;
    weight_[t] = found.empty() ? 0 : found.front().first;
  }
  all_.resize(p.devices.count());
  std::iota(all_.begin(), all_.end(), 0);
  now_.option.assign(tables, -1);
  now_.devices.resize(tables);
  best_.seconds = kInfinity;
}

uint64_t Search::next() {  // splitmix64
  uint64_t z = state_ += 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// What a load costs: its time, and more the nearer it comes to the time that is reached for. The
// slope says how dear a second is on the device: 1 where it is idle, 2 at the time reached for.
double Search::penalty(double seconds) const {
  if (std::isinf(seconds)) return kInfinity;
  const double x = seconds / reach_;
  return x + std::exp(kSteep * (x - 1)) / kSteep;
}

// Nearly the slowest device's time, as a share of the best so far; others that are slow count a
// little.
double Search::height() const {
  double sum = 0;
  for (const Load& load : loads_) {
    double x = load.seconds() / reference_;
    for (int doubling = 0; doubling < 5; ++doubling) x *= x;  // the 32nd power
    sum += x;
  }
  return std::pow(sum, 1.0 / 32);
}

double Search::slowest() const {
  double most = 0;
  for (const Load& load : loads_) most = std::max(most, load.seconds());
  return most;
}

void Search::take_out(int32_t t) {
  const Profile& piece = profiles_.of(now_.option[t]);
  for (int32_t d : now_.devices[t]) {
    loads_[d].remove(piece);
    on_[d].erase(std::find(on_[d].begin(), on_[d].end(), t));
  }
  now_.option[t] = -1;
  now_.devices[t].clear();
}

void Search::put_in(int32_t t, int32_t option, const std::vector<int32_t>& devices) {
  const Profile& piece = profiles_.of(option);
  const double weight = priced_ ? at_price_.weight(problem_.options[option]) : 0.0;
  for (int32_t d : devices) {
    loads_[d].add(piece);
    load_weight_[d] += weight;
    on_[d].push_back(t);
  }
  now_.option[t] = option;
  now_.devices[t] = devices;
}

// What a piece adds to the penalty of a device; of one that goes to every device, at the slope of a
// typical one.
double Search::cost_on(int32_t d, int32_t option, const Profile& piece) {
  ++trials_;
  const bool everywhere = problem_.options[option].place == Place::kEverywhere;
  if (!priced_) {
    const double after = loads_[d].seconds_with(&piece), before = loads_[d].seconds();
    return everywhere ? kTypical * (after - before) / reach_ : penalty(after) - penalty(before);
  }
  if (!loads_[d].has_room(piece)) return kInfinity;
  const double scale = reach_ / (reach_ + price_ * problem_.devices.fast_bytes[d]);
  const double before = load_weight_[d] * scale,
               more = at_price_.weight(problem_.options[option]) * scale;
  return everywhere ? kTypical * more / reach_ : penalty(before + more) - penalty(before);
}

// Takes the option as the choice if the best devices for its pieces make it cheaper than the choice
// so far.
void Search::consider(int32_t t, int32_t option, double noise) {
  const Option& o = problem_.options[option];
  const Profile& piece = profiles_.of(option);
  const Devices& devices = problem_.devices;
  costs_.clear();
  const std::vector<int32_t>& pinned = problem_.pinned[t];
  double cost = 0;
  if (o.place == Place::kAny) {
    const auto any = static_cast<size_t>(o.pieces) <= open_.size() && pinned.empty();
    const std::vector<int32_t>& among = !pinned.empty() ? pinned : any ? open_ : all_;
    const auto candidates = static_cast<int32_t>(among.size());
    for (int32_t d : among) costs_.push_back({cost_on(d, option, piece), d});
    if (o.pieces < candidates) {
      std::nth_element(costs_.begin(), costs_.begin() + (o.pieces - 1), costs_.end());
      costs_.resize(o.pieces);
    }
    for (const auto& [more, d] : costs_) cost += more;
  } else if (o.place == Place::kEverywhere) {
    for (int32_t d = 0; d < devices.count(); ++d) {
      costs_.push_back({0, d});
      cost += cost_on(d, option, piece);
    }
  } else {
    double least = kInfinity;
    int32_t best = -1;
    for (int32_t node = 0; node < devices.nodes; ++node) {
      const auto allowed = [&](int32_t d) {
        return pinned.empty() || std::find(pinned.begin(), pinned.end(), d) != pinned.end();
      };
      double sum = 0;
      for (int32_t i = 0; i < devices.per_node; ++i) {
        const int32_t d = node * devices.per_node + i;
        sum += allowed(d) ? cost_on(d, option, piece) : kInfinity;
      }
      if (sum < least) {
        least = sum;
        best = node;
      }
    }
    cost += least;
    for (int32_t i = 0; best >= 0 && i < devices.per_node; ++i) {
      costs_.push_back({0, best * devices.per_node + i});
    }
  }
  cost *= noise;
  if (cost < choice_.cost) {
    choice_.cost = cost;
    choice_.option = option;
    choice_.devices.clear();
    for (const auto& [more, d] : costs_) choice_.devices.push_back(d);
    std::sort(choice_.devices.begin(), choice_.devices.end());
  }
}

bool Search::insert(int32_t t) {
  choice_.cost = kInfinity;
  for (size_t i = 0; i < options_[t].size(); ++i) {
    // Dearer ways to cut it only where a piece of the cheapest fills much of a device, or has no
    // room.
    if (i > 0 && tight_ && small_[t] && !std::isinf(choice_.cost) && dearness_[t][i] > kTight)
      break;
    consider(t, options_[t][i], 1 + noise_ * (2 * uniform() - 1));
  }
  if (std::isinf(choice_.cost)) return false;
  put_in(t, choice_.option, choice_.devices);
  return true;
}

bool Search::place_all(const std::vector<int32_t>& order) {
  open_.clear();
  const Devices& devices = problem_.devices;
  loads_.clear();
  for (int32_t d = 0; d < devices.count(); ++d) {
    loads_.emplace_back(profiles_.levels(), devices.fast_bytes[d], devices.total_bytes[d]);
  }
  load_weight_.assign(devices.count(), 0.0);
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

void Search::keep_if_best() {
  const double seconds = slowest();
  if (seconds >= best_.seconds) return;
  best_ = now_;
  best_.seconds = seconds;
}

// Goes on from the best so far.
void Search::resume() {
  const Assignment from = best_;
  for (size_t t = 0; t < from.option.size(); ++t) {
    if (now_.option[t] >= 0) take_out(static_cast<int32_t>(t));
  }
  for (size_t t = 0; t < from.option.size(); ++t)
    put_in(static_cast<int32_t>(t), from.option[t], from.devices[t]);
}

void Search::choose_tables(std::vector<int32_t>* out) {
  out->clear();
  const auto devices = static_cast<uint64_t>(problem_.devices.count());
  const auto tables = problem_.tables.size();
  const auto add = [&](int32_t t) {
    if (std::find(out->begin(), out->end(), t) == out->end()) out->push_back(t);
  };
  // The slowest device and some others, a part of the tables of each; at times some tables from
  // anywhere.
  const int32_t chosen = 1 + static_cast<int32_t>(next() % 4);
  const double share = uniform();
  for (int32_t i = 0; i < chosen; ++i) {
    int32_t d = static_cast<int32_t>(next() % devices);
    if (i == 0) {
      for (uint64_t e = 0; e < devices; ++e) {
        if (loads_[e].seconds() > loads_[d].seconds()) d = static_cast<int32_t>(e);
      }
    }
    for (int32_t t : on_[d]) {
      if (uniform() < share) add(t);
    }
  }
  if (uniform() < 0.3) {
    for (uint64_t i = next() % 3; i-- > 0;) add(static_cast<int32_t>(next() % tables));
  }
  // Many at once seldom come back better.
  for (size_t i = 0; i < out->size(); ++i) {
    std::swap((*out)[i], (*out)[i + next() % (out->size() - i)]);
  }
  if (out->size() > kMostOut) out->resize(kMostOut);
}

void Search::improve(Effort effort) {
  if (std::isinf(best_.seconds)) return;
  resume();
  const int64_t start = trials_;
  const auto devices = static_cast<uint64_t>(problem_.devices.count());
  const uint64_t tables = problem_.tables.size();
  std::vector<int32_t> out;
  std::vector<std::pair<int32_t, std::vector<int32_t>>> before;
  std::vector<std::pair<double, int32_t>> order;
  reference_ = best_.seconds;
  double current = height();
  while (trials_ - start < effort.trials && best_.seconds > effort.good_enough) {
    ++trials_;
    const double done = static_cast<double>(trials_ - start) / static_cast<double>(effort.trials);
    const double hot = tables <= kFew ? kHotFew : kHot;
    const double temperature = hot * std::pow(kCold / hot, done);
    choose_tables(&out);
    if (out.empty()) continue;
    reach_ = effort.good_enough + (best_.seconds - effort.good_enough) * uniform();
    before.clear();
    order.clear();
    open_.clear();
    for (int32_t t : out) {
      before.push_back({now_.option[t], now_.devices[t]});
      order.push_back({-weight_[t] * (0.6 + 0.8 * uniform()), t});
      if (now_.devices[t].size() < devices)
        open_.insert(open_.end(), now_.devices[t].begin(), now_.devices[t].end());
      take_out(t);
    }
    for (int i = 0; i < kOthers; ++i) open_.push_back(static_cast<int32_t>(next() % devices));
    std::sort(open_.begin(), open_.end());
    open_.erase(std::unique(open_.begin(), open_.end()), open_.end());
    std::sort(order.begin(), order.end());
    tight_ = uniform() < kTightShare;
    const double kind = uniform();
    noise_ = kind < 0.4 ? 0.0 : kind < 0.7 ? 0.1 : 0.5;
    bool whole = true;
    for (const auto& [weight, t] : order) {
      if (!insert(t)) {
        whole = false;
        break;
      }
    }
    const double after = whole ? height() : kInfinity;
    if (after <= current - temperature * std::log(std::max(uniform(), 1e-300))) {
      current = after;
      keep_if_best();
      continue;
    }
    for (int32_t t : out) {
      if (now_.option[t] >= 0) take_out(t);
    }
    for (size_t i = 0; i < out.size(); ++i) put_in(out[i], before[i].first, before[i].second);
  }
}

}  // namespace recsys_opt::planner
