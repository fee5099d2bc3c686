// A layer backward: the loop over time, from the last step to the first, and after each block of steps the products
// over its rows. Eq. (20) of docs/equations.md.
#pragma once
#include "forward.h"
#include "weight_gradient.h"

namespace bptt::BPTT_ISA {
namespace {

template <class W> class Backward {
 public:
  using S = Sum<W>;
  Backward(Memory& memory, const Layer<W>& layer, const Schedule<W>& schedule)
      : l(layer), p(layer.p), schedule_(schedule), most_rows_(schedule.block_rows()), replays_(layer.G > 1 && !p.gates),
        P_padded(round_up<S>(layer.P)), block_(memory, layer, most_rows_), dh_(memory, p.batch * P_padded),
        dc_(memory, layer.has_c() ? p.batch * layer.U : 0), d_raw_(memory, p.projected ? p.batch * layer.U : 0),
        gates_(memory, replays_ ? most_rows_ * layer.gates_width() : 0),
        w_hh_(memory, Packed<W>::size(layer.G * layer.U, layer.P)),
        w_ih_(memory, p.d_x ? Packed<W>::size(layer.G * layer.U, layer.D) : 0),
        w_hr_(memory, p.projected ? Packed<W>::size(layer.P, layer.H) : 0),
        row_lists_(memory, replays_ ? p.threads : 0, most_rows_), operands_(memory, layer, schedule, replays_),
        weight_gradient_(memory, layer, schedule, block_) {}

  void run() {
    if (replays_) operands_.pack();
    pack_weights();
    begin_with_final_state();
    for (int64_t i = p.steps; i > 0;) {
      const int64_t stop = i;
      i = begin_block(stop);
      const int64_t first_step = least(l.step_at(i), l.step_at(stop - 1));
      block_.first_row = l.offset(first_step);
      schedule_.run_on_workers(first_step, first_step + stop - i,
                               [&](const WorkerSlice& slice) { run_block(i, stop, slice); });
      weight_gradient_.add_block();
      if (p.d_x) add_to_inputs();
    }
    weight_gradient_.finish();
    hand_out_initial_state();
  }

 private:
  const Layer<W>& l;
  const bptt_problem& p;
  const Schedule<W>& schedule_;
  const int64_t most_rows_;
  const bool replays_;  // the forward kept no gates: they are computed again, block by block
  const int64_t P_padded;
  BackwardBlock<W> block_;
  // The gradient of the state, from step to step: with respect to that after the step, then to that before it.
  Buffer<S> dh_;           // B,P padded
  Buffer<S> dc_;           // B,U
  const Buffer<S> d_raw_;  // B,U  of h before the projection
  const Buffer<S> gates_;  // of the block, where they are computed again
  const Buffer<W> w_hh_, w_ih_, w_hr_;
  const RowLists<S> row_lists_;
  Operands<W> operands_;
  WeightGradient<W> weight_gradient_;

  Packed<W> to_h_before() const { return {w_hh_, l.G * l.U, l.P, schedule_.outputs.panel_width}; }
  Packed<W> to_x() const { return {w_ih_, l.G * l.U, l.D, Panels<S>(l.D, 1).panel_width}; }
  Packed<W> to_raw() const { return {w_hr_, l.P, l.H, schedule_.units.panel_width}; }

  // ---- Before and after the loop

  void pack_weights() const {
    const int64_t packers = schedule_.threads_for(l.G * l.H * (l.P + (p.d_x ? l.D : 0)) / 4);
    schedule_.run_parallel(packers, [&](int64_t begin, int64_t end) {
      const int64_t pairs = l.G * l.U / 2, first = pairs * begin / packers * 2, last = pairs * end / packers * 2;
      pack_gate_rows(to_h_before(), p.w_hh, first, last);
      if (p.d_x) pack_gate_rows(to_x(), p.w_ih, first, last);
      if (p.projected && begin == 0) pack_projection();
    });
  }
  // Rows [first, last) of the weights, each gate padded to U with rows of zeros.
  void pack_gate_rows(const Packed<W>& to, const void* weights, int64_t first, int64_t last) const {
    auto row = [&](int64_t k) {
      const int64_t gate = k / l.U, unit = k % l.U;
      return unit < l.H ? l.numbers(weights) + (gate * l.H + unit) * to.columns : l.zeros();
    };
    for (int64_t j = 0; j < to.columns; j += to.panel_width) to.pack_rows(j, first, last, row);
  }
  void pack_projection() const {
    const Packed<W> to = to_raw();
    for (int64_t j = 0; j < l.U; j += to.panel_width)
      to.pack_rows(j, 0, l.P, [&](int64_t k) { return l.numbers(p.w_hr) + k * l.H; });
  }

  void begin_with_final_state() {
    dh_.zero();
    dc_.zero();
    for (int64_t r = 0; r < p.batch; ++r) {
      if (p.d_h_last) copy(dh_ + r * P_padded, l.numbers(p.d_h_last) + r * l.P, l.P);
      if (l.has_c() && p.d_c_last) copy(dc_ + r * l.U, l.numbers(p.d_c_last) + r * l.H, l.H);
    }
  }
  void hand_out_initial_state() const {
    for (int64_t r = 0; r < p.batch; ++r) {
      if (p.d_h0) copy(l.numbers(p.d_h0) + r * l.P, dh_ + r * P_padded, l.P);
      if (l.has_c() && p.d_c0) copy(l.numbers(p.d_c0) + r * l.H, dc_ + r * l.U, l.H);
    }
  }

  // ---- The loop over time

  // Takes as many steps before `stop` as fit a block, at least one; returns the first of them.
  int64_t begin_block(int64_t stop) {
    int64_t i = stop;
    block_.rows = 0;
    do block_.rows += l.sequences(l.step_at(--i));
    while (i > 0 && block_.rows + l.sequences(l.step_at(i - 1)) <= most_rows_);
    return i;
  }

  void run_block(int64_t start, int64_t stop, const WorkerSlice& slice) const {
    if (replays_) {  // each worker its own units: no need to wait for the others
      BlockRows<W> rows(l, row_lists_, slice.thread, gates_, block_.first_row);
      for (int64_t s = start; s < stop; ++s) rows.add(l.step_at(s), slice.first, schedule_.end(slice, l.step_at(s)));
      replay(start, stop, rows, slice, l, schedule_, operands_, ReplayOutput::gates);
    }
    for (int64_t s = stop - 1; s >= start; --s) step(l.step_at(s), slice);
  }

  void step(int64_t t, const WorkerSlice& slice) const {
    const RowRange range{l.offset(t) - block_.first_row + slice.first, schedule_.end(slice, t) - slice.first};
    if (p.projected) through_projection(range, slice);
    for (int64_t i = 0; i < range.count; ++i) pointwise(t, slice.first + i, range.begin + i, slice);
    schedule_.wait(slice);
    auto dh = [&](int64_t i) { return dh_ + (slice.first + i) * P_padded; };
    const auto dz_times_w_hh =
        times([&](int64_t i) { return block_.dz_hidden() + (range.begin + i) * l.G * l.U; }, to_h_before());
    const Columns columns{slice.output, slice.output_end, t % 2 == 1};
    W* const scratch = schedule_.scratch(slice.thread);
    // With separate gates the pointwise part has left in dh what does not pass through W_hh.
    if (l.cell.separate_gates) product(scratch, range.count, columns, dh, dh, dz_times_w_hh);
    else product(scratch, range.count, columns, l.from_zero(), dh, dz_times_w_hh);
    if (p.reset) stop_at_resets(t, range.count, slice);
  }

  // dh of the outputs, then d_raw = dh W_hr.
  void through_projection(RowRange range, const WorkerSlice& slice) const {
    const int64_t width = slice.output_end - slice.output;
    for (int64_t i = 0; i < range.count; ++i) {
      const int64_t row = (block_.first_row + range.begin + i) * l.P + slice.output;
      const S *dh = dh_ + (slice.first + i) * P_padded + slice.output,
              *d_h = p.d_h ? l.numbers(p.d_h) + row : l.zeros();
      S* const sum = block_.dh_projected + (range.begin + i) * P_padded + slice.output;
      for (int64_t j = 0; j < width; ++j) sum[j] = dh[j] + d_h[j];
      if (p.delta_h) copy(l.numbers(p.delta_h) + row, sum, width);
    }
    schedule_.wait(slice);
    product(
        schedule_.scratch(slice.thread), range.count, {slice.unit, slice.unit_end}, l.from_zero(),
        [&](int64_t i) { return d_raw_ + (slice.first + i) * l.U; },
        times([&](int64_t i) { return block_.dh_projected + (range.begin + i) * P_padded; }, to_raw().padded()));
  }

  // Row r of step t, which is row k of the block.
  void pointwise(int64_t t, int64_t r, int64_t k, const WorkerSlice& slice) const {
    const int64_t row = l.offset(t) + r;
    const S* h_before = l.h_before(t, r);
    if (slice.worker == 0) block_.h_before[k] = h_before;
    BackwardRow<S> in{};
    in.gates = p.gates ? l.gates(row) : gates_ + (row - block_.first_row) * l.gates_width();
    in.zh = p.gates ? l.candidate(row) : in.gates + l.G * l.U;
    in.h_before = p.projected ? l.zeros() : h_before;
    in.c_before = l.c_before(t, r);
    in.h = p.projected ? l.zeros() : l.h(row);
    in.c = l.c(row);
    in.dc = dc_ + r * l.U;
    in.dz = block_.dz + k * l.G * l.U;
    in.dz_hidden = block_.dz_hidden() + k * l.G * l.U;
    in.delta_c = p.delta_c ? l.numbers(p.delta_c) + row * l.H : nullptr;
    if (p.projected) {
      in.dh = d_raw_ + r * l.U;
      in.d_output = l.zeros();
      in.raw = block_.raw + k * l.U;
    } else {
      in.dh = dh_ + r * l.U;
      in.d_output = p.d_h ? l.numbers(p.d_h) + row * l.P : l.zeros();
      in.delta_h = p.delta_h ? l.numbers(p.delta_h) + row * l.P : nullptr;
    }
    l.cell.backward(in, {slice.unit, slice.unit_end, l.H, l.U});
  }

  // No gradient passes to the state before a reset.
  void stop_at_resets(int64_t t, int64_t count, const WorkerSlice& slice) const {
    for (int64_t r = slice.first; r < slice.first + count; ++r) {
      if (!p.reset[l.offset(t) + r]) continue;
      fill_zero(dh_ + r * P_padded + slice.output, slice.output_end - slice.output);
      if (l.has_c()) fill_zero(dc_ + r * l.U + slice.unit, slice.unit_end - slice.unit);
    }
  }

  // ---- After the loop of a block

  // dx = dz W_ih, all rows of the block.
  void add_to_inputs() const {
    const int64_t R = block_.rows, threads = schedule_.threads_for(R * l.G * l.U * l.D / kLanes<S>);
    schedule_.run_parallel(threads, [&](int64_t begin, int64_t end) {
      const int64_t first = R * begin / threads, last = R * end / threads;
      product(
          schedule_.scratch(begin), last - first, {0, l.D}, l.from_zero(),
          [&](int64_t k) { return l.numbers(p.d_x) + (block_.first_row + first + k) * l.D; },
          times([&](int64_t k) { return block_.dz + (first + k) * l.G * l.U; }, to_x()));
    });
  }
};

}  // namespace
}  // namespace bptt::BPTT_ISA
