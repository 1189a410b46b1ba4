#include <bit>
#include <mutex>
#include <new>
#include <vector>

#include "tt_array.h"

namespace recsys_opt::tt {
namespace {

constexpr int64_t kSmallest = 1 << 8;  // smaller blocks are malloc's
constexpr int64_t kKeptBytes = int64_t{1} << 29;
constexpr std::align_val_t kAlignment{64};

struct Pool {
  std::mutex mutex;
  std::vector<void*> blocks[64];  // by the power of two of their size
  int64_t kept = 0;
};

// Never destroyed: threads may still give memory back while the process ends.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

int64_t size_class(int64_t bytes) {
  return std::bit_width(static_cast<uint64_t>(bytes > 1 ? bytes - 1 : 1));
}

}  // namespace

void* take_memory(int64_t bytes) {
  if (bytes < kSmallest) return ::operator new(bytes > 0 ? bytes : 1, kAlignment);
  const int64_t c = size_class(bytes);
  {
    Pool& p = pool();
    const std::lock_guard lock(p.mutex);
    if (!p.blocks[c].empty()) {
      void* memory = p.blocks[c].back();
      p.blocks[c].pop_back();
      p.kept -= int64_t{1} << c;
      return memory;
    }
  }
  return ::operator new(int64_t{1} << c, kAlignment);
}

void give_memory(void* memory, int64_t bytes) {
  if (bytes >= kSmallest) {
    const int64_t c = size_class(bytes);
    Pool& p = pool();
    const std::lock_guard lock(p.mutex);
    if (p.kept + (int64_t{1} << c) <= kKeptBytes) {
      p.blocks[c].push_back(memory);
      p.kept += int64_t{1} << c;
      return;
    }
  }
  ::operator delete(memory, kAlignment);
}

}  // namespace recsys_opt::tt
