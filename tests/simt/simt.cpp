// The host's threads, warps and guarded memory: see simt.h.
#include "simt.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

constexpr int kLanes = 32;
constexpr size_t kStack = 64 << 10;
constexpr unsigned char kPoison = 0xff;  // floats and doubles of it are NaN, ints -1

enum class State { kReady, kBarrier, kWarp, kDone };

struct Copy {
  void* to;
  const void* from;
  int bytes;
};

struct Fibre {
  State state;
  jmp_buf at;
  bool started;
  int exchanges;  // warp operations so far
  std::vector<Copy> copies;
};

struct Payload {
  uint32_t words[8];
};

std::recursive_mutex running;
Order the_order = Order::kForward;
std::mt19937_64 random_numbers;

std::vector<Fibre> fibres;
std::vector<unsigned char> stacks;
std::vector<Payload> payloads;  // [2, threads]
ucontext_t starting;
jmp_buf scheduler;
int current;
bool in_fibre = false;
const std::function<void()>* the_body;
unsigned char* shared;
std::unordered_map<const void*, int64_t> allowed_shared;
int64_t overruns;
int64_t last_workspace;
std::string failure;

void fibre_main() {
  try {
    (*the_body)();
    if (!fibres[current].copies.empty()) failure = "a thread ended with copies it never waited for";
  } catch (const std::exception& error) {
    failure = error.what();
  }
  fibres[current].state = State::kDone;
  _longjmp(scheduler, 1);
}

void resume(int index) {
  current = index;
  threadIdx.x = index;
  if (_setjmp(scheduler) != 0) {
    in_fibre = false;
    return;
  }
  in_fibre = true;
  Fibre& fibre = fibres[index];
  fibre.state = State::kReady;
  if (fibre.started) _longjmp(fibre.at, 1);
  fibre.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks.data() + kStack * index;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, fibre_main, 0);
  setcontext(&context);
}

void pause(State state) {
  Fibre& fibre = fibres[current];
  fibre.state = state;
  if (_setjmp(fibre.at) == 0) _longjmp(scheduler, 1);
}

template <typename T>
std::vector<T> ordered(T count) {
  std::vector<T> order(count);
  for (T i = 0; i < count; ++i) order[i] = i;
  if (the_order == Order::kBackward) std::reverse(order.begin(), order.end());
  if (the_order == Order::kRandom) std::shuffle(order.begin(), order.end(), random_numbers);
  return order;
}

// Lets the warps whose lanes have all arrived go on; whether there were any.
bool release_warps(int threads) {
  bool any = false;
  for (int first = 0; first < threads; first += kLanes) {
    bool all = true;
    for (int i = first; i < first + kLanes; ++i) all &= fibres[i].state == State::kWarp;
    if (!all) continue;
    any = true;
    for (int i = first; i < first + kLanes; ++i) fibres[i].state = State::kReady;
  }
  return any;
}

void run_block(int threads) {
  for (Fibre& fibre : fibres) fibre.state = State::kReady, fibre.started = false;
  for (Fibre& fibre : fibres) fibre.exchanges = 0, fibre.copies.clear();
  for (;;) {
    bool ran = false;
    for (int i : ordered(threads)) {
      if (fibres[i].state != State::kReady) continue;
      ran = true;
      resume(i);
      if (!failure.empty()) throw std::runtime_error("simt: " + failure);
    }
    if (ran) continue;
    if (release_warps(threads)) continue;
    bool done = true, barrier = true;
    for (const Fibre& fibre : fibres) {
      done &= fibre.state == State::kDone;
      barrier &= fibre.state == State::kDone || fibre.state == State::kBarrier;
    }
    if (done) return;
    if (!barrier) throw std::runtime_error("simt: a warp's lanes went different ways");
    for (Fibre& fibre : fibres) {
      if (fibre.state == State::kDone)
        throw std::runtime_error("simt: threads left before a barrier");
      fibre.state = State::kReady;
    }
  }
}

// What every lane of the warp passes, [32].
const Payload* exchange(const Payload& mine) {
  Fibre& fibre = fibres[current];
  // Two sets take turns: a lane can overtake the others by less than one operation.
  Payload* set = payloads.data() + (fibre.exchanges++ % 2) * fibres.size();
  set[current] = mine;
  pause(State::kWarp);
  return set + current / kLanes * kLanes;
}

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// --- guarded memory ---

struct Region {
  void* base;
  size_t mapped;
  int64_t bytes;
};
std::unordered_map<void*, Region>& regions() {
  static auto* const all = new std::unordered_map<void*, Region>;
  return *all;
}

// A kernel touched a guard page: its fibre ends, and the launch fails.
void touched(int signal_number, siginfo_t* info, void*) {
  if (!in_fibre) {
    signal(signal_number, SIG_DFL);
    return;
  }
  char text[160];
  std::snprintf(text, sizeof text, "address %p is outside every buffer: block (%u, %u), thread %u",
                info->si_addr, blockIdx.x, blockIdx.y, threadIdx.x);
  failure = text;
  fibres[current].state = State::kDone;
  _longjmp(scheduler, 1);
}

