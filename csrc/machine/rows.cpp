#include "machine/rows.h"

#include <sys/mman.h>

#include <algorithm>
#include <barrier>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

#include "simd.h"

namespace recsys_opt::machine {
namespace {

using Clock = std::chrono::steady_clock;

// What loops compute goes here, so that none of it is left out.
volatile uint64_t sink;

// Runs work(thread) -> units on every thread until `seconds` have passed since they started
// together; the sum of their units, and the seconds from the start to the end of the last.
struct Done {
  int64_t units;
  double seconds;
};
Done run_for(int threads, double seconds, const std::function<int64_t(int)>& work,
             const std::function<void()>& finish) {
  std::barrier start(threads);
  std::vector<int64_t> units(static_cast<size_t>(threads));
  Clock::time_point began;
  const auto run = [&](int thread) {
    start.arrive_and_wait();
    const auto mine = Clock::now();
    if (thread == 0) began = mine;
    int64_t done = 0;
    do {
      done += work(thread);
    } while (std::chrono::duration<double>(Clock::now() - mine).count() < seconds);
    units[thread] = done;
  };
  std::vector<std::thread> others;
  for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
  run(0);
  for (std::thread& other : others) other.join();
  finish();
  const double passed = std::chrono::duration<double>(Clock::now() - began).count();
  return {std::accumulate(units.begin(), units.end(), int64_t{0}), passed};
}

constexpr int64_t kLine = 64;
constexpr int64_t kAhead = 16;

// A thread's part of the memory, and where it is in its random numbers.
struct alignas(kLine) Walk {
  uint8_t* first;
  uint64_t rows;
  uint64_t state;
  uint8_t* ahead[kAhead];  // rows drawn and asked for, not yet read
  int64_t turn;
};

ALWAYS_INLINE uint8_t* draw(Walk& walk, int64_t row_bytes) {
  walk.state = walk.state * 6364136223846793005u + 1442695040888963407u;
  const auto row = static_cast<unsigned __int128>(walk.state ^ walk.state >> 29) * walk.rows >> 64;
  return walk.first + static_cast<int64_t>(row) * row_bytes;
}

// The next `count` rows of the walk, summed; kUpdate: each of their words is changed.
template <bool kUpdate>
ALWAYS_INLINE int64_t touch_rows(Walk& walk, int64_t row_bytes, int64_t count) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint8_t*& slot = walk.ahead[walk.turn++ % kAhead];
    auto* const words = reinterpret_cast<uint64_t*>(slot);
    slot = draw(walk, row_bytes);
    for (int64_t b = 0; b < row_bytes; b += kLine) __builtin_prefetch(slot + b, kUpdate);
    for (int64_t j = 0; j < row_bytes / 8; ++j) {
      sum += words[j];
      if constexpr (kUpdate) words[j] += 0x0101;
    }
  }
  sink = sum;
  return count;
}

SIMD_CLONES int64_t read_rows(Walk& walk, int64_t row_bytes, int64_t count) {
  return touch_rows<false>(walk, row_bytes, count);
}

SIMD_CLONES int64_t update_rows(Walk& walk, int64_t row_bytes, int64_t count) {
  return touch_rows<true>(walk, row_bytes, count);
}

}  // namespace

RowRate row_rate(uint8_t* memory, int64_t bytes, int64_t row_bytes, int threads, double seconds,
                 bool update, bool mapped_file, uint64_t seed) {
  const int64_t rows = bytes / row_bytes / threads;
  std::vector<Walk> walks(static_cast<size_t>(threads));
  for (int t = 0; t < threads; ++t) {
    Walk& walk = walks[t];
    walk = {memory + t * rows * row_bytes, static_cast<uint64_t>(rows), seed + 977u * t, {}, 0};
    for (int i = 0; i < 8; ++i) draw(walk, row_bytes);
    for (uint8_t*& slot : walk.ahead) slot = draw(walk, row_bytes);
  }
  // Rows between looks at the clock: a row of a file can take a tenth of a millisecond.
  const int64_t count = mapped_file ? 16 : 4096;
  const auto work = [&](int thread) {
    return (update ? update_rows : read_rows)(walks[thread], row_bytes, count);
  };
  const Done done = run_for(threads, seconds, work, [&] {
    if (update && mapped_file) msync(memory, static_cast<size_t>(bytes), MS_SYNC);
  });
  return {static_cast<double>(done.units) / done.seconds, done.units};
}

double copy_bytes_per_s(uint8_t* memory, int64_t bytes, int threads, double seconds) {
  const int64_t half = bytes / 2;
  const int64_t part = half / threads;
  const int64_t piece = std::min<int64_t>(part, int64_t{8} << 20);  // between looks at the clock
  std::vector<int64_t> turns(static_cast<size_t>(threads) * 8);
  const Done done = run_for(
      threads, seconds,
      [&](int thread) {
        const int64_t at = thread * part + turns[thread * 8]++ % (part / piece) * piece;
        std::memcpy(memory + half + at, memory + at, static_cast<size_t>(piece));
        return piece;
      },
      [] {});
  return static_cast<double>(done.units) / done.seconds;
}

}  // namespace recsys_opt::machine
