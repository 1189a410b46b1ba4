#include "serving/policies.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace recsys_opt::serving {

Decision Binding::start(Core& core, int32_t worker) {
  Decision decision;
  double earliest = std::numeric_limits<double>::infinity();
  for (const int32_t path : core.fleet().devices()[core.fleet().device_of(worker)].paths) {
    const Lane& lane = core.lane(path);
    if (!lane.empty() && lane.head().deadline < earliest) {
      earliest = lane.head().deadline;
      decision.path = decision.lane = path;
      decision.samples = lane.head().count;
    }
  }
  return decision;
}

double Binding::finish_time(const Core& core, int32_t path, int32_t size) {
  const int32_t d = core.fleet().paths()[path].device;
  const Device& device = core.fleet().devices()[d];
  const int32_t available = core.available(d);
  if (available == 0) return std::numeric_limits<double>::infinity();
  double running = 0;
  for (int32_t w = device.first_worker; w < device.first_worker + device.workers; ++w) {
    running += core.free_at(w) - core.now();
  }
  return core.now() + (running + core.backlog(d)) / available + core.expected(path, size);
}

void MPRec::begin(const Core& core) {
  const std::vector<Path>& paths = core.fleet().paths();
  paths_.resize(paths.size());
  std::iota(paths_.begin(), paths_.end(), 0);
  std::stable_sort(paths_.begin(), paths_.end(),
                   [&](int32_t a, int32_t b) { return paths[a].accuracy > paths[b].accuracy; });
}

int32_t MPRec::choose(const Core& core, int32_t size, double deadline) {
  const std::vector<Path>& paths = core.fleet().paths();
  int32_t first = 0;
  double first_time = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < paths_.size();) {
    int32_t best = paths_[i];
    double best_time = std::numeric_limits<double>::infinity();
    const double accuracy = paths[paths_[i]].accuracy;
    for (; i < paths_.size() && paths[paths_[i]].accuracy == accuracy; ++i) {
      const double time = finish_time(core, paths_[i], size);
      if (time < best_time) best = paths_[i], best_time = time;
    }
    if (best_time <= deadline) return best;
    if (best_time < first_time) first = best, first_time = best_time;
  }
  return first;
}

int32_t EarliestFinish::choose(const Core& core, int32_t size, double) {
  int32_t best = 0;
  double best_time = std::numeric_limits<double>::infinity();
  for (int32_t path = 0; path < static_cast<int32_t>(core.fleet().paths().size()); ++path) {
    const double time = finish_time(core, path, size);
    if (time < best_time) best = path, best_time = time;
  }
  return best;
}

void Priced::begin(const Core& core) {
  least_ = 1;
  double most = 0;
  for (const Path& path : core.fleet().paths()) {
    least_ = std::min(least_, path.accuracy);
    most = std::max(most, path.accuracy);
  }
  gain_ = most - least_;
}

int32_t Priced::choose(const Core& core, int32_t size, double deadline) {
  const std::vector<Path>& paths = core.fleet().paths();
  const double left = std::max(deadline - core.now(), 1e-9);
  int32_t fastest = -1;
  for (int32_t path = 0; path < static_cast<int32_t>(paths.size()); ++path) {
    if (core.available(paths[path].device) == 0) continue;
    if (fastest < 0 || core.expected(path, size) < core.expected(fastest, size)) fastest = path;
  }
  if (fastest < 0) return 0;
  double more = 0;
  for (const int32_t path : core.fleet().devices()[paths[fastest].device].paths) {
    more = std::max(more, core.expected(path, size) - core.expected(fastest, size));
  }
  int32_t best = 0;
  double best_score = -std::numeric_limits<double>::infinity();
  for (int32_t path = 0; path < static_cast<int32_t>(paths.size()); ++path) {
    const double time = core.expected(path, size);
    const double total = finish_time(core, path, size) - core.now();
    const double gain = gain_ > 0 ? (paths[path].accuracy - least_) / gain_ : 0.0;
    const double price = (total - time) / (left / 2);
    // What would be late goes to where it is the least late.
    const double score = total <= left ? gain * more - price * time : -2 * left - total;
    if (score > best_score) best = path, best_score = score;
  }
  return best;
}

}  // namespace recsys_opt::serving
