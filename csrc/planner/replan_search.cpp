// From where tables are to better places: the two ways of replan.h, and back for what gained
// nothing.
#include <algorithm>
#include <cmath>
#include <limits>

#include "planner/anneal.h"
#include "planner/replan.h"

namespace recsys_opt::planner {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Shares of the tries with no price per byte, and with tables that have moved taken out.
constexpr double kFree = 0.3, kMovedOut = 0.3;
constexpr int kLookedAt = 48;  // tables at each step of a path

}  // namespace

bool Replan::start() {
  limit_ = kInfinity;
  reach_ = bound_;
  byte_price_ = problem_.devices.count() / model_bytes_;
  std::vector<int32_t> others;
  for (size_t t = 0; t < now_.option.size(); ++t) {
    if (moves_.old_option[t] >= 0) {
      put_in(static_cast<int32_t>(t), moves_.old_option[t], moves_.old_devices[t]);
    } else {
      others.push_back(static_cast<int32_t>(t));
    }
  }
  std::stable_sort(others.begin(), others.end(),
                   [&](int32_t a, int32_t b) { return weight_[a] > weight_[b]; });
  open_ = all_;
  for (int32_t t : others) {
    if (!insert(t)) return false;
  }
  keep_if_best();
  start_ = best_;
  return std::isfinite(best_.seconds);
}

void Replan::keep_if_best() {
  const double seconds = loads_[slowest_device(loads_)].seconds();
  const bool fewer = seconds == best_.seconds && now_.moved_bytes < best_.moved_bytes;
  if ((seconds >= best_.seconds && !fewer) || now_.moved_bytes > limit_) return;
  best_ = now_;
  best_.seconds = seconds;
}

void Replan::settle(const Placement& placement) {
  const Placement to = placement;
  for (size_t t = 0; t < to.option.size(); ++t) {
    if (now_.option[t] >= 0) take_out(static_cast<int32_t>(t));
  }
  now_.moved_bytes = 0;
  for (size_t t = 0; t < to.option.size(); ++t) {
    put_in(static_cast<int32_t>(t), to.option[t], to.devices[t]);
  }
}

