// From options to a plan: which option each table takes, and which devices its pieces are on.
//
// Tables are placed one after the other, the heaviest first, each in the way that adds the least to
// the devices' times (its pieces go to the devices where they cost least, with the split of every
// device chosen anew). Then part of a few devices' tables is taken out and placed again, in another
// order and by slightly other prices, and the result kept where the slowest devices get faster
// (ruin and recreate, Schrimpf et al. 2000). Or one table is cut in another, most often a cheaper
// way. What two devices hold is then parted anew between them, in the best of all ways (to first
// order), for a few pairs of the devices that have changed: with hundreds of devices it is this
// that evens them out.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "planner/bound.h"
#include "planner/load.h"
#include "planner/problem.h"
#include "random.h"

namespace recsys_opt::planner {

struct Assignment {
  std::vector<int32_t> option;                // [tables]
  std::vector<std::vector<int32_t>> devices;  // [tables] of each piece
  double seconds = 0;                         // of the slowest device
  int32_t unplaced = -1;  // a table that no device had room for; -1: all are placed
};

struct Effort {
  int64_t trials;                // times that a device's time is asked for, at most
  double good_enough;            // stop at this time
  std::function<void()> poll{};  // called now and then: it may throw to end the search
};

class Search {
 public:
  Search(const Problem& problem, const LeastSeconds& least, const Bound& bound, uint64_t seed);

  // Places all tables anew. `reach`: the time that devices should end within.
  // `priced`: by weights (seconds + price * fast bytes), as if every device's fast tier were full
  // already; else by seconds, where the first tables take the fast tier as if they were alone.
  void construct(double reach, bool priced);
  void improve(const Effort& effort);
  const Assignment& best() const { return best_; }

 private:
  struct Choice {
    double cost;
    int32_t option;
    std::vector<int32_t> devices;
  };
  struct Spot {
    int32_t table, piece;
  };
  // A change of what two devices hold: the first gives `from`, takes `to` (null: nothing).
  struct Flip {
    int32_t table, from_piece, to_piece;
    const Profile *from, *to;
    double weight(int32_t level) const {
      return (to ? to->weight[level] : 0.0) - (from ? from->weight[level] : 0.0);
    }
  };

  bool insert(int32_t table);
  void consider(int32_t table, int32_t option, double noise);
  void take_out(int32_t table);
  void put_in(int32_t table, int32_t option, const std::vector<int32_t>& devices);
  void leave(int32_t device, Spot spot);
  void enter(int32_t device, Spot spot);
  bool place_all(const std::vector<int32_t>& order);
  double cost_on(int32_t device, const Profile& piece, bool everywhere);
  void choose_tables(std::vector<int32_t>* out);
  void ruin();
  bool recreate();
  void list_dear();
  bool cut_otherwise();
  void even_out(int times);
  void collect_flips(int32_t a, int32_t b);
  bool repartition(int32_t a, int32_t b);
  bool replicated(int32_t option) const {
    const Option& o = problem_.options[option];
    return o.place == Place::kEverywhere && o.parts == 1;
  }
  void keep_if_best();
  void resume();
  void begin();
  void touch(int32_t device);
  void touch_table(int32_t table);
  void revert();

  const Problem& problem_;
  double price_;  // of a byte of the fast tier, expected
  Profiles profiles_;
  int32_t price_level_;                        // of the grid: the expected price
  std::vector<std::vector<int32_t>> options_;  // [tables] worth trying, the cheapest first
  std::vector<std::vector<double>> dearness_;  // [tables] weight of each to that of the cheapest
  std::vector<char> small_;                    // [tables]
  bool tight_ = false;
  std::vector<double> weight_;         // [tables] of the cheapest option
  std::vector<Load> loads_;            // [devices]
  std::vector<std::vector<Spot>> on_;  // [devices] all but replicas
  std::vector<int32_t> all_, open_;    // devices: all; those that tables may be put on now
  Assignment now_, best_;
  Choice choice_;
  std::vector<std::pair<double, int32_t>> costs_;
  bool priced_ = false;
  double reach_ = 0, noise_ = 0, reference_ = 0;
  int64_t trials_ = 0;
  Random random_;

  // What a step has changed, as it was.
  struct SavedDevice {
    int32_t device;
    Load load;
    std::vector<Spot> on;
  };
  struct SavedTable {
    int32_t table, option;
    std::vector<int32_t> devices;
  };
  int64_t step_ = 0;
  std::vector<int64_t> device_step_, table_step_;
  std::vector<SavedDevice> saved_devices_;
  std::vector<SavedTable> saved_tables_;
  size_t saved_device_count_ = 0, saved_table_count_ = 0;

  std::vector<int32_t> out_;
  std::vector<std::pair<double, int32_t>> order_;
  std::vector<Flip> flips_;
  std::vector<std::pair<double, int32_t>> dear_;
  int64_t cuts_ = 0;
};

}  // namespace recsys_opt::planner