void install_handler() {
  static const bool once = [] {
    static unsigned char stack[64 << 10];
    stack_t alternative{};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action{};
    action.sa_sigaction = touched;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // it does not return
    sigaction(SIGSEGV, &action, nullptr);
    return true;
  }();
  (void)once;
}

}  // namespace

void set_order(Order order, uint64_t seed) {
  the_order = order;
  random_numbers.seed(seed);
}

void allow_shared(const void* kernel, int64_t bytes) {
  const std::lock_guard lock(running);
  if (!allowed_shared.emplace(kernel, bytes).second) {
    throw std::runtime_error("simt: a kernel's shared memory is set a second time");
  }
}

void run(const void* kernel, dim3 grid, int threads, int64_t shared_bytes,
         const std::function<void()>& body) {
  const std::lock_guard lock(running);
  if (shared_bytes > kSharedByDefault && allowed_shared[kernel] < shared_bytes) {
    throw std::runtime_error("simt: a kernel takes more shared memory than it is allowed");
  }
  if (threads % kLanes != 0 || threads > 1024) throw std::runtime_error("simt: odd block size");
  if (shared_bytes > kSharedBytes) throw std::runtime_error("simt: too much shared memory");
  install_handler();
  fibres.resize(threads);
  payloads.resize(2 * threads);
  if (stacks.size() < kStack * threads) stacks.resize(kStack * threads);
  the_body = &body;
  failure.clear();
  gridDim = grid;
  blockDim = dim3(threads);
  shared = static_cast<unsigned char*>(guarded(shared_bytes));
  for (uint64_t b : ordered<uint64_t>(uint64_t{grid.x} * grid.y)) {
    blockIdx = dim3(b % grid.x, b / grid.x);
    std::memset(shared, kPoison, shared_bytes);
    run_block(threads);
  }
  release(shared);
}

unsigned char* shared_memory() {
  return shared;
}

void copy_async(void* to, const void* from, int bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes) {
    throw std::runtime_error("an asynchronous copy is not aligned to its size");
  }
  fibres[current].copies.push_back({to, from, bytes});
}

void copies_wait() {
  for (const Copy& copy : fibres[current].copies) std::memcpy(copy.to, copy.from, copy.bytes);
  fibres[current].copies.clear();
}

uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;  // infinite or NaN
  return (bits + 0x1000u) & ~0x1fffu;                    // to nearest, ties away from 0
}

void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const Payload* all = exchange({{a[0], a[1], a[2], a[3], b[0], b[1]}});
  const int lane = current % kLanes, g = lane / 4, l = lane % 4;
  for (int e = 0; e < 4; ++e) {
    const int row = g + e / 2 * 8, column = 2 * l + e % 2;
    for (int k = 0; k < 8; ++k) {
      const uint32_t left = all[row % 8 * 4 + k % 4].words[row / 8 + k / 4 * 2];
      const uint32_t right = all[column * 4 + k % 4].words[4 + k / 4];
      c[e] += from_bits(left) * from_bits(right);
    }
  }
}

unsigned ballot(bool predicate) {
  const Payload* all = exchange({{predicate}});
  unsigned result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result |= all[lane].words[0] << lane;
  return result;
}

unsigned match(unsigned value) {
  const Payload* all = exchange({{value}});
  unsigned result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result |= unsigned{all[lane].words[0] == value} << lane;
  return result;
}

int shift_up(int value, int delta) {
  const Payload* all = exchange({{static_cast<uint32_t>(value)}});
  const int lane = current % kLanes;
  return lane < delta ? value : static_cast<int>(all[lane - delta].words[0]);
}

void clear(void* memory, int64_t bytes) {
  std::memset(memory, 0, bytes);
}

void* guarded(int64_t bytes) {
  const size_t page = sysconf(_SC_PAGESIZE);
  const size_t body = (bytes + page) / page * page;
  auto* base = static_cast<unsigned char*>(
      mmap(nullptr, body + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (base == MAP_FAILED) throw std::runtime_error("simt: no memory");
  mprotect(base + page, body, PROT_READ | PROT_WRITE);
  std::memset(base + page, kPoison, body);
  unsigned char* memory = base + page + body - (bytes + 15) / 16 * 16;
  regions()[memory] = {base, body + 2 * page, bytes};
  return memory;
}

void release(void* memory) {
  const Region region = regions().at(memory);
  regions().erase(memory);
  const auto* first = static_cast<unsigned char*>(region.base) + sysconf(_SC_PAGESIZE);
  const auto* last =
      static_cast<unsigned char*>(region.base) + region.mapped - sysconf(_SC_PAGESIZE);
  const auto* begin = static_cast<unsigned char*>(memory);
  bool clean = true;
  for (const auto* p = first; p < begin; ++p) clean &= *p == kPoison;
  for (const auto* p = begin + region.bytes; p < last; ++p) clean &= *p == kPoison;
  munmap(region.base, region.mapped);
  if (!clean) ++overruns;
}

void note_workspace(int64_t bytes) {
  last_workspace = bytes;
}

int64_t workspace_bytes() {
  return last_workspace;
}

int64_t take_overruns() {
  return std::exchange(overruns, 0);
}

}  // namespace simt

void __syncthreads() {
  simt::pause(simt::State::kBarrier);
}
