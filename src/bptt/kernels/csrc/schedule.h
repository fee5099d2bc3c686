// How a layer's work is divided: into groups of sequences, a group's units among its workers, the steps into blocks.
//
// A group runs its sequences through all steps and needs no other group. Its workers each compute some of the units and
// wait for each other once a step. Steps go by blocks, so that what one part of the work leaves the next still finds in
// the cache:
//
//   forward    zx of the block's rows, one product; then step by step zh, added to it, and the pointwise function
//   backward   step by step dz, and dh = dz W_hh; then for the block's rows the products for dW_ih, dW_hh, db and dx
#pragma once
#include "layer.h"
#include "threads.h"

namespace bptt::BPTT_ISA {
namespace {

// A core's second-level cache.
constexpr int64_t kL2Bytes = 1 << 20;
// Minimum cycles of a step before splitting its units among workers pays for the barrier.
constexpr int64_t kMinStepCyclesToSplitUnits = 1000;
// Minimum cycles of work before waking a thread for it pays.
constexpr int64_t kMinCyclesToWakeThread = 15000;

// What one thread does in a loop over time: sequences [first, last) of the batch, some of the units and some of the
// outputs.
struct WorkerSlice {
  const Barrier barrier;
  const int worker, worker_end;  // of the group: usually one; all that this thread plays
  const int64_t thread;
  const int64_t first, last, unit, unit_end, output, output_end;
  mutable int64_t epoch = 0;

  void wait() const { barrier.wait(worker, worker_end, ++epoch); }
};

// Adjacent gates whose zx, and whose zh, are one product.
struct GateGroup {
  int64_t first, count, panel_width;
};

template <class W> class Schedule {
 public:
  using S = Sum<W>;
  const int64_t workers;  // of a group
  const int64_t groups;
  const Panels<S> units, outputs;

  Schedule(Memory& memory, const Layer<W>& layer, bptt_parallel_for pool)
      : workers(choose_workers(layer)), groups(least(layer.p.threads / workers, layer.p.batch)),
        units(layer.U, workers), outputs(layer.P, workers), l(layer), pool_(pool),
        joined_panel_width_(Panels<S>((layer.G - layer.cell.separate_gates) * layer.U, 1).panel_width),
        scratch_width_(scratch_width(layer)), scratch_(memory, layer.p.threads * scratch_width_) {}

  // Where a thread rounds its left-hand sides to bfloat16.
  W* scratch(int64_t thread) const { return scratch_ + thread * scratch_width_; }

  // Threads that are worth waking for that many cycles.
  int64_t threads_for(int64_t cycles) const {
    return most<int64_t>(1, least(l.p.threads, cycles / kMinCyclesToWakeThread));
  }

  // As `parallel` of threads.h, on this layer's pool.
  template <class F> void run_parallel(int64_t count, F work) const { parallel(pool_, count, work); }

  // Rows of a block: all, or about as many as fit the cache, but at least one step.
  int64_t block_rows() const { return most(l.p.batch, least(l.N, kL2Bytes / int64_t(sizeof(S) * l.G * l.U))); }

  // All gates that are not separate go together, but each alone where workers share their units.
  int64_t gate_groups() const { return joins_gates() ? 1 + l.cell.separate_gates : l.G; }
  GateGroup gate_group(int64_t i) const {
    const int64_t joined = l.G - l.cell.separate_gates;
    if (!joins_gates()) return {i, 1, units.panel_width};
    if (i == 0) return {0, joined, joined_panel_width_};
    return {joined + i - 1, 1, units.panel_width};
  }
  // The columns of a gate group's product that are a worker's.
  Columns columns(const GateGroup& group, const WorkerSlice& slice, bool backwards = false) const {
    return group.count > 1 ? Columns{0, group.count * l.U, backwards} : Columns{slice.unit, slice.unit_end, backwards};
  }

  // One past the last of a worker's sequences that have a row at step t.
  int64_t end(const WorkerSlice& slice, int64_t t) const { return least(slice.last, l.sequences(t)); }
  void wait(const WorkerSlice& slice) const {
    if (workers > 1) slice.wait();
  }

  // Calls work(slice) for the rows of steps [first, last) and all units, all slices at the same time.
  template <class F> void run_on_workers(int64_t first, int64_t last, F work) const {
    Memory memory;
    Buffer<int64_t> rows(memory, groups + 1);
    partition_rows(first, last, rows);
    Buffer<Barrier::Epoch> epochs(memory, groups * workers);
    epochs.zero();
    auto run = [&](int64_t begin, int64_t end) {
      // A thread that got several numbers (nested calls, fewer threads than wanted) plays all these workers at once.
      for (int64_t g = begin / workers; g * workers < end && g < groups; ++g) {
        const int64_t worker = most<int64_t>(begin - g * workers, 0), worker_end = least(end - g * workers, workers);
        work(WorkerSlice{Barrier(epochs + g * workers, int(workers)), int(worker), int(worker_end),
                         g * workers + worker, rows[g], rows[g + 1], units.begin(worker), units.begin(worker_end),
                         outputs.begin(worker), outputs.begin(worker_end)});
      }
    };
    const bool alone = l.p.steps * step_cycles(l) < 2 * kMinCyclesToWakeThread;
    if (alone) run(0, groups * workers);
    else parallel(pool_, groups * workers, run);
  }

 private:
  const Layer<W>& l;
  const bptt_parallel_for pool_;
  const int64_t joined_panel_width_, scratch_width_;
  const Buffer<W> scratch_;

  bool joins_gates() const { return workers == 1 && l.G > l.cell.separate_gates; }

  static int64_t scratch_width(const Layer<W>& l) {
    if (kPer<W> == 1) return 0;
    return kRoundedRows * most(elements<W>(l.D) + elements<W>(l.P), elements<W>(l.G * l.U));
  }

  // About how many cycles a step's recurrent product takes on one core.
  static int64_t step_cycles(const Layer<W>& l) {
    return l.mean_sequences() * l.G * l.U * round_up<S>(l.P) / kLanes<S>;
  }

  // Workers of a group: as few as leave each group enough sequences for full tiles, in the mean of all steps, and each
  // worker weights that fit its cache; one where a step is shorter than what the barrier costs.
  static int64_t choose_workers(const Layer<W>& l) {
    const int64_t threads = l.p.threads, bytes = l.weight_bytes(l.G * l.U, l.P);
    for (int64_t workers = 1; workers < threads; ++workers) {
      const bool fills_tiles = l.mean_sequences() * workers >= threads * kMR;
      if (threads % workers == 0 && fills_tiles && bytes / workers <= kL2Bytes / 4) return workers;
    }
    return step_cycles(l) < kMinStepCyclesToSplitUnits ? 1 : least(threads, l.U / kLanes<S>);
  }

  // Where each group's sequences begin, and where the last one's end, so that steps [first, last) give each about as
  // much to do.
  void partition_rows(int64_t first, int64_t last, int64_t* starts) const {
    const int64_t rows = l.offset(last) - l.offset(first), sequences = l.sequences(first);
    int64_t group = 1, done = 0;
    starts[0] = 0;
    for (int64_t r = 0, end = last; r < sequences; ++r) {
      while (l.sequences(end - 1) <= r) --end;
      const int64_t length = end - first;
      for (; group < groups && (2 * done + length) * groups >= 2 * rows * group; ++group) starts[group] = r;
      done += length;
    }
    for (; group <= groups; ++group) starts[group] = sequences;
  }
};

}  // namespace
}  // namespace bptt::BPTT_ISA
