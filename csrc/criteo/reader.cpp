#include "criteo/reader.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

namespace criteo {
namespace {
constexpr size_t kFedBlocks = 8;  // blocks that wait for a parsing thread
constexpr auto kPoll =
    std::chrono::milliseconds(100);  // how soon a waiting thread sees a cancellation
}  // namespace

PartReader::PartReader(PartOptions options, std::shared_ptr<Counts> counts,
                       std::shared_ptr<Meter> meter)
    : options_(std::move(options)),
      counts_(std::move(counts)),
      meter_(std::move(meter)),
      hashes_(options_.cardinalities.begin(), options_.cardinalities.end()),
      dense_(File::for_writing(options_.dense_path)),
      labels_(options_.labelled ? std::make_unique<File>(File::for_writing(options_.labels_path))
                                : nullptr),
      sparse_(File::for_writing(options_.sparse_path)),
      sparse_offset_(hashes_.empty() ? 0 : kNpyHeaderBytes),
      minimum_(std::numeric_limits<int32_t>::max()) {}

PartReader::~PartReader() {
  if (threads_.empty()) return;
  stop(nullptr);
  for (std::thread& thread : threads_) thread.join();
}

void PartReader::start(ByteSource source, bool metered) {
  if (chunker_) throw std::logic_error("a PartReader reads one text");
  metered_ = metered;
  chunker_ = std::make_unique<Chunker>(std::move(source), options_.chunk_bytes);
  for (int i = 0; i < std::max(1, options_.threads); ++i) threads_.emplace_back([this] { work(); });
}

void PartReader::read_file(const std::string& path) {
  auto file = std::make_shared<File>(File::for_reading(path));
  start([file](char* to, int64_t n) { return file->read(to, n); }, true);
}

bool PartReader::feed(std::string block) {
  if (!chunker_) start([this](char* to, int64_t n) { return take_fed(to, n); }, false);
  std::unique_lock lock(fed_lock_);
  while (!stopped() && fed_.size() >= kFedBlocks) fed_changed_.wait_for(lock, kPoll);
  if (stopped()) return false;
  if (!block.empty()) fed_.push_back(std::move(block));
  fed_changed_.notify_all();
  return true;
}

int64_t PartReader::take_fed(char* to, int64_t n) {
  std::unique_lock lock(fed_lock_);
  while (fed_.empty() && !fed_ended_ && !stopped()) fed_changed_.wait_for(lock, kPoll);
  if (fed_.empty() || stopped()) return 0;
  const std::string& block = fed_.front();
  const size_t taken = std::min(static_cast<size_t>(n), block.size() - fed_used_);
  std::memcpy(to, block.data() + fed_used_, taken);
  fed_used_ += taken;
  if (fed_used_ == block.size()) {
    fed_.pop_front();
    fed_used_ = 0;
    fed_changed_.notify_all();
  }
  return static_cast<int64_t>(taken);
}

void PartReader::work() {
  try {
    Chunk chunk;
    Batch batch(options_.labelled, options_.transform);
    while (!stopped()) {
      {
        const std::lock_guard lock(chunker_lock_);
        const int64_t before = chunker_->bytes_read();
        if (stopped() || !chunker_->next(chunk)) return;
        if (metered_) meter_->done += chunker_->bytes_read() - before;
      }
      batch.parse(chunk, !options_.skip_bad);
      if (counts_)
        counts_->add(batch.values(), batch.stride(), batch.missing(), batch.rows,
                     7 * chunk.sequence);
      settle_and_write(chunk, batch);
    }
  } catch (...) {
    stop(std::current_exception());
  }
}

void PartReader::settle_and_write(const Chunk& chunk, Batch& batch) {
  const int32_t* ids = hashes_.empty() ? nullptr : batch.hashed(hashes_);
  const bool blocks = ids == nullptr;
  int64_t first_row, sparse_offset;
  {
    std::unique_lock lock(lock_);
    while (turn_ != chunk.sequence && !stopped()) turn_changed_.wait_for(lock, kPoll);
    if (stopped()) return;
    for (BadLine& bad : batch.bad)
      if (result_.bad.size() < kBadLinesKept)
        result_.bad.push_back({result_.lines + bad.line, std::move(bad.found)});
    result_.bad_lines += batch.bad_lines;
    if (batch.bad_lines > 0 && !options_.skip_bad) {
      stopped_ = true;
      turn_changed_.notify_all();
      return;
    }
    result_.lines += batch.lines;
    first_row = result_.rows;
    result_.rows += batch.rows;
    minimum_ = std::min(minimum_, batch.minimum);
    sparse_offset = sparse_offset_;
    if (batch.rows > 0)
      sparse_offset_ +=
          blocks ? kBlockHeaderBytes + batch.rows * kBlockRowBytes : batch.rows * kValues * 4;
    ++turn_;
    turn_changed_.notify_all();
  }
  if (batch.rows == 0) return;
  dense_.write_at(batch.dense(), batch.rows * kIntegers * 4,
                  kNpyHeaderBytes + first_row * kIntegers * 4);
  if (labels_) labels_->write_at(batch.labels(), batch.rows * 4, kNpyHeaderBytes + first_row * 4);
  if (blocks)
    write_values(batch, sparse_offset);
  else
    sparse_.write_at(ids, batch.rows * kValues * 4, sparse_offset);
}

void PartReader::write_values(const Batch& batch, int64_t offset) const {
  const auto rows = static_cast<uint64_t>(batch.rows);
  const auto piece = [](const void* from, uint64_t bytes) {
    return iovec{const_cast<void*>(from), bytes};
  };
  std::array<iovec, kValues + 2> pieces;
  pieces[0] = piece(&rows, kBlockHeaderBytes);
  for (int c = 0; c < kValues; ++c)
    pieces[static_cast<size_t>(c) + 1] = piece(batch.values() + c * batch.stride(), rows * 4);
  pieces[kValues + 1] = piece(batch.missing(), rows * 4);
  sparse_.write_at(pieces, offset);
}

// torchrec's transform needs the least integer of the whole file: log(x - minimum + 2).
void PartReader::transform_raw_dense() const {
  constexpr int64_t kBlock = 1 << 18;
  std::vector<int32_t> raw(kBlock);
  std::vector<float> logs(kBlock);
  const int64_t total = result_.rows * kIntegers;
  for (int64_t begin = 0; begin < total && !stopped(); begin += kBlock) {
    const int64_t n = std::min(kBlock, total - begin);
    const int64_t offset = kNpyHeaderBytes + begin * 4;
    dense_.read_at(raw.data(), n * 4, offset);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t x = int64_t{raw[static_cast<size_t>(i)]} - minimum_ + 2;
      logs[static_cast<size_t>(i)] =
          static_cast<float>(std::log(static_cast<double>(static_cast<float>(x))));
    }
    dense_.write_at(logs.data(), n * 4, offset);
  }
}

void PartReader::stop(std::exception_ptr error) {
  const std::scoped_lock lock(lock_, fed_lock_);
  if (error && !error_) error_ = error;
  stopped_ = true;
  turn_changed_.notify_all();
  fed_changed_.notify_all();
}

PartResult PartReader::finish() {
  if (!chunker_) feed({});
  {
    const std::lock_guard lock(fed_lock_);
    fed_ended_ = true;
    fed_changed_.notify_all();
  }
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  if (error_) std::rethrow_exception(error_);
  result_.bytes = chunker_->bytes_read();
  result_.hash = chunker_->hash();
  if (stopped()) return result_;
  if (options_.transform == DenseTransform::kRaw32) transform_raw_dense();
  const auto put_header = [&](const File& file, const char* dtype, int64_t columns) {
    const std::string header = npy_header(dtype, result_.rows, columns);
    file.write_at(header.data(), kNpyHeaderBytes, 0);
  };
  put_header(dense_, "<f4", kIntegers);
  if (labels_) put_header(*labels_, "<i4", 1);
  if (!hashes_.empty()) put_header(sparse_, "<i4", kValues);
  return result_;
}

}  // namespace criteo
