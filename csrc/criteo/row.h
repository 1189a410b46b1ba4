// One line of Criteo text -> one Row: [label \t] 13 integers \t 26 values of 8 hexadecimal digits,
// tabs between, an empty field where the value is missing.
#pragma once
#include <cstdint>
#include <string>

namespace criteo {

inline constexpr int kIntegers = 13;
inline constexpr int kValues = 26;
// A longer line is refused unread, so that memory stays bounded whatever the file holds. (The
// fuzzer sets less.)
#ifdef CRITEO_MAX_LINE_BYTES
inline constexpr int64_t kMaxLineBytes = CRITEO_MAX_LINE_BYTES;
#else
inline constexpr int64_t kMaxLineBytes = 64 * 1024;
#endif
// parse_line reads up to this many bytes past the line's end; every buffer has them.
inline constexpr int64_t kPadding = 16;

struct Row {
  int32_t label;              // 0 or 1; 0 for a file without labels
  uint32_t missing_integers;  // bit i: integer i is missing (and integers[i] is 0)
  uint32_t missing_values;    // bit c: value c is missing (and values[c] is 0)
  int64_t integers[kIntegers];
  uint32_t values[kValues];
};

// Parses the line at `p`; its '\n' must exist, and kPadding readable bytes after it. Returns the
// byte after the '\n', or nullptr where the line is not plainly right: parse_line_strictly then
// says whether and why.
const char* parse_line(const char* p, bool labelled, Row& row);

// The definition of the format, slow and complete: [begin, end) is the line without its '\n'. A
// '\r' before the '\n' is accepted; digits may be upper-case. Returns "" and fills `row`, or says
// what was found.
std::string parse_line_strictly(const char* begin, const char* end, bool labelled, Row& row);

// What is said of a line over kMaxLineBytes.
std::string long_line();

}  // namespace criteo