void Replan::choose_tables(std::vector<int32_t>* out) {
  out->clear();
  const uint64_t tables = now_.option.size(), devices = loads_.size();
  const auto add = [&](int32_t t) {
    if (std::find(out->begin(), out->end(), t) == out->end()) out->push_back(t);
  };
  const int32_t chosen = 1 + static_cast<int32_t>(random_.next() % 4);
  const double share = random_.uniform();
  for (int32_t i = 0; i < chosen; ++i) {
    const int32_t d =
        i == 0 ? slowest_device(loads_) : static_cast<int32_t>(random_.next() % devices);
    for (int32_t t : on_[d]) {
      if (random_.uniform() < share) add(t);
    }
  }
  if (random_.uniform() < kMovedOut) {  // what moved may have been worth less than what did not
    for (int i = 0; i < 8; ++i) {
      const auto t = static_cast<int32_t>(random_.next() % tables);
      if (!stays(t)) add(t);
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

void Replan::improve(double most_bytes, int64_t trials) {
  limit_ = most_bytes;
  settle(best_);
  const int64_t start = trials_;
  const uint64_t tables = now_.option.size(), devices = loads_.size();
  std::vector<int32_t> out;
  std::vector<std::pair<int32_t, std::vector<int32_t>>> before;
  std::vector<std::pair<double, int32_t>> order;
  reference_ = best_.seconds;
  double current = height();
  while (trials_ - start < trials && best_.seconds > bound_) {
    ++trials_;
    const double done = static_cast<double>(trials_ - start) / static_cast<double>(trials);
    choose_tables(&out);
    if (out.empty()) continue;
    reach_ = bound_ + (best_.seconds - bound_) * random_.uniform();
    byte_price_ = random_.uniform() < kFree ? 0.0
                                            : std::pow(10.0, 3 * random_.uniform() - 2) *
                                                  static_cast<double>(devices) / model_bytes_;
    const double kind = random_.uniform();
    noise_ = kind < 0.4 ? 0.0 : kind < 0.7 ? 0.1 : 0.5;
    tight_ = random_.uniform() < kTightShare;
    before.clear();
    order.clear();
    open_.clear();
    for (int32_t t : out) {
      before.push_back({now_.option[t], now_.devices[t]});
      order.push_back({-weight_[t] * (0.6 + 0.8 * random_.uniform()), t});
      for (const std::vector<int32_t>& on : {now_.devices[t], moves_.old_devices[t]}) {
        if (on.size() < devices) open_.insert(open_.end(), on.begin(), on.end());
      }
      take_out(t);
    }
    for (int i = 0; i < kOthers; ++i)
      open_.push_back(static_cast<int32_t>(random_.next() % devices));
    std::sort(open_.begin(), open_.end());
    open_.erase(std::unique(open_.begin(), open_.end()), open_.end());
    std::sort(order.begin(), order.end());
    bool whole = true;
    for (const auto& [weight, t] : order) {
      if (!insert(t)) {
        whole = false;
        break;
      }
    }
    const double after = whole ? height() : kInfinity;
    if (after <=
        current - temperature(tables, done) * std::log(std::max(random_.uniform(), 1e-300))) {
      current = after;
      keep_if_best();
      continue;
    }
    for (int32_t t : out) {
      if (now_.option[t] >= 0) take_out(t);
    }
    for (size_t i = 0; i < out.size(); ++i) put_in(out[i], before[i].first, before[i].second);
  }
  put_back();
}

// Returns tables whose move has gained nothing, the largest first.
void Replan::put_back() {
  settle(best_);
  std::vector<std::pair<double, int32_t>> moved;
  for (size_t t = 0; t < now_.option.size(); ++t) {
    if (moves_.old_option[t] < 0) continue;
    const double bytes = moved_by(now_.option[t], now_.devices[t]);
    if (bytes > 0) moved.push_back({-bytes, static_cast<int32_t>(t)});
  }
  std::sort(moved.begin(), moved.end());
  for (const auto& [bytes, t] : moved) {
    const int32_t option = now_.option[t];
    const std::vector<int32_t> devices = now_.devices[t];
    take_out(t);
    put_in(t, moves_.old_option[t], moves_.old_devices[t]);
    if (loads_[slowest_device(loads_)].seconds() <= best_.seconds * (1 + 1e-9)) {
      const double seconds = std::max(loads_[slowest_device(loads_)].seconds(), best_.seconds);
      best_ = now_;
      best_.seconds = seconds;
    } else {
      take_out(t);
      put_in(t, option, devices);
    }
  }
}

void Replan::follow(const Placement& guide, double most_bytes) {
  limit_ = most_bytes;
  reference_ = start_.seconds;
  settle(guide);
  keep_if_best();
  settle(start_);
  std::vector<int32_t> other;
  for (size_t t = 0; t < now_.option.size(); ++t) {
    if (now_.option[t] != guide.option[t] || now_.devices[t] != guide.devices[t]) {
      other.push_back(static_cast<int32_t>(t));
    }
  }
  while (!other.empty()) {
    const std::vector<int32_t>& slow = on_[slowest_device(loads_)];
    std::vector<int32_t> looked_at;
    for (int32_t t : other) {
      if (std::find(slow.begin(), slow.end(), t) != slow.end()) looked_at.push_back(t);
    }
    for (int i = 0; i < kLookedAt && looked_at.size() < kLookedAt; ++i) {
      looked_at.push_back(other[random_.next() % other.size()]);
    }
    double least = kInfinity;
    int32_t best = -1;
    for (int32_t t : looked_at) {
      const int32_t option = now_.option[t];
      const std::vector<int32_t> devices = now_.devices[t];
      take_out(t);
      put_in(t, guide.option[t], guide.devices[t]);
      const double after = now_.moved_bytes <= limit_ ? height() : kInfinity;
      if (after < least) {
        least = after;
        best = t;
      }
      take_out(t);
      put_in(t, option, devices);
    }
    if (best < 0) return;  // no room, or no bytes left
    take_out(best);
    put_in(best, guide.option[best], guide.devices[best]);
    other.erase(std::find(other.begin(), other.end(), best));
    keep_if_best();
  }
}

}  // namespace recsys_opt::planner
