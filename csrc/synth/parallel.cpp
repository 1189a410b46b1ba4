// Rows in parallel: blocks of rows, handed out by a counter; a block's content depends on nothing
// else.
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "synth/chunk.h"
#include "synth/generator.h"

namespace recsys_opt::synth {
namespace {

constexpr int64_t kBlock = 8 * kChunk;

// Calls work(thread's state, block start, block stop) for all blocks of [start, stop); the first
// exception ends all threads and is thrown again.
template <class MakeState, class Work>
void for_blocks(int64_t start, int64_t stop, int threads, MakeState make_state, Work work) {
  std::atomic<int64_t> next{start};
  std::exception_ptr failure;
  std::mutex mutex;
  const auto run = [&] {
    try {
      auto state = make_state();
      for (;;) {
        const int64_t block = next.fetch_add(kBlock);
        if (block >= stop) break;
        work(state, block, std::min(block + kBlock, stop));
      }
      const std::lock_guard lock(mutex);
      state.done();
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
      next = stop;
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(run);
  run();
  for (std::thread& t : others) t.join();
  if (failure) std::rethrow_exception(failure);
}

void write_all(int fd, const void* data, int64_t bytes, int64_t offset) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = ::pwrite(fd, from, static_cast<size_t>(bytes), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw std::system_error(errno, std::generic_category());
    }
    from += written;
    offset += written;
    bytes -= written;
  }
}

}  // namespace

void Generator::rows(int64_t start, int64_t stop, int threads, const RowsOut& out) const {
  struct State {
    std::unique_ptr<Chunk> chunk = std::make_unique<Chunk>();
    void done() {}
  };
  for_blocks(
      start, stop, threads, [] { return State(); },
      [&](State& state, int64_t block, int64_t block_stop) {
        for (int64_t row = block; row < block_stop; row += kChunk) {
          const int64_t at = row - start;
          RowsOut here = out;
          if (here.dense) here.dense += at * dense_columns();
          if (here.sparse) here.sparse += at * sparse_columns();
          if (here.labels) here.labels += at;
          if (here.probabilities) here.probabilities += at;
          if (here.integers) here.integers += at * dense_columns();
          const int n = static_cast<int>(std::min<int64_t>(kChunk, block_stop - row));
          chunk(row, n, state.chunk.get(), here, nullptr);
        }
      });
}

Scores Generator::write(int64_t start, int64_t stop, int threads, const Files& files) const {
  Scores total;
  struct State {
    Scores* total = nullptr;
    Scores scores;
    std::unique_ptr<Chunk> chunk = std::make_unique<Chunk>();
    std::vector<float> dense;
    std::vector<int32_t> sparse, labels;
    void done() { total->merge(scores); }
  };
  const int64_t d = dense_columns(), s = sparse_columns();
  for_blocks(
      start, stop, threads,
      [&] {
        State state;
        state.total = &total;
        state.dense.resize(kBlock * d);
        state.sparse.resize(kBlock * s);
        state.labels.resize(kBlock);
        return state;
      },
      [&](State& state, int64_t block, int64_t block_stop) {
        for (int64_t row = block; row < block_stop; row += kChunk) {
          const int64_t at = row - block;
          RowsOut out;
          out.dense = state.dense.data() + at * d;
          out.sparse = state.sparse.data() + at * s;
          out.labels = state.labels.data() + at;
          const int n = static_cast<int>(std::min<int64_t>(kChunk, block_stop - row));
          chunk(row, n, state.chunk.get(), out, &state.scores);
        }
        const int64_t n = block_stop - block;
        write_all(files.dense, state.dense.data(), n * d * 4, files.dense_offset + block * d * 4);
        write_all(files.sparse, state.sparse.data(), n * s * 4,
                  files.sparse_offset + block * s * 4);
        write_all(files.labels, state.labels.data(), n * 4, files.labels_offset + block * 4);
      });
  return total;
}

}  // namespace recsys_opt::synth
