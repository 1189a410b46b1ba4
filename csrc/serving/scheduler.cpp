#include "serving/scheduler.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace recsys_opt::serving {

namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

double clock_now() {
  return Seconds(Clock::now().time_since_epoch()).count();
}

Clock::time_point at(double seconds) {
  // A day ahead is as good as never, and within the clock's range.
  const double bounded = std::min(seconds, clock_now() + 86400);
  return Clock::time_point(std::chrono::duration_cast<Clock::duration>(Seconds(bounded)));
}

}  // namespace

Scheduler::Scheduler(std::shared_ptr<const Fleet> fleet, std::shared_ptr<Policy> policy,
                     int64_t max_waiting)
    : fleet_(std::move(fleet)), policy_(std::move(policy)), core_(*fleet_, *policy_, max_waiting) {
  const double now = clock_now();
  for (int32_t w = 0; w < fleet_->workers(); ++w) {
    seats_.push_back(std::make_unique<Seat>());
    core_.set_available(now, w, false);
  }
}

Scheduler::Seat& Scheduler::seat(int32_t worker) {
  if (worker < 0 || worker >= static_cast<int32_t>(seats_.size())) {
    throw std::out_of_range("there is no worker " + std::to_string(worker) + "; there are " +
                            std::to_string(seats_.size()));
  }
  return *seats_[worker];
}

void Scheduler::require_running(int32_t worker) const {
  if (!core_.running(worker)) {
    throw std::invalid_argument("worker " + std::to_string(worker) + " has no batch");
  }
}

// With the mutex held.
void Scheduler::dispatch(double now) {
  core_.dispatch(now);
  for (const int32_t worker : core_.started()) {
    ++counts_.batches;
    ++counts_.running;
    seats_[worker]->assigned = true;
    seats_[worker]->ready.notify_one();
  }
  if (!core_.given_up().empty()) given_up_.notify_all();
  if (core_.wake_at() < alarm_) {  // earlier than those who wait know of
    for (const auto& seat : seats_) seat->ready.notify_one();
  }
  alarm_ = core_.wake_at();
}

bool Scheduler::submit(int64_t query, int32_t size, double deadline) {
  const std::lock_guard lock(mutex_);
  const double now = clock_now();
  if (size < 1) {
    throw std::invalid_argument("query " + std::to_string(query) + " has " + std::to_string(size) +
                                " samples; it needs 1 at least");
  }
  ++counts_.submitted;
  if (closed_ || !(deadline > now) || !core_.submit(now, query, size, deadline)) {
    ++counts_.rejected;
    return false;
  }
  dispatch(now);
  return true;
}

bool Scheduler::take(int32_t worker, double timeout, Assignment& batch) {
  std::unique_lock lock(mutex_);
  Seat& seat = this->seat(worker);
  const double end = clock_now() + timeout;
  while (!seat.assigned) {
    const double now = clock_now();
    if (closed_) return false;
    // A policy may have asked to be asked again, which any worker sees to.
    if (now >= core_.wake_at()) {
      dispatch(now);
      if (seat.assigned) break;
    }
    if (now >= end) return false;
    seat.ready.wait_until(lock, at(std::min(end, core_.wake_at())));
  }
  seat.assigned = false;
  const Batch& given = core_.batch(worker);
  batch.path = given.path;
  batch.size = given.size;
  batch.expected = given.expected;
  batch.queries.clear();
  batch.first.clear();
  batch.count.clear();
  for (const Part& part : given.parts) {
    batch.queries.push_back(core_.query(part.slot).id);
    batch.first.push_back(part.first);
    batch.count.push_back(part.count);
  }
  return true;
}

std::vector<Answer> Scheduler::done(int32_t worker, double seconds) {
  const std::lock_guard lock(mutex_);
  seat(worker);
  require_running(worker);
  const double now = clock_now();
  core_.finish(now, worker, std::isnan(seconds) ? now - core_.batch(worker).start : seconds);
  std::vector<Answer> answers;
  for (const uint32_t slot : core_.finished()) {
    const Query& query = core_.query(slot);
    answers.push_back(
        {query.id, query.size, query.worth / query.size, query.arrival, query.deadline});
    core_.release(slot);
  }
  --counts_.running;
  counts_.finished += static_cast<int64_t>(answers.size());
  dispatch(now);
  return answers;
}

void Scheduler::failed(int32_t worker) {
  const std::lock_guard lock(mutex_);
  Seat& seat = this->seat(worker);
  if (core_.running(worker)) {
    --counts_.running;
    ++counts_.failed;
  }
  seat.assigned = false;
  const double now = clock_now();
  core_.fail(now, worker);
  dispatch(now);
}

void Scheduler::set_worker(int32_t worker, bool available) {
  const std::lock_guard lock(mutex_);
  seat(worker);
  const double now = clock_now();
  core_.set_available(now, worker, available);
  dispatch(now);
}

bool Scheduler::drop(int64_t query) {
  const std::lock_guard lock(mutex_);
  for (int32_t l = 0; l <= core_.shared_lane(); ++l) {
    const Lane& lane = core_.lane(l);
    for (int64_t i = 0; i < lane.queries(); ++i) {
      if (core_.query(lane[i].slot).id == query) {
        core_.give_up(lane[i].slot);
        given_up_.notify_all();
        return true;
      }
    }
  }
  return false;
}

std::vector<int64_t> Scheduler::dropped(double timeout) {
  std::unique_lock lock(mutex_);
  if (timeout > 0) {  // even a wait that is over at once sleeps for some 50 us
    given_up_.wait_until(lock, at(clock_now() + timeout),
                         [&] { return closed_ || !core_.given_up().empty(); });
  }
  std::vector<int64_t> ids;
  for (const Core::GivenUp& query : core_.given_up()) ids.push_back(query.id);
  counts_.given_up += static_cast<int64_t>(ids.size());
  core_.clear_given_up();
  return ids;
}

void Scheduler::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (const auto& seat : seats_) seat->ready.notify_all();
  given_up_.notify_all();
}

bool Scheduler::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

Counts Scheduler::counts() const {
  const std::lock_guard lock(mutex_);
  Counts counts = counts_;
  counts.waiting_queries = core_.waiting_queries();
  counts.waiting_samples = core_.waiting_samples();
  return counts;
}

double Scheduler::wake_at() const {
  const std::lock_guard lock(mutex_);
  return core_.wake_at();
}

double Scheduler::slowness(int32_t device) const {
  const std::lock_guard lock(mutex_);
  if (device < 0 || device >= static_cast<int32_t>(fleet_->devices().size())) {
    throw std::out_of_range("there is no device " + std::to_string(device));
  }
  return core_.slowness(device);
}

}  // namespace recsys_opt::serving
