// libFuzzer harness of the Criteo reader: what Chunker, parse_line and Batch make of a text must
// equal what the slow, simple parser below makes of it, whatever the size of the chunks; and so
// must the counts and ids of its values.
//
//   tests/fuzz/run.sh [seconds]        fuzzes with clang's address and undefined-behaviour
//   sanitizers tests/fuzz/test_reader_fuzz.py     replays corpus/ with g++'s
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "criteo/batch.h"
#include "criteo/chunker.h"
#include "criteo/row.h"
#include "criteo/vocabulary.h"

namespace {

using criteo::kIntegers;
using criteo::kValues;

#define CHECK(condition)                                                           \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

struct Field {
  bool missing = true;
  int64_t number = 0;
};

struct SimpleRow {
  int label = 0;
  std::array<Field, kIntegers> integers;
  std::array<Field, kValues> values;
};

struct Parsed {
  std::vector<SimpleRow> rows;
  std::vector<int64_t> bad_lines;  // from 1
  int64_t lines = 0;
};

bool simple_integer(std::string_view text, bool only_32_bits, Field& field) {
  if (text.empty()) return true;
  const bool negative = text[0] == '-';
  if (text.size() == negative) return false;
  __int128 number = 0;
  for (size_t i = negative; i < text.size(); ++i) {
    if (text[i] < '0' || text[i] > '9') return false;
    number = number * 10 + (text[i] - '0');
    if (number > (__int128{1} << 64)) return false;
  }
  if (negative) number = -number;
  const __int128 limit = __int128{1} << (only_32_bits ? 31 : 63);
  if (number < -limit || number >= limit) return false;
  field = {false, static_cast<int64_t>(number)};
  return true;
}

bool simple_value(std::string_view text, Field& field) {
  if (text.empty()) return true;
  if (text.size() != 8) return false;
  int64_t number = 0;
  for (const char c : text) {
    const char* const digits = "0123456789abcdefABCDEF";
    const char* found = c == '\0' ? nullptr : std::strchr(digits, c);
    if (found == nullptr) return false;
    const int64_t digit = found - digits;
    number = number * 16 + (digit < 16 ? digit : digit - 6);
  }
  field = {false, number};
  return true;
}

bool simple_line(std::string_view line, bool labelled, bool only_32_bits, SimpleRow& row) {
  if (static_cast<int64_t>(line.size()) > criteo::kMaxLineBytes) return false;
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  std::vector<std::string_view> fields;
  fields.reserve(64);
  size_t start = 0;
  for (size_t i = 0; i <= line.size(); ++i) {
    if (i < line.size() && line[i] != '\t') continue;
    fields.push_back(line.substr(start, i - start));
    start = i + 1;
  }
  if (fields.size() != static_cast<size_t>(labelled + kIntegers + kValues)) return false;
  size_t next = 0;
  if (labelled) {
    if (fields[0] != "0" && fields[0] != "1") return false;
    row.label = fields[next++] == "1";
  }
  for (Field& field : row.integers)
    if (!simple_integer(fields[next++], only_32_bits, field)) return false;
  for (Field& field : row.values)
    if (!simple_value(fields[next++], field)) return false;
  return true;
}

Parsed simple_parse(const std::string& text, bool labelled, bool only_32_bits) {
  Parsed parsed;
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    ++parsed.lines;
    SimpleRow row;
    if (simple_line(std::string_view(text).substr(start, end - start), labelled, only_32_bits, row))
      parsed.rows.push_back(row);
    else
      parsed.bad_lines.push_back(parsed.lines);
    start = end + 1;
  }
  return parsed;
}

