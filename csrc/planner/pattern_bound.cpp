#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>

#include "planner/bound.h"

namespace recsys_opt::planner {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int kBuckets = 1000;
constexpr double kStep = 1e-3;  // by which the bound is raised at a time

// What a device can hold is limited at each of these prices: total weight <= T + price * fast
// bytes.
constexpr int kPrices = 6;
using Weights = std::array<double, kPrices>;

struct Item {
  Weights weight;
  double pieces;  // of its option: a piece is worth the table's value / pieces
};

// A device's most valuable content: depth first over tables, cut off by a knapsack for each price.
class Contents {
 public:
  Contents(std::vector<std::vector<Item>> tables, Weights price, double fast_bytes, double longest)
      : tables_(std::move(tables)), price_(price), fast_(fast_bytes) {
    for (int k = 0; k < kPrices; ++k) {
      bucket_[k] = (longest + price_[k] * fast_) / kBuckets;
      best_[k].assign((tables_.size() + 1) * (kBuckets + 1), 0.0);
    }
    order_.resize(tables_.size());
    std::iota(order_.begin(), order_.end(), 0);
  }

  // No content of a device that ends within `seconds` is worth more than the result; the best that
  // was found is in `use` (the share of each table that it holds) and `found` (its worth).
  double most(const std::vector<double>& value, double seconds, std::vector<double>* use,
              double* found) {
    value_ = &value;
    std::stable_sort(order_.begin(), order_.end(),
                     [&](size_t a, size_t b) { return value[a] > value[b]; });
    for (int k = 0; k < kPrices; ++k) fill(k);
    use_ = use;
    std::fill(use->begin(), use->end(), 0.0);
    now_ = *use;
    incumbent_ = 0;
    nodes_ = 0;
    cut_short_ = 0;
    Weights room;
    for (int k = 0; k < kPrices; ++k) room[k] = seconds + price_[k] * fast_;
    descend(0, room, 0.0);
    *found = incumbent_;
    // What fill and descend neglect, a hair of each table, counts as if it were there.
    return std::max(incumbent_, cut_short_) + kHair * static_cast<double>(tables_.size() + 1);
  }

 private:
  static constexpr int64_t kNodes = 20000;
  static constexpr double kHair = 1e-9;

  // best_[k][i]: the most that tables order_[i], order_[i + 1], ... are worth, by room at price k
  // alone. Weights are rounded down and rooms up, so it is never too little.
  void fill(int k) {
    const size_t n = tables_.size();
    double* after = best_[k].data() + n * (kBuckets + 1);
    std::fill(after, after + kBuckets + 1, 0.0);
    for (size_t i = n; i-- > 0;) {
      double* here = after - (kBuckets + 1);
      std::copy(after, after + kBuckets + 1, here);
      const size_t t = order_[i];
      for (const Item& item : tables_[t]) {
        const double worth = (*value_)[t] / item.pieces;
        const double weight = std::max(item.weight[k] / bucket_[k] * (1 - 1e-12), 0.0);
        if (worth < kHair || weight > kBuckets) continue;
        const auto w = static_cast<int32_t>(weight);
        for (int32_t c = 0; c <= kBuckets - w; ++c)
          here[w + c] = std::max(here[w + c], after[c] + worth);
      }
      after = here;
    }
  }

  double limit(size_t i, const Weights& room) const {
    double least = kInfinity;
    for (int k = 0; k < kPrices; ++k) {
      const auto c = std::min(static_cast<int32_t>(room[k] / bucket_[k]) + 1, kBuckets);
      least = std::min(least, best_[k][i * (kBuckets + 1) + c]);
    }
    return least;
  }

