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
constexpr double kTightShare = 0.9, kSmall = 0.4;
// Devices that a table may move to besides those that tables were taken from.
constexpr int kOthers = 4;
constexpr double kSteep = 60;         // see penalty
constexpr int64_t kPollEvery = 4096;  // steps
// Temperatures of the acceptance, as shares of the slowest device's time.
constexpr uint64_t kFew = 64;  // tables
constexpr double kHotFew = 0.15, kHot = 1e-3, kCold = 1e-5;
// Shares of the steps that even out two devices, and that cut a table in another way; and how often
// devices are evened out after a step of the other kinds, at most.
constexpr double kEven = 0.2, kOtherwise = 0.6;
constexpr uint64_t kEvenTimes = 16;

}  // namespace

Search::Search(const Problem& p, const LeastSeconds& least, const Bound& bound, uint64_t seed)
    : problem_(p),
      price_(bound.price),
      profiles_(p, price_grid(p, bound.price, bound.seconds)),
      random_(seed) {
  const size_t tables = p.tables.size();
  PricedClasses at(p);
  at.set(price_);
  const auto weight_of = [&](int32_t o) {
    return at.weight(least.capped(at.split(p.options[o]), o));
  };
  const auto& prices = profiles_.prices();
  price_level_ =
      static_cast<int32_t>(std::min_element(prices.begin(), prices.end(),
                                            [&](double a, double b) {
                                              return std::abs(a - price_) < std::abs(b - price_);
                                            }) -
                           prices.begin());
  options_.resize(tables);
  dearness_.resize(tables);
  small_.resize(tables);
  weight_.resize(tables);
  for (size_t t = 0; t < tables; ++t) {
    std::vector<std::pair<double, int32_t>> found;
    for (int32_t o = p.first_option[t]; o < p.first_option[t + 1]; ++o) {
      if (std::isinf(least.average[o])) continue;
      if (!p.pinned[t].empty() && p.options[o].pieces > static_cast<int32_t>(p.pinned[t].size()))
        continue;
      found.push_back({weight_of(o) * p.options[o].pieces, o});
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
    const double capacity = bound.seconds + price_ * p.devices.fast_bytes[0];
    small_[t] = !found.empty() && weight_of(found.front().second) < kSmall * capacity;
    weight_[t] = found.empty() ? 0 : found.front().first;
  }
  all_.resize(p.devices.count());
  std::iota(all_.begin(), all_.end(), 0);
  now_.option.assign(tables, -1);
  now_.devices.resize(tables);
  device_step_.assign(all_.size(), -1);
  table_step_.assign(tables, -1);
  best_.seconds = kInfinity;
}

// What a load costs: its time, and more the nearer it comes to the time that is reached for. The
// slope says how dear a second is on the device: 1 where it is idle, 2 at the time reached for.
double Search::penalty(double seconds) const {
  if (std::isinf(seconds)) return kInfinity;
  const double x = seconds / reach_;
  return x + std::exp(kSteep * (x - 1)) / kSteep;
}

double Search::power(double seconds) const {
  double x = seconds / reference_;
  for (int doubling = 0; doubling < 5; ++doubling) x *= x;  // the 32nd power
  return x;
}

// Nearly the slowest device's time, as a share of the best so far; others that are slow count a
// little.
double Search::height() const {
  double sum = 0;
  for (const Load& load : loads_) sum += power(load.seconds());
  return std::pow(sum, 1.0 / 32);
}

int32_t Search::slowest_device() const {
  size_t most = 0;
  for (size_t d = 1; d < loads_.size(); ++d) {
    if (loads_[d].seconds() > loads_[most].seconds()) most = d;
  }
  return static_cast<int32_t>(most);
}

// ---- what a step changes, and how it is taken back

void Search::begin() {
  ++step_;
  saved_device_count_ = saved_table_count_ = 0;
}

void Search::touch(int32_t d) {
  if (device_step_[d] == step_) return;
  device_step_[d] = step_;
  if (saved_device_count_ == saved_devices_.size()) {
    saved_devices_.push_back({d, loads_[d], on_[d]});
  } else {
    SavedDevice& saved = saved_devices_[saved_device_count_];
    saved.device = d;
    saved.load = loads_[d];
    saved.on = on_[d];
  }
  ++saved_device_count_;
}

void Search::touch_table(int32_t t) {
  if (table_step_[t] == step_) return;
  table_step_[t] = step_;
  if (saved_table_count_ == saved_tables_.size()) {
    saved_tables_.push_back({t, now_.option[t], now_.devices[t]});
  } else {
    SavedTable& saved = saved_tables_[saved_table_count_];
    saved.table = t;
    saved.option = now_.option[t];
    saved.devices = now_.devices[t];
  }
  ++saved_table_count_;
}

void Search::revert() {
  for (size_t i = 0; i < saved_device_count_; ++i) {
    SavedDevice& saved = saved_devices_[i];
    std::swap(loads_[saved.device], saved.load);
    std::swap(on_[saved.device], saved.on);
  }
  for (size_t i = 0; i < saved_table_count_; ++i) {
    SavedTable& saved = saved_tables_[i];
    now_.option[saved.table] = saved.option;
    std::swap(now_.devices[saved.table], saved.devices);
  }
}

void Search::leave(int32_t d, Spot spot) {
  touch(d);
  touch_table(spot.table);
  loads_[d].remove(profiles_.of(now_.option[spot.table], spot.piece));
  if (replicated(now_.option[spot.table])) return;
  auto& on = on_[d];
  on.erase(
      std::find_if(on.begin(), on.end(), [&](const Spot& s) { return s.table == spot.table; }));
}

void Search::enter(int32_t d, Spot spot) {
  touch(d);
  touch_table(spot.table);
  loads_[d].add(profiles_.of(now_.option[spot.table], spot.piece));
  if (!replicated(now_.option[spot.table])) on_[d].push_back(spot);
  now_.devices[spot.table][spot.piece] = d;
}

void Search::take_out(int32_t t) {
  touch_table(t);
  for (size_t i = 0; i < now_.devices[t].size(); ++i)
    leave(now_.devices[t][i], {t, static_cast<int32_t>(i)});
  now_.option[t] = -1;
  now_.devices[t].clear();
}

void Search::put_in(int32_t t, int32_t option, const std::vector<int32_t>& devices) {
  touch_table(t);
  now_.option[t] = option;
  now_.devices[t].resize(devices.size());
  for (size_t i = 0; i < devices.size(); ++i) enter(devices[i], {t, static_cast<int32_t>(i)});
}

void Search::keep_if_best() {
  const double seconds = loads_[slowest_device()].seconds();
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

// ---- improving

void Search::choose_tables(std::vector<int32_t>* out) {
  out->clear();
  const auto devices = static_cast<uint64_t>(problem_.devices.count());
  const auto tables = problem_.tables.size();
  const auto add = [&](int32_t t) {
    if (std::find(out->begin(), out->end(), t) == out->end()) out->push_back(t);
  };
  // The slowest device and some others, a part of the tables of each; at times some tables from
  // anywhere.
  const int32_t chosen = 1 + static_cast<int32_t>(random_.next() % 4);
  const double share = random_.uniform();
  for (int32_t i = 0; i < chosen; ++i) {
    const auto any = static_cast<int32_t>(random_.next() % devices);
    for (const Spot& spot : on_[i == 0 ? slowest_device() : any]) {
      if (random_.uniform() < share) add(spot.table);
    }
  }
  if (random_.uniform() < 0.3) {
    for (uint64_t i = random_.next() % 3; i-- > 0;)
      add(static_cast<int32_t>(random_.next() % tables));
  }
  // Many at once seldom come back better.
  for (size_t i = 0; i < out->size(); ++i) {
    std::swap((*out)[i], (*out)[i + random_.next() % (out->size() - i)]);
  }
  if (out->size() > kMostOut) out->resize(kMostOut);
}

// Takes tables out.
void Search::ruin() {
  const auto devices = static_cast<uint64_t>(problem_.devices.count());
  choose_tables(&out_);
  order_.clear();
  open_.clear();
  for (int32_t t : out_) {
    order_.push_back({-weight_[t] * (0.6 + 0.8 * random_.uniform()), t});
    if (now_.devices[t].size() < devices)
      open_.insert(open_.end(), now_.devices[t].begin(), now_.devices[t].end());
    take_out(t);
  }
  for (int i = 0; i < kOthers; ++i) open_.push_back(static_cast<int32_t>(random_.next() % devices));
  std::sort(open_.begin(), open_.end());
  open_.erase(std::unique(open_.begin(), open_.end()), open_.end());
  std::sort(order_.begin(), order_.end());
}

// Puts them in again.
bool Search::recreate() {
  tight_ = random_.uniform() < kTightShare;
  const double kind = random_.uniform();
  noise_ = kind < 0.4 ? 0.0 : kind < 0.7 ? 0.1 : 0.5;
  for (const auto& [weight, t] : order_) {
    if (!insert(t)) return false;
  }
  return true;
}

void Search::improve(const Effort& effort) {
  if (std::isinf(best_.seconds)) return;
  begin();
  resume();
  const int64_t start = trials_;
  const auto devices = static_cast<uint64_t>(problem_.devices.count());
  const uint64_t tables = problem_.tables.size();
  reference_ = best_.seconds;
  double current = height();
  for (int64_t step = 0; trials_ - start < effort.trials && best_.seconds > effort.good_enough;
       ++step) {
    if (effort.poll && step % kPollEvery == 0) effort.poll();
    ++trials_;
    const double done = static_cast<double>(trials_ - start) / static_cast<double>(effort.trials);
    const double hot = tables <= kFew ? kHotFew : kHot;
    const double temperature = hot * std::pow(kCold / hot, done);
    begin();
    reach_ = effort.good_enough + (best_.seconds - effort.good_enough) * random_.uniform();
    const double kind = devices > 1 ? random_.uniform() : 1.0;
    if (kind < kEven) {
      if (!repartition(slowest_device(), static_cast<int32_t>(random_.next() % devices))) continue;
      current = height();
      keep_if_best();
      continue;
    }
    bool whole;
    if (kind < kEven + kOtherwise) {
      whole = cut_otherwise();
    } else {
      ruin();
      whole = recreate();
    }
    if (whole && saved_device_count_ > 1) even_out(static_cast<int>(random_.next() % kEvenTimes));
    const double after = whole ? height() : kInfinity;
    if (after <= current - temperature * std::log(std::max(random_.uniform(), 1e-300))) {
      current = after;
      keep_if_best();
    } else {
      revert();
    }
  }
}

}  // namespace recsys_opt::planner
