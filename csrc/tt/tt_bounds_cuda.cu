// The settings of the CUDA kernels, and the errors that they noted.
#include <torch/csrc/stable/library.h>

#include <array>
#include <atomic>
#include <mutex>
#include <string>

#include "tt_bounds_cuda.cuh"
#include "tt_cuda.cuh"

namespace recsys_opt::tt {
namespace {

CudaSettings& settings() {
  static CudaSettings all;
  return all;
}

struct Known {
  BoundsRecord* record = nullptr;
  unsigned long long reported = 0;
};

constexpr int kMaxDevices = 64;

std::mutex& known_mutex() {
  static std::mutex mutex;
  return mutex;
}
std::array<Known, kMaxDevices>& known() {
  static std::array<Known, kMaxDevices> all;
  return all;
}

// Host memory that the device can write; made once per device, never freed.
BoundsRecord* make_record() {
#ifdef RECSYS_OPT_SIMT
  return new BoundsRecord{};
#else
  // Allocation is refused while a stream of any thread captures a graph, unless this thread says
  // that it knows what it does: nothing is enqueued.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  STD_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  void* memory = nullptr;
  const cudaError_t failed =
      cudaHostAlloc(&memory, sizeof(BoundsRecord), cudaHostAllocMapped | cudaHostAllocPortable);
  STD_CUDA_CHECK(cudaThreadExchangeStreamCaptureMode(&mode));
  STD_CUDA_CHECK(failed);
  return new (memory) BoundsRecord{};
#endif
}

void wait_for_device(int device) {
#ifndef RECSYS_OPT_SIMT
  const torch::stable::accelerator::DeviceGuard guard(device);
  STD_CUDA_CHECK(cudaDeviceSynchronize());
#else
  (void)device;
#endif
}

unsigned long long count_of(const BoundsRecord* record) {
  return __atomic_load_n(&record->count, __ATOMIC_ACQUIRE);
}

// {errors not reported before, kind, position, value, limit, table of one of them}
std::vector<int64_t> take_noted(int device) {
  const std::lock_guard lock(known_mutex());
  Known& mine = known().at(device);
  if (mine.record == nullptr) return {0, 0, 0, 0, 0, 0};
  const unsigned long long count = count_of(mine.record), fresh = count - mine.reported;
  if (fresh == 0) return {0, 0, 0, 0, 0, 0};
  // Kernels note errors in any order: of those kept, offsets before ids, and the first of its kind.
  const auto of_offsets = [](const BoundsError& e) {
    return e.kind >= static_cast<int64_t>(BoundsKind::kOffset) &&
           e.kind <= static_cast<int64_t>(BoundsKind::kFirstOffset);
  };
  const auto before = [&](const BoundsError& a, const BoundsError& b) {
    return of_offsets(a) != of_offsets(b) ? of_offsets(a) : a.position < b.position;
  };
  BoundsError e = mine.record->noted[mine.reported % kNotedErrors];
  for (unsigned long long i = 1; i < fresh && i < kNotedErrors; ++i) {
    const BoundsError other = mine.record->noted[(mine.reported + i) % kNotedErrors];
    if (before(other, e)) e = other;
  }
  mine.reported = count;
  return {static_cast<int64_t>(fresh), e.kind, e.position, e.value, e.limit, e.table};
}

int64_t* setting(const std::string& name) {
  if (name == "bounds") return &settings().bounds;
  if (name == "tf32") return &settings().tf32;
  if (name == "direct_lookups") return &settings().direct_lookups;
  if (name == "run") return &settings().run;
  return nullptr;
}

// Sets a setting unless value is negative; returns what it was.
int64_t tt_cuda_setting(std::string name, int64_t value) {
  int64_t* const place = setting(name);
  STD_TORCH_CHECK(place != nullptr, "tt_cuda_setting: there is no setting '", name,
                  "'; there are bounds, tf32, direct_lookups and run");
  STD_TORCH_CHECK(name != "run" || value < 0 || value >= 1, "tt_cuda_setting: run = ", value,
                  "; a unit has at least 1 lookup");
  STD_TORCH_CHECK(name != "bounds" || value <= 2, "tt_cuda_setting: bounds = ", value,
                  "; it is 0 (check), 1 (clamp) or 2 (trust)");
  const std::lock_guard lock(known_mutex());
  const int64_t before = *place;
  if (value >= 0) *place = value;
  return before;
}

std::vector<int64_t> tt_bounds_report(int64_t device) {
  STD_TORCH_CHECK(device >= 0 && device < kMaxDevices, "tt_bounds_report: device ", device,
                  " is not one of ", kMaxDevices);
  wait_for_device(static_cast<int>(device));
  return take_noted(static_cast<int>(device));
}

}  // namespace

CudaSettings cuda_settings() {
  const std::lock_guard lock(known_mutex());
  return settings();
}

BoundsRecord* bounds_record(int device) {
  const std::lock_guard lock(known_mutex());
  Known& mine = known().at(device);
  if (mine.record == nullptr) mine.record = make_record();
  return mine.record;
}

void raise_noted_errors(int device) {
  if (cuda_settings().bounds != static_cast<int64_t>(BoundsCheck::kCheck)) return;
  const std::vector<int64_t> e = take_noted(device);
  if (e[0] == 0) return;
  const auto at = [&](const char* name, int64_t position) {
    return std::string(name) + "[" + std::to_string(position) + "]";
  };
  const auto found = [&](const char* name) {
    return at(name, e[2]) + " = " + std::to_string(e[3]);
  };
  const std::string limit = std::to_string(e[4]), table = " (table " + std::to_string(e[5]) + ")";
  std::string example;
  switch (static_cast<BoundsKind>(e[1])) {
    case BoundsKind::kIndex:
      example = found("indices") + ", outside the table's " + limit + " rows" + table;
      break;
    case BoundsKind::kOffset:
      example = found("offsets") + ", outside the " + limit + " indices";
      break;
    case BoundsKind::kOffsetOrder:
      example = found("offsets") + ", less than " + at("offsets", e[2] - 1) + " = " + limit;
      break;
    case BoundsKind::kFirstOffset:
      example = found("offsets") + ", where the first bag must start at 0";
      break;
    case BoundsKind::kSlot:
      example = found("slots") + ", outside the table's " + limit + " slots" + table;
      break;
    case BoundsKind::kKey:
      example = found("keys") + ", held by " + at("keys", e[4]) + " already";
      break;
    case BoundsKind::kPosition:
      example = found("positions") + ", outside the table's " + limit + " rows" + table;
      break;
  }
  STD_TORCH_CHECK(false, "recsys_opt: an earlier call on this CUDA device met ", e[0],
                  " ids or offsets out of range, among them ", example,
                  "; they counted for nothing (recsys_opt.ops.tt_bounds_check chooses what happens "
                  "to them)");
}

}  // namespace recsys_opt::tt

STABLE_TORCH_LIBRARY_IMPL(TT_OPS_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("tt_cuda_setting", TORCH_BOX(&recsys_opt::tt::tt_cuda_setting));
  m.impl("tt_bounds_report", TORCH_BOX(&recsys_opt::tt::tt_bounds_report));
}
