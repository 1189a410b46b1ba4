// From the plan that runs to a better one, with a limit on the bytes that move between devices.
//
// Tables stay where they are until something is gained. Two ways lead on from there, and the best
// plan on either is kept: ruin and recreate as in search.h, where a move costs a price per byte
// that varies, and no plan beyond the limit is looked at; and the path to another plan (the free
// optimum), table by table, the slowest device's first (path relinking, Glover 1996). Last, what
// moved for nothing goes back.
#pragma once

#include <cstdint>
#include <vector>

#include "planner/bound.h"
#include "planner/load.h"
#include "planner/problem.h"
#include "planner/split.h"
#include "random.h"

namespace recsys_opt::planner {

// Where tables are, and what options have in common with it.
struct Moves {
  // [tables] the option that is the table's cut now; -1: none that is allowed.
  std::vector<int32_t> old_option;
  std::vector<std::vector<int32_t>> old_devices;  // [tables][pieces]
  // [options] bytes of all pieces, replicas each by itself, and [options][pieces * old pieces] what
  // each piece has in common with each of the table's pieces now.
  std::vector<double> bytes;
  std::vector<std::vector<double>> kept;
  // [options] rows of each cell in each stripe [parts * cells] where these are not the remainders
  // of ranks; else empty.
  std::vector<std::vector<double>> dealt;

  std::vector<std::vector<int32_t>> old_piece;  // [tables][devices] on the device, or -1

  // Of an option's piece on a device.
  double kept_on(const Option& option, size_t index, size_t piece, int32_t device) const {
    const int32_t old = old_piece[option.table][device];
    return old < 0 ? 0.0 : kept[index][piece * old_devices[option.table].size() + old];
  }
};

// The rows of an option's pieces.
Curve piece_rows(const Problem& problem, const Moves& moves, int32_t option, size_t piece);

struct Placement {
  std::vector<int32_t> option;                // [tables]
  std::vector<std::vector<int32_t>> devices;  // [tables] of each piece, in the order of the pieces
  double seconds = 0;                         // of the slowest device
  double moved_bytes = 0;
};

class Replan {
 public:
  // `price`: of a byte of the fast tier, as the bound has it; `bound`: no plan is faster.
  Replan(const Problem& problem, const Moves& moves, double price, double bound, uint64_t seed);

  // Where tables are now; those whose place is not allowed are moved. False: there is no room.
  bool start();
  // The best that was found yet within a limit; start() comes first. Limits must not fall.
  void improve(double most_bytes, int64_t trials);
  // Looks along the path to another plan.
  void follow(const Placement& guide, double most_bytes);
  const Placement& best() const { return best_; }

 private:
  struct Choice {
    double cost;
    int32_t option;
    std::vector<int32_t> devices;
  };

  const Profile& profile(int32_t option, size_t piece);
  double height() const;
  double moved_by(int32_t option, const std::vector<int32_t>& devices) const;
  void put_in(int32_t table, int32_t option, const std::vector<int32_t>& devices);
  void take_out(int32_t table);
  bool insert(int32_t table);
  void consider(int32_t table, int32_t option, double byte_price);
  bool find_devices(int32_t table, int32_t option, double byte_price,
                    std::vector<int32_t>* devices);
  void match_pieces(int32_t option, double byte_price, std::vector<int32_t>* devices);
  void choose_tables(std::vector<int32_t>* out);
  double kept_on(int32_t option, size_t piece, int32_t device) const {
    return moves_.kept_on(problem_.options[option], option, piece, device);
  }
  double cost_on(int32_t device, int32_t option, size_t piece);
  bool stays(int32_t table) const;
  void settle(const Placement& placement);
  void keep_if_best();
  void put_back();

  const Problem& problem_;
  const Moves& moves_;
  std::vector<double> prices_;
  std::vector<PricedClasses> at_;               // [levels]
  std::vector<std::vector<Profile>> profiles_;  // [options][different pieces]
  std::vector<std::vector<int32_t>> options_;   // [tables] worth trying, the cheapest first
  std::vector<std::vector<double>> dearness_;   // [tables] weight of each to that of the cheapest
  std::vector<double> weight_;                  // [tables] of the cheapest option
  std::vector<char> small_;                     // [tables]
  std::vector<Load> loads_;                     // [devices]
  std::vector<std::vector<int32_t>> on_;        // [devices] tables
  std::vector<int32_t> all_, open_;
  std::vector<std::pair<double, int32_t>> costs_;
  Placement now_, best_, start_;
  Choice choice_;
  double bound_, model_bytes_ = 0;
  double reach_ = 0, reference_ = 0, limit_ = 0, byte_price_ = 0, noise_ = 0;
  bool tight_ = false;
  int64_t trials_ = 0;
  Random random_;
};

// No plan is faster that cuts its tables in any of these ways, however many bytes it moves. Stripes
// whose rows are dealt as they are can be better balanced than those by remainders, so that the
// bounds of bound.h do not hold for them.
Bound free_bound(const Problem& problem, const Moves& moves);

// No plan that moves at most so many bytes is faster: what the devices hold now takes too long, and
// of it too little may leave. Of each device's pieces the least bytes are found (fractions allowed)
// whose leaving brings it within a time, at several prices of the fast tier.
double limited_bound(const Problem& problem, const Moves& moves, double price, double most_bytes,
                     double free_bound, double known);

}  // namespace recsys_opt::planner
