// XXH64 (seed 0) of a stream: identifies the text of a file at memory speed, and `xxh64sum` checks
// it.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace criteo {

class Xxh64 {
 public:
  void update(const char* p, size_t n) {
    total_ += n;
    if (held_ + n < 32) {
      std::memcpy(buffer_ + held_, p, n);
      held_ += n;
      return;
    }
    if (held_ > 0) {
      const size_t taken = 32 - held_;
      std::memcpy(buffer_ + held_, p, taken);
      stripe(buffer_);
      p += taken;
      n -= taken;
    }
    for (; n >= 32; p += 32, n -= 32) stripe(p);
    std::memcpy(buffer_, p, n);
    held_ = n;
  }

  uint64_t digest() const {
    uint64_t h = k5;
    if (total_ >= 32) {
      h = rotate(lanes_[0], 1) + rotate(lanes_[1], 7) + rotate(lanes_[2], 12) +
          rotate(lanes_[3], 18);
      for (const uint64_t lane : lanes_) h = (h ^ round(0, lane)) * k1 + k4;
    }
    h += total_;
    const char* p = buffer_;
    size_t n = held_;
    for (; n >= 8; p += 8, n -= 8) h = rotate(h ^ round(0, load<uint64_t>(p)), 27) * k1 + k4;
    if (n >= 4) {
      h = rotate(h ^ (load<uint32_t>(p) * k1), 23) * k2 + k3;
      p += 4;
      n -= 4;
    }
    for (; n > 0; ++p, --n) h = rotate(h ^ (static_cast<unsigned char>(*p) * k5), 11) * k1;
    h = (h ^ (h >> 33)) * k2;
    h = (h ^ (h >> 29)) * k3;
    return h ^ (h >> 32);
  }

 private:
  static constexpr uint64_t k1 = 0x9e3779b185ebca87u, k2 = 0xc2b2ae3d27d4eb4fu,
                            k3 = 0x165667b19e3779f9u, k4 = 0x85ebca77c2b2ae63u,
                            k5 = 0x27d4eb2f165667c5u;

  template <class T>
  static uint64_t load(const char* p) {
    T x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static uint64_t rotate(uint64_t x, int r) { return (x << r) | (x >> (64 - r)); }
  static uint64_t round(uint64_t lane, uint64_t x) { return rotate(lane + x * k2, 31) * k1; }
  void stripe(const char* p) {
    for (int i = 0; i < 4; ++i) lanes_[i] = round(lanes_[i], load<uint64_t>(p + 8 * i));
  }

  uint64_t lanes_[4] = {k1 + k2, k2, 0, 0 - k1};
  uint64_t total_ = 0;
  char buffer_[32];
  size_t held_ = 0;
};

}  // namespace criteo
