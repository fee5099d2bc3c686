// Working memory.
#pragma once
#include "isa.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bptt {
[[noreturn]] void throw_bad_alloc();  // api.cpp
}

namespace bptt::BPTT_ISA {
namespace {

// Asks for huge pages for bytes that will all be written. A fresh page of 4 KB costs as much as computing what it
// holds.
inline void advise_huge_pages(void* begin, int64_t bytes) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(begin) + bytes) / kHuge * kHuge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// Memory from a pool or the system.
struct Block {
  void* data = nullptr;
  size_t bytes = 0;
};

// Blocks that this thread gave back, kept for its next call: from the system they would come as fresh pages.
class ThreadLocalPool {
 public:
  static ThreadLocalPool& of_this_thread() {
    thread_local ThreadLocalPool pool;
    return pool;
  }
  ~ThreadLocalPool() {
    for (int i = 0; i < count_; ++i) std::free(blocks_[i].data);
  }

  // The smallest block of at least `bytes` and at most twice that, or none. Of equal blocks the one given back last: as
  // they are given back in reverse order, each buffer gets its own of the previous call, whose pages are in the caches.
  Block take(size_t bytes) {
    int best = -1;
    for (int i = 0; i < count_; ++i) {
      const bool fits = blocks_[i].bytes >= bytes && blocks_[i].bytes <= 2 * bytes;
      if (fits && (best < 0 || blocks_[i].bytes <= blocks_[best].bytes)) best = i;
    }
    return best < 0 ? Block{} : remove(best);
  }

  // False where the pool is full; the block then stays the caller's.
  bool give_back(const Block& block) {
    if (held_bytes_ + block.bytes > kMaxBytes || count_ == kMaxBlocks) return false;
    blocks_[count_++] = block;
    held_bytes_ += block.bytes;
    return true;
  }

 private:
  static constexpr size_t kMaxBytes = 8 << 20;
  static constexpr int kMaxBlocks = 32;
  Block blocks_[kMaxBlocks];  // in the order in which they were given back
  int count_ = 0;
  size_t held_bytes_ = 0;

  Block remove(int i) {
    const Block block = blocks_[i];
    for (--count_; i < count_; ++i) blocks_[i] = blocks_[i + 1];
    held_bytes_ -= block.bytes;
    return block;
  }
};

// Hands out memory; or, for `bptt_workspace_bytes`, only adds up how much would be handed out.
class Memory {
 public:
  enum class Mode { allocates, only_counts };
  explicit Memory(Mode mode = Mode::allocates) : mode_(mode) {}
  int64_t counted_bytes() const { return counted_; }
  void count(int64_t bytes) { counted_ += bytes; }

  // At least `bytes`, aligned to a cache line, uninitialized; none where it only counts.
  Block take(size_t bytes) {
    if (mode_ == Mode::only_counts) return count(bytes), Block{};
    Block block = ThreadLocalPool::of_this_thread().take(bytes);
    if (!block.data) block = {std::aligned_alloc(64, bytes), bytes};
    if (!block.data) throw_bad_alloc();
    advise_huge_pages(block.data, bytes);
    return block;
  }

 private:
  const Mode mode_;
  int64_t counted_ = 0;
};

// n plain numbers or structs, uninitialized, aligned to a cache line.
template <class T> class Buffer {
 public:
  Buffer(Memory& memory, int64_t n) : bytes_((n * sizeof(T) + 63) / 64 * 64) {
    if (n) block_ = memory.take(bytes_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data() && !ThreadLocalPool::of_this_thread().give_back(block_)) std::free(data());
  }
  T* data() const { return static_cast<T*>(block_.data); }
  operator T*() const { return data(); }
  void zero() {
    if (data()) std::memset(block_.data, 0, bytes_);
  }

 private:
  Block block_;
  const size_t bytes_;  // that are used
};

// Small stand-ins for the standard library's (isa.h says why).
template <class T> inline T least(T a, T b) { return b < a ? b : a; }
template <class T> inline T most(T a, T b) { return a < b ? b : a; }
template <class S> inline void copy(S* to, const S* from, int64_t n) {
  if (n > 0) std::memcpy(to, from, n * sizeof(S));
}
template <class S> inline void fill_zero(S* to, int64_t n) {
  if (n > 0) std::memset(to, 0, n * sizeof(S));
}

}  // namespace
}  // namespace bptt::BPTT_ISA
