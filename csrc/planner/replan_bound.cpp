#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "planner/replan.h"

namespace recsys_opt::planner {
namespace {

// Of the price that the free bound has.
constexpr std::array<double, 6> kPrices{0.0, 0.3, 0.6, 1.0, 1.7, 3.0};
constexpr double kManyStripes = 8;

// One way to get rid of a part of a piece: so many bytes leave, so much weight with them.
struct Step {
  double bytes, weight;
};

// The steps of the lower convex hull from (0, the piece's weight) to its end, the most weight per
// byte first. `ways`: (bytes that leave, weight that remains).
void add_steps(double weight, std::vector<std::pair<double, double>>* ways,
               std::vector<Step>* steps) {
  double bytes = 0;
  for (;;) {
    double steepest = 0;
    const std::pair<double, double>* best = nullptr;
    for (const auto& way : *ways) {
      const double saved = weight - way.second, more = way.first - bytes;
      if (saved <= 0 || more < 0) continue;
      const double slope = more > 0 ? saved / more : std::numeric_limits<double>::infinity();
      if (!best || slope > steepest || (slope == steepest && way.second < best->second)) {
        steepest = slope;
        best = &way;
      }
    }
    if (!best) return;
    steps->push_back({best->first - bytes, weight - best->second});
    bytes = best->first;
    weight = best->second;
  }
}

// What a device holds now, at one price.
struct Content {
  double weight = 0;
  std::vector<Step> steps;

  // The least bytes that leave if what remains is to weigh at most `most`.
  double least_bytes(double most) const {
    double over = weight - most, bytes = 0;
    for (const Step& s : steps) {
      if (over <= 0) break;
      bytes += s.bytes * std::min(1.0, over / s.weight);
      over -= s.weight;
    }
    return over > 1e-9 * weight ? std::numeric_limits<double>::infinity() : bytes;
  }
};

}  // namespace

Bound free_bound(const Problem& p, const Moves& moves) {
  LeastSeconds least(p);
  for (size_t i = 0; i < p.options.size(); ++i) {
    const Option& o = p.options[i];
    if (moves.dealt[i].empty() || std::isinf(least.hottest[i])) continue;
    least.hottest[i] = 0;
    for (size_t s = 0; s < static_cast<size_t>(o.parts); ++s) {
      const Curve rows = piece_rows(p, moves, static_cast<int32_t>(i), s);
      const double bytes = std::min(rows.rows.back() * o.bytes_per_row, least.fast_bytes);
      least.hottest[i] = std::max(least.hottest[i], seconds_at_bytes(rows, o, bytes));
    }
  }
  return pooled_bound(p, least);
}

double limited_bound(const Problem& p, const Moves& moves, double price, double most_bytes,
                     double free_bound, double known) {
  const auto devices = static_cast<size_t>(p.devices.count());
  std::vector<PricedClasses> at(kPrices.size(), PricedClasses(p));
  for (size_t k = 0; k < kPrices.size(); ++k) at[k].set(kPrices[k] * price);
  std::vector<std::array<Content, kPrices.size()>> held(devices);
  for (size_t t = 0; t < p.tables.size(); ++t) {
    const int32_t old = moves.old_option[t];
    if (old < 0) continue;  // it may go wherever it likes
    const std::vector<int32_t>& on = moves.old_devices[t];
    const bool replica = p.options[old].pieces > 1 && p.options[old].parts <= 1 &&
                         p.options[old].place == Place::kEverywhere;
    // Of every old piece and price: ways to have less of it.
    std::vector<std::array<std::vector<std::pair<double, double>>, kPrices.size()>> ways(on.size());
    std::vector<double> size(on.size(), 0.0);
    std::vector<std::array<double, kPrices.size()>> weight(on.size());
    for (size_t j = 0; j < on.size(); ++j) size[j] = moves.kept[old][j * on.size() + j];
    for (int32_t o = p.first_option[t]; o < p.first_option[t + 1]; ++o) {
      const Option& option = p.options[o];
      const auto pieces = static_cast<size_t>(option.pieces);
      const bool copies = !replica && moves.bytes[o] > moves.bytes[old] * (1 + 1e-9);
      // Of many stripes of ranks the last is the lightest; pieces of columns are alike.
      const bool each =
          option.parts > 1 && (!moves.dealt[o].empty() || option.parts <= kManyStripes);
      const auto stripes = static_cast<size_t>(option.parts);
      Curve rows = piece_rows(p, moves, o, each ? 0 : stripes - 1);
      for (size_t i = 0; i < pieces; ++i) {
        if (each && i > 0) rows = piece_rows(p, moves, o, i);
        std::array<double, kPrices.size()> w;
        for (size_t k = 0; k < kPrices.size(); ++k) {
          const Split s = at[k].split(option, rows);
          w[k] = s.seconds + at[k].price() * s.fast_bytes;
        }
        for (size_t j = 0; j < on.size(); ++j) {
          const double kept = moves.kept[o][i * on.size() + j];
          if (kept <= 0) continue;
          if (o == old && i == j) weight[j] = w;
          double leaves = replica ? 0.0 : std::max(size[j] - kept, 0.0);
          if (copies) {
            leaves = (moves.bytes[o] - moves.bytes[old]) / static_cast<double>(on.size());
          }
          for (size_t k = 0; k < kPrices.size(); ++k) ways[j][k].push_back({leaves, w[k]});
        }
      }
    }
    for (size_t j = 0; j < on.size(); ++j) {
      for (size_t k = 0; k < kPrices.size(); ++k) {
        Content& content = held[on[j]][k];
        content.weight += weight[j][k];
        ways[j][k].push_back({replica ? 0.0 : size[j], 0.0});
        add_steps(weight[j][k], &ways[j][k], &content.steps);
      }
    }
  }
  for (auto& of_device : held) {
    for (Content& content : of_device) {
      std::stable_sort(
          content.steps.begin(), content.steps.end(),
          [](const Step& a, const Step& b) { return a.weight * b.bytes > b.weight * a.bytes; });
    }
  }
  const auto possible = [&](double seconds) {
    double sum = 0;
    for (size_t d = 0; d < devices; ++d) {
      double most = 0;
      for (size_t k = 0; k < kPrices.size(); ++k) {
        most = std::max(most,
                        held[d][k].least_bytes(seconds + at[k].price() * p.devices.fast_bytes[d]));
      }
      sum += most;
    }
    return sum <= most_bytes * (1 + 1e-9) + 1;
  };
  double low = free_bound, high = known;
  if (!(low < high) || possible(low)) return std::min(low, high);
  for (int step = 0; step < 40; ++step) {
    const double middle = 0.5 * (low + high);
    (possible(middle) ? high : low) = middle;
  }
  return low;
}

}  // namespace recsys_opt::planner
