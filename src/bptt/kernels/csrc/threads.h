// Threads: torch's own pool, and a barrier for those that share a loop over time.
#pragma once
#include "isa.h"
#include "memory.h"
#include "problem.h"

#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bptt::BPTT_ISA {
namespace {

inline void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// The workers of a group wait here for each other, once or twice a step: all must run at the same time, as those of one
// call of torch's pool do (it is OpenMP's). Each publishes how often it has arrived, its
// epoch, in a cache line of its own.
class Barrier {
 public:
  struct alignas(64) Epoch {
    int64_t reached;
  };
  Barrier(Epoch* epochs, int workers) : epochs_(epochs), workers_(workers) {}

  // Workers [first, last), whom this thread plays, have arrived for the `epoch`-th time: waits until all others have
  // too.
  void wait(int first, int last, int64_t epoch) const {
    for (int i = first; i < last; ++i) __atomic_store_n(&epochs_[i].reached, epoch, __ATOMIC_RELEASE);
    for (int i = 0; i < workers_; ++i)
      for (int spins = 0; __atomic_load_n(&epochs_[i].reached, __ATOMIC_ACQUIRE) < epoch; ++spins) {
        if (spins < 4000) spin_pause();
        else sleep();  // the awaited thread may have lost its core to another process
      }
  }

 private:
  static void sleep() {
    const timespec twenty_microseconds{0, 20000};
    nanosleep(&twenty_microseconds, nullptr);
  }
  Epoch* const epochs_;
  const int workers_;
};

// Runs work(begin, end) over pieces of [0, count), at most one piece a thread and all at the same time. The work may
// throw bad_alloc alone; torch turns an exception into a number.
template <class F> void parallel(bptt_parallel_for torch, int64_t count, F work) {
  if (count <= 1) return work(int64_t(0), count);
  auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<F*>(context))(begin, end); };
  if (torch(0, count, 1, call, &work)) throw_bad_alloc();
}

}  // namespace
}  // namespace bptt::BPTT_ISA
