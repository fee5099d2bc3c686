// A layer forward; and its gates from known states, a replay.
#pragma once
#include "operands.h"

namespace bptt::BPTT_ISA {
namespace {

// For each thread, which rows of a block of steps it works on; room for all before the loops, where a worker must not
// fail.
template <class S> class RowLists {
 public:
  RowLists(Memory& memory, int64_t threads, int64_t most_rows)
      : most_rows(most_rows), rows_(memory, threads * most_rows), h_before_(memory, threads * most_rows) {}
  const int64_t most_rows;
  int64_t* rows(int64_t thread) const { return rows_ + thread * most_rows; }
  const S** h_before(int64_t thread) const { return h_before_ + thread * most_rows; }

 private:
  const Buffer<int64_t> rows_;
  const Buffer<const S*> h_before_;
};

// The rows of a block of steps that one worker slice works on, numbered from 0.
template <class W> class BlockRows {
 public:
  using S = Sum<W>;
  // `working` has room for gates and separate zh where these are not kept: of the slice's rows; or, given `first_row`,
  // of all rows of the block, which begins at that row.
  BlockRows(const Layer<W>& layer, const RowLists<S>& lists, int64_t thread, S* working, int64_t first_row = -1)
      : l(layer), most_(lists.most_rows), rows_(lists.rows(thread)), h_before_(lists.h_before(thread)),
        working_(working), first_row_(first_row) {}

  int64_t count() const { return count_; }
  void clear() { count_ = 0; }
  // Adds sequences [first, last) of step t.
  void add(int64_t t, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r, ++count_) {
      rows_[count_] = l.offset(t) + r;
      h_before_[count_] = l.h_before(t, r);
    }
  }
  bool fits(int64_t more) const { return count_ + more <= most_; }

  int64_t row(int64_t k) const { return rows_[k]; }
  const S* h_before(int64_t k) const { return h_before_[k]; }
  S* z(int64_t k) const {
    if (l.p.gates) return l.gates(rows_[k]);
    return working_ + (first_row_ < 0 ? k : rows_[k] - first_row_) * l.gates_width();
  }
  // Of the separate gate; unused where there is none.
  S* zh(int64_t k) const { return l.p.gates ? l.candidate(rows_[k]) : z(k) + l.G * l.U; }

