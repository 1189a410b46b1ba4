#pragma once
// Arrays of scratch memory that are not cleared when made, and whose memory is kept for the next
// call: giving megabytes back to the system and faulting them in again costs more than some of the
// kernels.
#include <cstdint>
#include <type_traits>
#include <utility>

namespace recsys_opt::tt {

void* take_memory(int64_t bytes);
void give_memory(void* memory, int64_t bytes);

template <typename T>
class Array {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  Array() = default;
  explicit Array(int64_t size)
      : data_(static_cast<T*>(take_memory(size * sizeof(T)))), size_(size) {}
  Array(Array&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Array& operator=(Array&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Array() {
    if (data_) give_memory(data_, size_ * sizeof(T));
  }

  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  T* data() { return data_; }
  const T* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace recsys_opt::tt
