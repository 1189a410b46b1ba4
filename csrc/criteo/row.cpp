#include "criteo/row.h"

#include <charconv>
#include <cstring>
#include <string_view>
#include <vector>

namespace criteo {
namespace {

constexpr uint64_t kOnes = 0x0101010101010101u;

inline uint64_t load8(const char* p) {
  uint64_t x;
  std::memcpy(&x, p, 8);
  return x;
}

// Eight hexadecimal digits at once, byte-wise in one register. `bad` becomes non-zero where a byte
// is none.
inline uint32_t hex8(uint64_t x, uint64_t& bad) {
  const uint64_t letter = (x >> 6) & kOnes;                       // bit 6: 'A'-'F', 'a'-'f'
  const uint64_t digit = (x & (0x0f * kOnes)) + 9 * letter;       // 0..15, or up to 24 for 'g'..'o'
  const uint64_t over_nine = ((digit + 6 * kOnes) >> 4) & kOnes;  // 1 where digit > 9
  const uint64_t spelled = digit + 0x30 * kOnes + 39 * over_nine;  // the lower-case digit again
  bad |= (spelled ^ (x | (letter << 5))) | (digit & (0xf0 * kOnes));
  uint64_t v = __builtin_bswap64(digit);
  v = (v | (v >> 4)) & 0x00ff00ff00ff00ffu;
  v = (v | (v >> 8)) & 0x0000ffff0000ffffu;
  return static_cast<uint32_t>(v | (v >> 16));
}

// The value of up to 7 decimal digits at `p`; sets `length`, 8 where there are more.
inline uint64_t decimal7(const char* p, int& length) {
  const uint64_t x = load8(p) ^ (0x30 * kOnes);
  const uint64_t other =
      ((x + 0x76 * kOnes) | x) & (0x80 * kOnes);  // its lowest byte: the first non-digit
  if (other == 0) {
    length = 8;
    return 0;
  }
  length = __builtin_ctzll(other) >> 3;
  uint64_t d = (x << 8) << (56 - 8 * length);  // digits at the top, zeros in front
  d = d * 10 + (d >> 8);
  return (((d & 0x000000ff000000ffu) * 0x000f424000000064u) +
          (((d >> 16) & 0x000000ff000000ffu) * 0x0000271000000001u)) >>
         32;
}

std::string quoted(std::string_view field) {
  constexpr size_t kShown = 40;
  std::string text = "'";
  for (const char c : field.substr(0, kShown)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      constexpr char kHex[] = "0123456789abcdef";
      text += {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else {
      text += c;
    }
  }
  text += field.size() > kShown ? "'... (" + std::to_string(field.size()) + " bytes)" : "'";
  return text;
}

std::string parse_integer(std::string_view field, int column, Row& row) {
  if (field.empty()) {
    row.missing_integers |= 1u << column;
    row.integers[column] = 0;
    return "";
  }
  const auto [end, error] =
      std::from_chars(field.data(), field.data() + field.size(), row.integers[column]);
  const std::string where = "column I" + std::to_string(column + 1) + " is " + quoted(field);
  if (error == std::errc::result_out_of_range) return where + ", beyond 64 bits";
  if (error != std::errc() || end != field.data() + field.size()) return where + ", not an integer";
  return "";
}

std::string parse_value(std::string_view field, int column, Row& row) {
  if (field.empty()) {
    row.missing_values |= 1u << column;
    row.values[column] = 0;
    return "";
  }
  const auto [end, error] =
      std::from_chars(field.data(), field.data() + field.size(), row.values[column], 16);
  if (field.size() != 8 || error != std::errc() || end != field.data() + field.size())
    return "column C" + std::to_string(column + 1) + " is " + quoted(field) +
           ", not 8 hexadecimal digits";
  return "";
}

}  // namespace

std::string long_line() {
  return "the line is longer than " + std::to_string(kMaxLineBytes) + " bytes";
}

const char* parse_line(const char* p, bool labelled, Row& row) {
  uint64_t bad = 0;
  row.label = 0;
  if (labelled) {
    row.label = p[0] - '0';
    if ((row.label & ~1) != 0 || p[1] != '\t') return nullptr;
    p += 2;
  }
  uint32_t missing = 0;
  for (int i = 0; i < kIntegers; ++i) {
    const int negative = *p == '-';
    p += negative;
    int length;
    uint64_t value = decimal7(p, length);
    if (length == 8) [[unlikely]] {
      value = 0;
      length = 0;
      while (length < 18 && static_cast<unsigned char>(p[length] - '0') < 10)
        value = value * 10 + static_cast<unsigned>(p[length++] - '0');
    }
    bad |=
        static_cast<uint64_t>(p[length] != '\t') | static_cast<uint64_t>(negative & (length == 0));
    if (bad) return nullptr;  // also keeps the next load inside this line and its padding
    missing |= static_cast<uint32_t>(length == 0) << i;
    row.integers[i] = negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
    p += length + 1;
  }
  row.missing_integers = missing;
  missing = 0;
  for (int c = 0; c < kValues; ++c) {
    const char separator = c + 1 < kValues ? '\t' : '\n';
    if (*p == separator) {
      missing |= 1u << c;
      row.values[c] = 0;
      p += 1;
    } else {
      row.values[c] = hex8(load8(p), bad);
      if (bad || p[8] != separator) return nullptr;
      p += 9;
    }
  }
  row.missing_values = missing;
  return p;
}

std::string parse_line_strictly(const char* begin, const char* end, bool labelled, Row& row) {
  std::string_view line(begin, static_cast<size_t>(end - begin));
  if (end - begin > kMaxLineBytes) return long_line();
  if (line.ends_with('\r')) line.remove_suffix(1);
  if (line.starts_with("\xef\xbb\xbf"))
    return "the line begins with a UTF-8 byte order mark (ef bb bf); remove these 3 bytes";
  std::vector<std::string_view> fields;
  for (size_t start = 0;;) {
    const size_t tab = line.find('\t', start);
    fields.push_back(line.substr(start, tab == line.npos ? line.npos : tab - start));
    if (tab == line.npos) break;
    start = tab + 1;
  }
  const size_t wanted = static_cast<size_t>(labelled) + kIntegers + kValues;
  if (fields.size() != wanted) {
    std::string found = "it has " + std::to_string(fields.size()) + " column" +
                        (fields.size() == 1 ? "" : "s") + ", not " + std::to_string(wanted);
    return fields.size() == 1 ? found + ": " + quoted(line) : found;
  }
  row.label = 0;
  row.missing_integers = row.missing_values = 0;
  size_t next = 0;
  if (labelled) {
    const std::string_view label = fields[next++];
    if (label != "0" && label != "1") return "the label is " + quoted(label) + ", not 0 or 1";
    row.label = label == "1";
  }
  for (int i = 0; i < kIntegers; ++i)
    if (std::string found = parse_integer(fields[next++], i, row); !found.empty()) return found;
  for (int c = 0; c < kValues; ++c)
    if (std::string found = parse_value(fields[next++], c, row); !found.empty()) return found;
  return "";
}

}  // namespace criteo
