// Working memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bptt {

// These bytes will all be written: let them come in huge pages. A fresh page of 4 KB costs as much as computing what it holds.
inline void expect(void* begin, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Blocks of memory that a thread gave back, for its next call: from the system they would come as fresh pages.
class Reserve {
 public:
  static Reserve& of_this_thread() {
    thread_local Reserve reserve;
    return reserve;
  }
  ~Reserve() {
    for (const Block& block : blocks_) std::free(block.data);
  }
  void* take(size_t bytes) {
    for (size_t i = 0; i < blocks_.size(); ++i)
      if (blocks_[i].bytes >= bytes && blocks_[i].bytes <= 2 * bytes) {
        void* data = blocks_[i].data;
        held_ -= blocks_[i].bytes;
        blocks_.erase(blocks_.begin() + i);
        return data;
      }
    return nullptr;
  }
  bool keep(void* data, size_t bytes) {
    if (held_ + bytes > kMost || blocks_.size() >= 32) return false;
    blocks_.push_back({data, bytes});
    held_ += bytes;
    return true;
  }

 private:
  static constexpr size_t kMost = 8 << 20;
  struct Block { void* data; size_t bytes; };
  std::vector<Block> blocks_;
  size_t held_ = 0;
};

// n numbers, uninitialized, aligned to a cache line.
template <class S> class Buffer {
 public:
  S* data;
  explicit Buffer(int64_t n) : data(nullptr), bytes_((n * sizeof(S) + 63) / 64 * 64) {
    if (!n) return;
    data = static_cast<S*>(Reserve::of_this_thread().take(bytes_));
    if (!data) data = static_cast<S*>(std::aligned_alloc(64, bytes_));
    if (!data) throw std::bad_alloc();
    expect(data, bytes_);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
    if (data && !Reserve::of_this_thread().keep(data, bytes_)) std::free(data);
  }
  operator S*() const { return data; }

 private:
  size_t bytes_;
};

}  // namespace bptt
