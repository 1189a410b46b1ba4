#include "synth/generator.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "synth/chunk.h"
#include "synth/hash.h"

// Rows must not depend on the processor: a fused multiply-add rounds differently from the two
// operations.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#if defined(__x86_64__) && defined(__gnu_linux__)
#define RECSYS_OPT_CLONES \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define RECSYS_OPT_CLONES
#endif

namespace recsys_opt::synth {
namespace {

// Streams of random numbers; each column has its own within a kind.
enum Stream : uint64_t {
  kPattern = 1,
  kLabel = 2,
  kIdDraw = 1000,
  kIdChoice = 2000,
  kIdScatter = 3000,
  kIdEffect = 4000,
  kIdLatent = 5000,
  kDenseNoise = 6000,
  kDenseTie = 7000,
};

// logit[r] += scale * bell(id[r])
RECSYS_OPT_CLONES
void add_effects(uint64_t key, float scale, const uint32_t* id, int n, float* logit) {
  for (int r = 0; r < n; ++r) logit[r] += scale * bell(hash(key, id[r]));
}

// Adds the ids' interaction vectors v to sum [kLatent][kChunk] and their squared lengths to
// squares.
RECSYS_OPT_CLONES
void add_latent(uint64_t key, float scale, const uint32_t* id, int n, float* sum, float* squares) {
  const float unit_scale = scale * 3.4641016f / 65536.0f;  // each part: mean 0, variance scale^2
  for (int r = 0; r < n; ++r) {
    const uint64_t h = hash(key, id[r]);
    float square = 0;
    for (int k = 0; k < kLatent; ++k) {
      const float v =
          static_cast<float>(static_cast<int32_t>((h >> (16 * k)) & 0xffff) - 0x8000) * unit_scale;
      sum[k * kChunk + r] += v;
      square += v * v;
    }
    squares[r] += square;
  }
}

RECSYS_OPT_CLONES
void draw_hashes(uint64_t key, int64_t start, int n, uint64_t* out) {
  for (int r = 0; r < n; ++r) out[r] = hash(key, static_cast<uint64_t>(start + r));
}

// out[r] = scale * the standard normal deviate in 12 bits of the hash
RECSYS_OPT_CLONES
void take_normals(const float* table, const uint64_t* bits, int shift, float scale, int n,
                  float* out) {
  for (int r = 0; r < n; ++r) out[r] = scale * table[(bits[r] >> shift) & 4095];
}

RECSYS_OPT_CLONES
void add_scaled(const float* x, float scale, int n, float* out) {
  for (int r = 0; r < n; ++r) out[r] += scale * x[r];
}

// z[r] -> its probability under the standard normal distribution, from a table over [-6, 6], times
// `scale`.
RECSYS_OPT_CLONES
void normal_cdf(const float* table, float scale, int n, float* z) {
  for (int r = 0; r < n; ++r) {
    float place = (z[r] + 6.0f) * (4096.0f / 12.0f);
    place = place < 0.0f ? 0.0f : place;
    place = place > 4095.99f ? 4095.99f : place;
    const int i = static_cast<int>(place);
    z[r] = scale * (table[i] + (table[i + 1] - table[i]) * (place - static_cast<float>(i)));
  }
}

// Quantile of the standard normal distribution, by bisection (used for a table only).
double normal_quantile(double p) {
  double low = -9, high = 9;
  for (int i = 0; i < 80; ++i) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle * M_SQRT1_2) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

}  // namespace

void Scores::merge(const Scores& other) {
  for (int64_t i = 0; i < kBins; ++i) {
    positives[i] += other.positives[i];
    negatives[i] += other.negatives[i];
  }
}

Generator::Generator(int64_t total_rows, uint64_t seed, std::vector<DenseColumn> dense,
                     std::vector<SparseColumn> sparse, std::vector<Pattern> patterns,
                     StepTable pattern_table, float bias)
    : total_rows_(total_rows),
      seed_(seed),
      dense_(std::move(dense)),
      sparse_(std::move(sparse)),
      patterns_(std::move(patterns)),
      pattern_table_(std::move(pattern_table)),
      bias_(bias) {
  normal_.resize(4096);
  for (int i = 0; i < 4096; ++i)
    normal_[i] = static_cast<float>(normal_quantile((i + 0.5) / 4096.0));
  normal_cdf_.resize(4097);
  for (int i = 0; i <= 4096; ++i)
    normal_cdf_[i] = static_cast<float>(0.5 * std::erfc(-(i * 12.0 / 4096.0 - 6.0) * M_SQRT1_2));
  log1p_.resize(8192);
  for (int i = 0; i < 8192; ++i)
    log1p_[i] = static_cast<float>(std::log(static_cast<double>(i) + 1));
  for (const SparseColumn& column : sparse_) interactions_ |= column.interaction != 0;
  // Parents before children.
  std::vector<bool> placed(sparse_.size());
  while (order_.size() < sparse_.size()) {
    const size_t before = order_.size();
    for (size_t c = 0; c < sparse_.size(); ++c) {
      const int parent = sparse_[c].parent;
      if (placed[c] || (parent >= 0 && !placed[parent])) continue;
      placed[c] = true;
      order_.push_back(static_cast<int>(c));
    }
    if (order_.size() == before)
      throw std::invalid_argument("the columns' dependences form a circle");
  }
}

void Generator::sparse_column(int c, int64_t start, int n, Chunk* work) const {
  const SparseColumn& column = sparse_[c];
  const uint64_t draw_key = stream_key(seed_, kIdDraw + c);
  const uint64_t choice_key = stream_key(seed_, kIdChoice + c);
  const uint64_t scatter_key = stream_key(seed_, kIdScatter + c);
  const uint64_t missing_bit = 1ULL << (kMaxDense + c);
  const bool drifts = !column.partner_odds.empty() || column.fleeting > 0;
  const double inverse_rows = 1.0 / static_cast<double>(total_rows_);
  draw_hashes(draw_key, start, n, work->draws);
  for (int r = 0; r < n; ++r) {
    if (work->missing[r] & missing_bit) {
      work->full_id[c][r] = work->id[c][r] = 0;
      continue;
    }
    const uint64_t row = static_cast<uint64_t>(start + r);
    uint64_t choice = 0;
    double within = 0;
    uint32_t cell = 0;
    bool linked = column.parent >= 0 && work->full_id[column.parent][r] != 0;
    if (linked && column.strength < 1) {
      choice = hash(choice_key, row);
      linked = static_cast<double>(choice >> 40) * 0x1.0p-24 < column.strength;
    }
    const uint32_t parent_cell = linked ? work->cell[column.parent][r] : 0;
    const int32_t assigned = linked ? column.assigned[parent_cell] : kUnlinked;
    if (assigned != kUnlinked) {
      const uint32_t parent_id = work->full_id[column.parent][r];
      if (assigned >= 0) {
        cell = static_cast<uint32_t>(assigned);
      } else {
        const uint32_t in_cell = parent_id - sparse_[column.parent].cells[parent_cell].first;
        double place = column.place[parent_cell] + column.place_step[parent_cell] * (in_cell + 0.5);
        if (assigned == kScattered) {
          const uint64_t h = hash(scatter_key, parent_id);
          if (unit(h) >= column.kept_rare) place = unit(mix(h)) * column.scatter_end;
        }
        cell = column.residual.find(std::min(place, 0x1.fffffffffffffp-1), &within);
      }
    } else {
      cell = column.marginal.find(unit(work->draws[r]), &within);
      if (drifts) {
        if (choice == 0) choice = hash(choice_key, row);
        const double time = (static_cast<double>(row) + 0.5) * inverse_rows;
        if (cell < column.partner_odds.size()) {
          const double odds = column.partner_odds[cell] * (2 * time - 1);
          if (static_cast<double>(choice & 0xfffff) * 0x1.0p-20 < odds) cell ^= 1;
        } else if (static_cast<double>((choice >> 20) & 0xfffff) * 0x1.0p-20 < column.fleeting &&
                   column.cells[cell].width >= 16) {
          within = time * (1 - column.window) + column.window * within;
        }
      }
    }
    const Cell& run = column.cells[cell];
    const uint32_t full = run.first + static_cast<uint32_t>(within * run.width);
    work->cell[c][r] = cell;
    work->full_id[c][r] = full;
    work->id[c][r] = (full <= column.ids ? full : 1 + (full - 1) % column.ids) - column.shift;
  }
}

void Generator::dense_rows(int64_t start, int n, Chunk* work, const RowsOut& out) const {
  // Five 12-bit parts of a hash make five normals: the common factors first, then each column's
  // own.
  for (int h = 0; h < 5; ++h)
    draw_hashes(stream_key(seed_, kDenseNoise + h), start, n, work->normal_bits[h]);
  const auto normals = [&](int i, float scale, float* to) {
    take_normals(normal_.data(), work->normal_bits[i / 5], 12 * (i % 5), scale, n, to);
  };
  for (int k = 0; k < kFactors; ++k) normals(k, 1.0f, work->factors[k]);
  const int columns = dense_columns();
  for (int j = 0; j < columns; ++j) {
    const DenseColumn& column = dense_[j];
    normals(kFactors + j, column.noise, work->place);
    for (int k = 0; k < kFactors; ++k)
      add_scaled(work->factors[k], column.loadings[k], n, work->place);
    if (column.tied_to >= 0 && column.tie != 0)
      add_effects(stream_key(seed_, kDenseTie + j), column.tie, work->full_id[column.tied_to], n,
                  work->place);
    normal_cdf(normal_cdf_.data(), kQuantiles, n, work->place);
    for (int r = 0; r < n; ++r) {
      float* dense = out.dense ? out.dense + int64_t{r} * columns + j : nullptr;
      int32_t* integer = out.integers ? out.integers + int64_t{r} * columns + j : nullptr;
      if (work->missing[r] >> j & 1) {
        work->logit[r] += column.missing_effect;
        if (dense) *dense = 0;
        if (integer) *integer = kMissing;
        continue;
      }
      const float place = work->place[r];
      const int step = std::min(static_cast<int>(place), kQuantiles - 1);
      const int32_t low = column.quantiles[step];
      const int64_t gap = int64_t{column.quantiles[step + 1]} - low;
      const float part = std::clamp(place - static_cast<float>(step), 0.0f, 0.99999994f);
      const int32_t x =
          gap <= 1 ? low : low + static_cast<int32_t>(static_cast<double>(part) * gap);
      work->logit[r] += column.effects[step];
      if (integer) *integer = x;
      if (dense)
        *dense = x <= 0     ? 0.0f
                 : x < 8192 ? log1p_[x]
                            : static_cast<float>(std::log(static_cast<double>(x) + 1));
    }
  }
}

void Generator::effects(int n, Chunk* work) const {
  for (int c = 0; c < sparse_columns(); ++c)
    if (sparse_[c].effect != 0)
      add_effects(stream_key(seed_, kIdEffect + c), sparse_[c].effect, work->id[c], n, work->logit);
  if (!interactions_) return;
  std::fill_n(work->latent_sum, kLatent * kChunk, 0.0f);
  std::fill_n(work->latent_squares, kChunk, 0.0f);
  for (int c = 0; c < sparse_columns(); ++c)
    if (sparse_[c].interaction != 0)
      add_latent(stream_key(seed_, kIdLatent + c), sparse_[c].interaction, work->id[c], n,
                 work->latent_sum, work->latent_squares);
  // The sum over pairs of columns of <v_a, v_b>, as in a factorization machine.
  for (int r = 0; r < n; ++r) {
    float twice = -work->latent_squares[r];
    for (int k = 0; k < kLatent; ++k)
      twice += work->latent_sum[k * kChunk + r] * work->latent_sum[k * kChunk + r];
    work->logit[r] += 0.5f * twice;
  }
}

void Generator::labels(int64_t start, int n, const Chunk& work, const RowsOut& out,
                       Scores* scores) const {
  const uint64_t key = stream_key(seed_, kLabel);
  constexpr float kEdge = kLogitLimit * 0.999999f;
  for (int r = 0; r < n; ++r) {
    const float logit = std::clamp(work.logit[r], -kEdge, kEdge);
    const double p = 1.0 / (1.0 + std::exp(-static_cast<double>(logit)));
    const bool positive = unit(hash(key, static_cast<uint64_t>(start + r))) < p;
    if (out.labels) out.labels[r] = positive;
    if (out.probabilities) out.probabilities[r] = p;
    if (scores) {
      const auto bin = static_cast<int64_t>((logit + kLogitLimit) * (kBins / (2 * kLogitLimit)));
      ++(positive ? scores->positives : scores->negatives)[bin];
    }
  }
}

void Generator::chunk(int64_t start, int n, Chunk* work, const RowsOut& out, Scores* scores) const {
  draw_hashes(stream_key(seed_, kPattern), start, n, work->draws);
  for (int r = 0; r < n; ++r) {
    double within;
    work->missing[r] = patterns_[pattern_table_.find(unit(work->draws[r]), &within)].missing;
    work->logit[r] = bias_;
  }
  const int columns = sparse_columns();
  for (int c : order_) sparse_column(c, start, n, work);
  if (out.sparse)
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < columns; ++c)
        out.sparse[int64_t{r} * columns + c] = static_cast<int32_t>(work->id[c][r]);
  dense_rows(start, n, work, out);
  effects(n, work);
  labels(start, n, *work, out, scores);
}

}  // namespace recsys_opt::synth