// Many of the fuzzer's inputs should be nearly right: `steps` are edits of an otherwise right text.
std::string compose(const uint8_t* steps, size_t n, bool labelled) {
  static const std::vector<std::string> kOdd = {"",
                                                "0",
                                                "1",
                                                "-1",
                                                "-",
                                                "7",
                                                "1234567",
                                                "12345678",
                                                "123456789012345678",
                                                "9223372036854775807",
                                                "9223372036854775808",
                                                "-9223372036854775808",
                                                "-9223372036854775809",
                                                "2147483648",
                                                "-2147483649",
                                                "007",
                                                "+1",
                                                "1.5",
                                                " 1",
                                                "00000000",
                                                "ffffffff",
                                                "FFFFFFFF",
                                                "0000000g",
                                                "deadbee",
                                                "deadbeef0",
                                                "0x123456",
                                                std::string("12\00034", 5),
                                                "\xef\xbb\xbf"
                                                "0",
                                                "\r",
                                                "a\rb",
                                                "\t",
                                                "\n",
                                                "\r\n",
                                                "1\n",
                                                "@GO`/:",
                                                "gggggggg",
                                                std::string(700, '0'),
                                                "68fd1e64\t",
                                                "-0",
                                                "99999999"};
  std::vector<std::string> lines;
  size_t at = 0;
  const auto byte = [&] { return at < n ? steps[at++] : uint8_t{0}; };
  const int count = 1 + byte() % 4;
  for (int l = 0; l < count; ++l) {
    std::vector<std::string> fields;
    if (labelled) fields.push_back(l % 2 ? "1" : "0");
    for (int i = 0; i < kIntegers; ++i) fields.push_back(std::to_string(i * i * i * 1000 * l));
    char hex[9];
    for (int c = 0; c < kValues; ++c) {
      std::snprintf(hex, sizeof hex, "%08x",
                    static_cast<unsigned>((c + 1) * (l / 2 + 1)) * 2654435761u);
      fields.emplace_back(hex);
    }
    for (int edits = byte() % 4; edits > 0; --edits)
      fields[byte() % fields.size()] = kOdd[byte() % kOdd.size()];
    if (const uint8_t b = byte(); b < 8) fields.resize(fields.size() - b % 4);
    std::string line;
    for (const std::string& field : fields)
      line += (line.empty() && &field == &fields[0] ? "" : "\t") + field;
    lines.push_back(line);
  }
  const uint8_t ends = byte();
  std::string text;
  for (const std::string& line : lines) text += line + (ends & 1 ? "\r\n" : "\n");
  if (ends & 2) text.pop_back();
  return text;
}

Parsed native_parse(const std::string& text, bool labelled, bool only_32_bits, int64_t chunk_bytes,
                    int64_t piece, criteo::Counts* counts, std::vector<int32_t>& hashed) {
  Parsed parsed;
  int64_t at = 0;
  criteo::Chunker chunker(
      [&](char* to, int64_t n) {
        n = std::min({n, piece, static_cast<int64_t>(text.size()) - at});
        std::memcpy(to, text.data() + at, static_cast<size_t>(n));
        at += n;
        return n;
      },
      chunk_bytes);
  criteo::Batch batch(
      labelled, only_32_bits ? criteo::DenseTransform::kRaw32 : criteo::DenseTransform::kDlrm);
  const std::vector<criteo::HashIds> hashes(kValues, criteo::HashIds(1000));
  criteo::Chunk chunk;
  for (int64_t sequence = 0; chunker.next(chunk); ++sequence) {
    CHECK(chunk.sequence == sequence);
    batch.parse(chunk, false);
    for (size_t i = 0; i < batch.bad.size(); ++i) {
      CHECK(!batch.bad[i].found.empty());
      parsed.bad_lines.push_back(parsed.lines + batch.bad[i].line);
    }
    // Only the first few are kept of each chunk; the rest are told by their number alone.
    for (int64_t i = static_cast<int64_t>(batch.bad.size()); i < batch.bad_lines; ++i)
      parsed.bad_lines.push_back(-1);
    parsed.lines += batch.lines;
    for (int64_t r = 0; r < batch.rows; ++r) {
      SimpleRow row;
      row.label = batch.labels()[r];
      for (int i = 0; i < kIntegers; ++i) {
        uint32_t bits = batch.dense()[r * kIntegers + i];
        row.integers[static_cast<size_t>(i)] = {false, static_cast<int64_t>(bits)};
      }
      for (int c = 0; c < kValues; ++c)
        row.values[static_cast<size_t>(c)] = {((batch.missing()[r] >> c) & 1) != 0,
                                              batch.values()[c * batch.stride() + r]};
      parsed.rows.push_back(row);
    }
    if (counts != nullptr)
      counts->add(batch.values(), batch.stride(), batch.missing(), batch.rows, sequence);
    const int32_t* ids = batch.hashed(hashes);
    hashed.insert(hashed.end(), ids, ids + batch.rows * kValues);
  }
  CHECK(chunker.bytes_read() == static_cast<int64_t>(text.size()));
  return parsed;
}