  void descend(size_t i, const Weights& room, double worth) {
    const double most = worth + limit(i, room);
    if (most <= incumbent_ + kHair) return;
    if (i == order_.size()) {
      incumbent_ = worth;
      *use_ = now_;
      return;
    }
    if (++nodes_ > kNodes) {
      cut_short_ = std::max(cut_short_, most);
      return;
    }
    const size_t t = order_[i];
    for (const Item& item : tables_[t]) {
      Weights left;
      bool fits = true;
      for (int k = 0; k < kPrices; ++k) {
        left[k] = room[k] - item.weight[k];
        fits = fits && left[k] >= -1e-9 * room[k];
      }
      if (!fits || (*value_)[t] <= 0) continue;
      for (double& l : left) l = std::max(l, 0.0);
      now_[t] = 1.0 / item.pieces;
      descend(i + 1, left, worth + (*value_)[t] / item.pieces);
      now_[t] = 0;
    }
    descend(i + 1, room, worth);
  }

  std::vector<std::vector<Item>> tables_;
  Weights price_, bucket_;
  double fast_;
  std::array<std::vector<double>, kPrices> best_;
  std::vector<size_t> order_;
  const std::vector<double>* value_ = nullptr;
  std::vector<double>* use_ = nullptr;
  std::vector<double> now_;
  double incumbent_ = 0, cut_short_ = 0;
  int64_t nodes_ = 0;
};

// The fewest devices, fractions allowed, whose contents hold every table once: revised simplex with
// a dense inverse of the basis. It starts from contents of one table each at a price that no device
// would pay.
class Master {
 public:
  explicit Master(size_t rows)
      : rows_(rows), inverse_(rows * rows, 0.0), cost_(rows, kStart), x_(rows, 1.0) {
    for (size_t i = 0; i < rows; ++i) inverse_[i * rows + i] = 1.0;
  }

  double devices() const {
    double sum = 0;
    for (size_t i = 0; i < rows_; ++i) sum += cost_[i] * x_[i];
    return sum;
  }

  // The tables' values: cost of the basis times its inverse.
  void duals(std::vector<double>* y) const {
    std::fill(y->begin(), y->end(), 0.0);
    for (size_t i = 0; i < rows_; ++i) {
      for (size_t j = 0; j < rows_; ++j) (*y)[j] += cost_[i] * inverse_[i * rows_ + j];
    }
  }

  // A column enters the basis; false where it makes no progress.
  bool enter(const std::vector<double>& column, double cost) {
    direction_.assign(rows_, 0.0);
    for (size_t i = 0; i < rows_; ++i) {
      for (size_t j = 0; j < rows_; ++j) direction_[i] += inverse_[i * rows_ + j] * column[j];
    }
    size_t leaves = rows_;
    double least = kInfinity;
    for (size_t i = 0; i < rows_; ++i) {
      if (direction_[i] <= 1e-9) continue;
      const double ratio = x_[i] / direction_[i];
      if (ratio < least - 1e-12 ||
          (ratio < least + 1e-12 && leaves < rows_ && cost_[i] > cost_[leaves])) {
        least = ratio;
        leaves = i;
      }
    }
    if (leaves == rows_) return false;
    const double pivot = direction_[leaves];
    double* row = inverse_.data() + leaves * rows_;
    for (size_t j = 0; j < rows_; ++j) row[j] /= pivot;
    x_[leaves] = least;
    cost_[leaves] = cost;
    for (size_t i = 0; i < rows_; ++i) {
      if (i == leaves || direction_[i] == 0) continue;
      for (size_t j = 0; j < rows_; ++j) inverse_[i * rows_ + j] -= direction_[i] * row[j];
      x_[i] = std::max(x_[i] - direction_[i] * least, 0.0);
    }
    return true;
  }

