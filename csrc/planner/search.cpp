#include "planner/search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "planner/anneal.h"

namespace recsys_opt::planner {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kPollEvery = 4096;  // steps
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
  const double seconds = loads_[slowest_device(loads_)].seconds();
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
    for (const Spot& spot : on_[i == 0 ? slowest_device(loads_) : any]) {
      if (random_.uniform() < share) add(spot.table);
    }
  }
  if (random_.uniform() < 0.3) {
    for (uint64_t i = random_.next() % 3; i-- > 0;)
      add(static_cast<int32_t>(random_.next() % tables));
  }
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
  double current = height(loads_, reference_);
  for (int64_t step = 0; trials_ - start < effort.trials && best_.seconds > effort.good_enough;
       ++step) {
    if (effort.poll && step % kPollEvery == 0) effort.poll();
    ++trials_;
    const double done = static_cast<double>(trials_ - start) / static_cast<double>(effort.trials);
    begin();
    reach_ = effort.good_enough + (best_.seconds - effort.good_enough) * random_.uniform();
    const double kind = devices > 1 ? random_.uniform() : 1.0;
    if (kind < kEven) {
      if (!repartition(slowest_device(loads_), static_cast<int32_t>(random_.next() % devices)))
        continue;
      current = height(loads_, reference_);
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
    const double after = whole ? height(loads_, reference_) : kInfinity;
    if (after <=
        current - temperature(tables, done) * std::log(std::max(random_.uniform(), 1e-300))) {
      current = after;
      keep_if_best();
    } else {
      revert();
    }
  }
}

}  // namespace recsys_opt::planner
