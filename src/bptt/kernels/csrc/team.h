// Threads: torch's own pool, and members of a team that wait for each other inside a loop over time.
#pragma once
#include <atomic>
#include <chrono>
#include <memory>
#include <new>
#include <thread>
#include "problem.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bptt {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// A barrier: each member says how far it is, and waits until all are there. Who waits long sleeps, since another process
// may have taken the core from the one that is waited for.
class Team {
 public:
  explicit Team(int members) : members_(members), marks_(new Mark[members]) {}

  // Members [first, last), which this thread plays, have come to their next meeting.
  void meet(int first, int last, int64_t meeting) {
    for (int i = first; i < last; ++i) marks_[i].at.store(meeting, std::memory_order_release);
    for (int i = 0; i < members_; ++i)
      for (int spins = 0; marks_[i].at.load(std::memory_order_acquire) < meeting; ++spins) {
        if (spins < 4000) relax();
        else std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
  }

 private:
  struct alignas(64) Mark { std::atomic<int64_t> at{0}; };
  int members_;
  std::unique_ptr<Mark[]> marks_;
};

// work(begin, end) over parts of [0, count), at most one part a thread and all at the same time. What it may throw is
// bad_alloc alone; torch makes a number of it.
template <class F> void parallel(bptt_parallel_for torch, int64_t count, F work) {
  if (count <= 1) return work(int64_t(0), count);
  auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); };
  if (torch(0, count, 1, call, &work)) throw std::bad_alloc();
}

}  // namespace bptt