 private:
  static constexpr double kStart = 1e3;
  size_t rows_;
  std::vector<double> inverse_, cost_, x_, direction_;
};

// Prices at which the tables, each in its cheapest way, would fill a device's part of the fast tier
// to these shares; and the pooled bound's.
Weights prices(const Problem& p, const LeastSeconds& least, double pooled) {
  constexpr std::array<double, kPrices - 1> kShares{0.3, 0.6, 1.0, 1.6, 1e9};
  double fast = 0;
  for (double bytes : p.devices.fast_bytes) fast += bytes;
  PricedClasses at(p);
  const auto demand = [&](double price) {
    at.set(price);
    return pooled_weight(p, at, least, std::numeric_limits<double>::max()).fast_bytes;
  };
  double high = 0;
  for (const Option& o : p.options)
    high = std::max(high, saving(o, p.tables[o.table].rate.front()));
  Weights found{};
  found[kPrices - 1] = pooled;
  for (size_t k = 0; k < kShares.size(); ++k) {
    double above = std::log(high * 2), below = above - 40;
    if (demand(std::exp(below)) <= kShares[k] * fast) continue;  // price 0
    for (int step = 0; step < 25; ++step) {
      const double middle = 0.5 * (above + below);
      (demand(std::exp(middle)) > kShares[k] * fast ? below : above) = middle;
    }
    found[k] = std::exp(above);
  }
  return found;
}

}  // namespace

Bound pattern_bound(const Problem& p, const LeastSeconds& least, const Bound& pooled, double known,
                    int rounds, const std::function<void()>& poll) {
  const double devices = p.devices.count();
  const double fast = *std::max_element(p.devices.fast_bytes.begin(), p.devices.fast_bytes.end());
  const size_t tables = p.tables.size();
  const Weights price = prices(p, least, pooled.price);
  std::vector<std::vector<Item>> items(tables);
  std::vector<PricedClasses> at(kPrices, PricedClasses(p));
  for (int k = 0; k < kPrices; ++k) at[k].set(price[k]);
  for (size_t t = 0; t < tables; ++t) {
    for (int32_t o = p.first_option[t]; o < p.first_option[t + 1]; ++o) {
      if (least.hottest[o] > known) continue;  // such a plan would be no better than the known one
      const Option& option = p.options[o];
      Item& item = items[t].emplace_back(Item{{}, static_cast<double>(option.pieces)});
      // Of stripes, the last: no device has less with a piece of it.
      const auto stripes = static_cast<int64_t>(option.parts);
      const Curve piece = stripes > 1 ? p.tables[t].stripe(stripes - 1, stripes) : p.tables[t];
      const double full = seconds_at_bytes(piece, option, fast);
      for (int k = 0; k < kPrices; ++k) {
        const Split split = at[k].split(option, piece);
        item.weight[k] = at[k].weight(split.fast_bytes > fast ? Split{fast, full} : split);
      }
    }
    if (items[t].empty()) return {known, pooled.price};
  }
  for (auto& of_table : items) {
    std::stable_sort(of_table.begin(), of_table.end(),
                     [](const Item& a, const Item& b) { return a.pieces < b.pieces; });
  }
  Contents contents(std::move(items), price, fast, known);
  Master master(tables);
  Bound best = pooled;
  std::vector<double> value(tables), use(tables);
  double reach = best.seconds * (1 + kStep);
  for (int round = 0; round < rounds && best.seconds < known; ++round) {
    if (poll) poll();
    master.duals(&value);
    const size_t idle = std::min_element(value.begin(), value.end()) - value.begin();
    if (value[idle] < -1e-9) {  // this table is held more than once: let it
      std::fill(use.begin(), use.end(), 0.0);
      use[idle] = -1;
      if (!master.enter(use, 0.0)) break;
      continue;
    }
    for (double& v : value) v = std::max(v, 0.0);
    double found = 0;
    const double most = contents.most(value, reach, &use, &found);
    const double sum = std::accumulate(value.begin(), value.end(), 0.0);
    if (most * devices <
        sum * (1 - 1e-9)) {  // no n devices that end within `reach` hold all tables
      best.seconds = std::min(reach, known);
      reach = std::min(best.seconds * (1 + kStep), known);
      continue;
    }
    if (found <= 1 + 1e-9 || master.devices() <= devices) break;
    if (!master.enter(use, 1.0)) break;
  }
  return best;
}

}  // namespace recsys_opt::planner