uint32_t dense_bits(const Field& field, bool only_32_bits) {
  if (only_32_bits) return static_cast<uint32_t>(static_cast<int32_t>(field.number));
  const auto x = static_cast<float>(std::max<int64_t>(field.number, 0));
  const auto log = static_cast<float>(std::log(static_cast<double>(x + 1.0f)));
  uint32_t bits;
  std::memcpy(&bits, &log, sizeof bits);
  return bits;
}

void check_ids(const Parsed& parsed, criteo::Counts& counts) {
  for (int c = 0; c < kValues; ++c) {
    std::map<uint32_t, int64_t> seen;
    for (const SimpleRow& row : parsed.rows)
      if (!row.values[static_cast<size_t>(c)].missing)
        ++seen[static_cast<uint32_t>(row.values[static_cast<size_t>(c)].number)];
    std::vector<std::pair<int64_t, uint32_t>> order;
    for (const auto& [value, n] : seen) order.push_back({-n, value});
    std::sort(order.begin(), order.end());
    const std::vector<uint32_t> ranked = counts.take_ranked(c, 1);
    CHECK(ranked.size() == order.size());
    const criteo::IdTable table(ranked);
    for (size_t r = 0; r < ranked.size(); ++r) {
      CHECK(ranked[r] == order[r].second);
      const uint32_t none_missing = 0;
      int32_t id;
      table.map(&ranked[r], &none_missing, c, 1, &id);
      CHECK(id == criteo::kFirstId + static_cast<int32_t>(r));
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 3) return 0;
  const bool labelled = data[0] & 1;
  const bool only_32_bits = data[0] & 2;
  const bool composed = data[0] & 4;
  const int64_t chunk_bytes = data[1] < 128 ? data[1] + 1 : (data[1] - 127) * 97;
  const int64_t piece = data[2] + 1;
  const std::string text = composed
                               ? compose(data + 3, size - 3, labelled)
                               : std::string(reinterpret_cast<const char*>(data) + 3, size - 3);

  const Parsed expected = simple_parse(text, labelled, only_32_bits);
  const bool counting = data[0] & 8;
  const auto counts = counting ? std::make_unique<criteo::Counts>() : nullptr;
  std::vector<int32_t> hashed;
  const Parsed found =
      native_parse(text, labelled, only_32_bits, chunk_bytes, piece, counts.get(), hashed);
  CHECK(found.lines == expected.lines);
  CHECK(found.bad_lines.size() == expected.bad_lines.size());
  for (size_t i = 0; i < found.bad_lines.size(); ++i)
    CHECK(found.bad_lines[i] == -1 || found.bad_lines[i] == expected.bad_lines[i]);
  CHECK(found.rows.size() == expected.rows.size());
  for (size_t r = 0; r < found.rows.size(); ++r) {
    const SimpleRow &f = found.rows[r], &e = expected.rows[r];
    CHECK(f.label == e.label);
    for (size_t i = 0; i < kIntegers; ++i)
      CHECK(static_cast<uint32_t>(f.integers[i].number) == dense_bits(e.integers[i], only_32_bits));
    for (size_t c = 0; c < kValues; ++c) {
      CHECK(f.values[c].missing == e.values[c].missing && f.values[c].number == e.values[c].number);
      const int32_t id = hashed[r * kValues + c];
      CHECK(e.values[c].missing ? id == criteo::kMissingId : id >= 1 && id < 1000);
    }
  }
  if (counting) check_ids(expected, *counts);
  return 0;
}

#ifdef REPLAY  // a main of our own, for compilers without libFuzzer: runs every file named on the
               // command line
int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    std::FILE* file = std::fopen(argv[i], "rb");
    CHECK(file != nullptr);
    std::vector<uint8_t> bytes(1 << 20);
    bytes.resize(std::fread(bytes.data(), 1, bytes.size(), file));
    std::fclose(file);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  }
  std::printf("%d inputs\n", argc - 1);
}
#endif