 private:
  const Layer<W>& l;
  const int64_t most_;
  int64_t* const rows_;
  const S** const h_before_;
  S* const working_;
  const int64_t first_row_;
  int64_t count_ = 0;
};

// Rows [begin, begin + count) of a slice's rows.
struct RowRange {
  int64_t begin, count;
};

// z = [W_ih x + b_ih] + [W_hh h_before + b_hh] of some rows, gate group by gate group.
template <class W> class NetInputs {
 public:
  using S = Sum<W>;
  enum class From { x, h, both };  // x alone begins z, h alone adds to it
  NetInputs(const Layer<W>& layer, const Schedule<W>& schedule, const Operands<W>& operands)
      : l(layer), schedule_(schedule), operands_(operands) {}

  void add(const WorkerSlice& slice, const BlockRows<W>& rows, RowRange range, From from,
           bool backwards = false) const {
    const int64_t groups = schedule_.gate_groups();
    for (int64_t i = 0; i < groups; ++i)
      add_group(slice, rows, range, from, schedule_.gate_group(backwards ? groups - 1 - i : i), backwards);
  }

 private:
  const Layer<W>& l;
  const Schedule<W>& schedule_;
  const Operands<W>& operands_;

  void add_group(const WorkerSlice& slice, const BlockRows<W>& rows, RowRange range, From from, const GateGroup& group,
                 bool backwards) const {
    const Columns columns = schedule_.columns(group, slice, backwards);
    W* const scratch = schedule_.scratch(slice.thread);
    auto z = [&](int64_t k) { return rows.z(range.begin + k) + group.first * l.U; };
    auto bias = [&](int64_t) { return operands_.bias(group); };
    const Packed<W> w_ih = operands_.w_ih(group), w_hh = operands_.w_hh(group);
    const auto x_part = times([&](int64_t k) { return l.x(rows.row(range.begin + k)); }, w_ih);
    const auto h_part = times([&](int64_t k) { return rows.h_before(range.begin + k); }, w_hh);
    if (l.is_separate(group.first)) {
      auto zh = [&](int64_t k) { return rows.zh(range.begin + k); };
      auto zh_bias = [&](int64_t) { return operands_.separate_bias(); };
      if (from != From::h) product(scratch, range.count, columns, bias, z, x_part);
      if (from != From::x) product(scratch, range.count, columns, zh_bias, zh, h_part);
    } else if (from == From::both) {
      product(scratch, range.count, columns, bias, z, x_part, h_part);
    } else if (from == From::x) {
      product(scratch, range.count, columns, bias, z, x_part);
    } else {
      product(scratch, range.count, columns, z, z, h_part);
    }
  }
};

// What a replay finds: the gates; or these and c, of which a layer does not put out all steps.
enum class ReplayOutput { gates, gates_and_c };

// Finds the gates of steps [start, stop), in the order of the layer, from their known states: one product for all rows.
template <class W>
void replay(int64_t start, int64_t stop, const BlockRows<W>& rows, const WorkerSlice& slice, const Layer<W>& l,
            const Schedule<W>& schedule, const Operands<W>& operands, ReplayOutput output) {
  NetInputs<W>(l, schedule, operands).add(slice, rows, {0, rows.count()}, NetInputs<W>::From::both);
  const Units units{slice.unit, slice.unit_end, l.H, l.U};
  for (int64_t s = start, k = 0; s < stop; ++s) {
    const int64_t t = l.step_at(s), end = schedule.end(slice, t);
    for (int64_t r = slice.first; r < end; ++r, ++k)
      l.cell.forward({rows.z(k), rows.zh(k), l.zeros(), l.c_before(t, r), nullptr,
                      output == ReplayOutput::gates_and_c ? l.c(rows.row(k)) : nullptr, true},
                     units);
  }
}

template <class W> class Forward {
 public:
  using S = Sum<W>;
  Forward(Memory& memory, const Layer<W>& layer, const Schedule<W>& schedule)
      : l(layer), p(layer.p), schedule_(schedule), operands_(memory, layer, schedule),
        net_inputs_(layer, schedule, operands_),
        working_size_(p.gates ? 0 : schedule.block_rows() * layer.gates_width()),
        working_(memory, p.threads * working_size_), raw_(memory, p.projected ? p.batch * layer.U : 0),
        row_lists_(memory, p.threads, schedule.block_rows()) {}

  void run() {
    advise_outputs();
    operands_.pack();
    schedule_.run_on_workers(0, p.steps, [&](const WorkerSlice& slice) { run_slice(slice); });
  }

 private:
  const Layer<W>& l;
  const bptt_problem& p;
  const Schedule<W>& schedule_;
  Operands<W> operands_;
  const NetInputs<W> net_inputs_;
  const int64_t working_size_;
  const Buffer<S> working_;  // z of a block, where the gates are not kept
  const Buffer<S> raw_;      // B,U  h before the projection
  const RowLists<S> row_lists_;

  void advise_outputs() const {
    const int64_t row = l.N * sizeof(S);
    if (!p.h_is_known) advise_huge_pages(p.h, row * l.P);
    if (p.c) advise_huge_pages(p.c, row * l.H);
    if (p.gates) advise_huge_pages(p.gates, row * l.G * l.U);
    if (p.candidate) advise_huge_pages(p.candidate, row * l.U);
  }

  void run_slice(const WorkerSlice& slice) const {
    BlockRows<W> rows(l, row_lists_, slice.thread, working_ + slice.thread * working_size_);
    for (int64_t i = 0; i < p.steps;) {
      const int64_t start = i;
      i = add_steps(start, slice, rows);
      if (p.h_is_known) replay(start, i, rows, slice, l, schedule_, operands_, ReplayOutput::gates_and_c);
      else run_block(start, i, slice, rows);
    }
    if (p.h_is_known) return;
    for (int64_t r = slice.first; r < slice.last; ++r) copy_last(r, slice);
  }

  // Fills `rows` with as many steps from `start` on as fit a block, at least one; returns the step after them.
  int64_t add_steps(int64_t start, const WorkerSlice& slice, BlockRows<W>& rows) const {
    rows.clear();
    int64_t i = start;
    do {
      const int64_t t = l.step_at(i++);
      rows.add(t, slice.first, schedule_.end(slice, t));
    } while (i < p.steps && rows.fits(slice.last - slice.first));
    return i;
  }

  void run_block(int64_t start, int64_t stop, const WorkerSlice& slice, const BlockRows<W>& rows) const {
    if (!operands_.joins_inputs) net_inputs_.add(slice, rows, {0, rows.count()}, NetInputs<W>::From::x);
    int64_t done = 0;
    for (int64_t s = start; s < stop; ++s) {
      const int64_t t = l.step_at(s), count = schedule_.end(slice, t) - slice.first;
      if (count <= 0) continue;
      step(t, {done, count}, slice, rows);
      done += count;
    }
  }

  void step(int64_t t, RowRange range, const WorkerSlice& slice, const BlockRows<W>& rows) const {
    const auto from = operands_.joins_inputs ? NetInputs<W>::From::both : NetInputs<W>::From::h;
    net_inputs_.add(slice, rows, range, from, t % 2 == 1);
    pointwise(t, range, slice, rows);
    schedule_.wait(slice);
    if (!p.projected) return;
    product(
        schedule_.scratch(slice.thread), range.count, {slice.output, slice.output_end}, l.from_zero(),
        [&](int64_t k) { return l.h(rows.row(range.begin + k)); },
        times([&](int64_t k) { return raw_ + (slice.first + k) * l.U; }, operands_.w_hr()));
    schedule_.wait(slice);
  }

  void pointwise(int64_t t, RowRange range, const WorkerSlice& slice, const BlockRows<W>& rows) const {
    const Units units{slice.unit, slice.unit_end, l.H, l.U};
    for (int64_t i = 0; i < range.count; ++i) {
      const int64_t k = range.begin + i, r = slice.first + i, row = rows.row(k);
      const S* h_before = p.projected ? l.zeros() : rows.h_before(k);
      S* h = p.projected ? raw_ + r * l.U : l.h(row);
      l.cell.forward({rows.z(k), rows.zh(k), h_before, l.c_before(t, r), h, l.c(row), p.gates != nullptr}, units);
    }
  }

  // The state after the last step of sequence r.
  void copy_last(int64_t r, const WorkerSlice& slice) const {
    int64_t t = p.reverse ? 0 : p.steps - 1;
    while (l.sequences(t) <= r) --t;
    const int64_t row = l.offset(t) + r;
    copy(l.numbers(p.h_last) + r * l.P + slice.output, l.h(row) + slice.output, slice.output_end - slice.output);
    if (!l.has_c()) return;
    const int64_t unit = least(slice.unit, l.H), unit_end = least(slice.unit_end, l.H);
    copy(l.numbers(p.c_last) + r * l.H + unit, l.c(row) + unit, unit_end - unit);
  }
};

}  // namespace
}  // namespace bptt::BPTT_ISA
