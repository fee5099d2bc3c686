// The gradients of the parameters: products over all rows of a block, added up over the blocks. Eq. (21) of docs/equations.md.
//
// Each is a sum over all rows. In one running sum the rounding would grow with their number, and a float sum of 2^24
// ones would stay there. So short runs of rows are summed on their own and added up, and of many rows the sum so far
// goes to one in double from time to time.
#pragma once
#include "schedule.h"

namespace bptt::BPTT_ISA {
namespace {

// Rows that are summed on their own (KC of a matrix product); of biases fewer.
constexpr int64_t kRowsPerRun = 512, kBiasRowsPerRun = 64;
// Rows after which a float sum goes to the one in double.
constexpr int64_t kRowsPerFloatSum = 8192;
// Rows of a weight gradient that share one packing of the features (MC of a matrix product).
constexpr int64_t kWeightRowsPerPacking = 96;

// What the loop over time leaves of a block of steps, row by row.
template <class W> struct BackwardBlock {
  using S = Sum<W>;
  const Buffer<S> dz;            // rows,G,U  dL/dzx
  const Buffer<S> dz_separate;   // rows,G,U  dL/dzh, where a gate is separate; else it is dz
  const Buffer<S> dh_projected;  // rows,P    dL/dh of the projection's output; rows padded
  const Buffer<S> raw;           // rows,U    h before the projection
  const Buffer<const S*> h_before;
  int64_t rows = 0, first_row = 0;

  BackwardBlock(Memory& memory, const Layer<W>& l, int64_t most_rows)
      : dz(memory, most_rows * l.G * l.U), dz_separate(memory, l.cell.separate_gates ? most_rows * l.G * l.U : 0),
        dh_projected(memory, l.p.projected ? most_rows * round_up<S>(l.P) : 0),
        raw(memory, l.p.projected ? most_rows * l.U : 0), h_before(memory, most_rows) {}
  S* dz_hidden() const { return dz_separate ? dz_separate : dz; }
};

// Columns of a matrix, to be interleaved as the micro-kernel takes them: row after row the kMR (or fewer) numbers of a
// tile.
template <class W> struct InterleavedTile {
  using S = Sum<W>;
  W* to;
  int columns;
  const S* start[kMR];  // of each column

  bool adjacent() const { return columns == kMR && start[columns - 1] == start[0] + columns - 1; }
  // Appends the numbers `row` behind the starts and, where an element holds two, those `next` behind them, if there are
  // any.
  void append(int64_t row, int64_t next, bool has_next) {
    if (adjacent() && kPer<W> == 1) std::memcpy(to, start[0] + row, sizeof(W) * kMR);
    else if (adjacent() && has_next)
      store(to, pack_bf16<W>(load(start[0] + row, kMR), load(start[0] + next, kMR)), kMR);
    else
      for (int i = 0; i < columns; ++i) to[i] = pack_bf16<W>(start[i][row], has_next ? start[i][next] : S(0));
    to += columns;
  }
};

// Interleaves columns column(q), q in [first, last), of R rows `stride` apart: tile by tile [elements(R)][rows of the
// tile]. Several tiles at a time, so that they share the cache lines of a row.
template <class W, class S, class F>
void interleave(const S* from, int64_t stride, int64_t R, int64_t first, int64_t last, F column, W* to) {
  constexpr int kAtATime = 8;
  InterleavedTile<W> tiles[kAtATime];
  int count = 0;
  for_each_tile(last - first, [&](int64_t q, int m) {
    InterleavedTile<W>& tile = tiles[count++] = {to + q * elements<W>(R), m, {}};
    for (int i = 0; i < m; ++i) tile.start[i] = from + column(first + q + i);
    if (count < kAtATime && q + m < last - first) return;
    for (int64_t n = 0; n < R; n += kPer<W>)
      for (int i = 0; i < count; ++i) tiles[i].append(n * stride, (n + 1) * stride, n + 1 < R);
    count = 0;
  });
}

template <class W> class WeightGradient {
 public:
  using S = Sum<W>;
  WeightGradient(Memory& memory, const Layer<W>& layer, const Schedule<W>& schedule, const BackwardBlock<W>& block)
      : l(layer), p(layer.p), schedule_(schedule), block_(block), zeros_(layer.zeros()),
        in_double_(memory, sizeof(S) == 4 && p.d_w_ih && layer.N > 4 * kRowsPerFloatSum ? parameters() : 0) {
    in_double_.zero();
    if (p.d_w_ih) memory.count(bytes_of_workers());
  }

  void add_block() {
    for (int64_t row = 0; p.d_w_ih && row < block_.rows; row += kRowsPerFloatSum)
      add_rows(row, least(block_.rows - row, kRowsPerFloatSum));
  }

  void finish() {
    if (in_double_) add_to_double(true);
    if (b_hh_is_copied()) copy(l.numbers(p.d_b_hh), l.numbers(p.d_b_ih), l.G * l.H);
  }

 private:
  const Layer<W>& l;
  const bptt_problem& p;
  const Schedule<W>& schedule_;
  const BackwardBlock<W>& block_;
  const S* const zeros_;
  Buffer<double> in_double_;  // sums of earlier rows; none where rows are few, or S is double
  bool begins_ = true;        // the next rows begin the sums
  int64_t rows_in_float_ = 0;

  // The gradient of one parameter, [size / width, width].
  struct Gradient {
    S* total;  // null: not wanted
    int64_t width, size;
  };
  Gradient d_w_ih() const { return {l.numbers(p.d_w_ih), l.D, l.G * l.H * l.D}; }
  Gradient d_w_hh() const { return {l.numbers(p.d_w_hh), l.P, l.G * l.H * l.P}; }
  Gradient d_b_ih() const { return {l.numbers(p.d_b_ih), 1, l.G * l.H}; }
  Gradient d_b_hh() const { return {l.numbers(p.d_b_hh), 1, l.G * l.H}; }
  Gradient d_w_hr() const { return {l.numbers(p.d_w_hr), l.H, p.projected ? l.P * l.H : 0}; }
  int64_t parameters() const { return d_w_ih().size + d_w_hh().size + d_b_ih().size + d_b_hh().size + d_w_hr().size; }

  // Adds the sums so far to those in double; the last time, the totals come back as S.
  void add_to_double(bool is_last) {
    const Gradient all[] = {d_w_ih(), d_w_hh(), d_b_ih(), d_b_hh(), d_w_hr()};
    double* sums = in_double_;
    for (const Gradient& gradient : all) {
      if (gradient.total) add_to_double(gradient, sums, is_last);
      sums += gradient.size;
    }
    begins_ = true;
    rows_in_float_ = 0;
  }
  void add_to_double(const Gradient& gradient, double* sums, bool is_last) const {
    const int64_t size = gradient.size, threads = schedule_.threads_for(size / kLanes<S> * 8);
    schedule_.run_parallel(threads, [&](int64_t begin, int64_t end) {
      for (int64_t j = size * begin / threads; j < size * end / threads; ++j) {
        sums[j] += gradient.total[j];
        if (is_last) gradient.total[j] = S(sums[j]);
      }
    });
  }

  int64_t threads_for_rows(int64_t R) const { return schedule_.threads_for(R * l.G * l.U * (l.D + l.P) / kLanes<S>); }

  // Adds what `count` rows of the block contribute, from `row` on.
  void add_rows(int64_t row, int64_t count) {
    const bool is_full = rows_in_float_ && rows_in_float_ + count > kRowsPerFloatSum;
    if (in_double_ && is_full) add_to_double(false);
    const int64_t rows = l.G * l.H, threads = threads_for_rows(count);
    const int64_t rows_per_thread = (rows + threads * kMR - 1) / (threads * kMR) * kMR;
    schedule_.run_parallel(threads, [&](int64_t begin, int64_t end) {
      const int64_t first = begin * rows_per_thread, last = least(end * rows_per_thread, rows);
      split_rows(last - first, kWeightRowsPerPacking,
                 [&](int64_t q, int64_t some) { add_to_weight_rows(row, count, first + q, first + q + some); });
    });
    begins_ = false;
    rows_in_float_ += count;
  }

  // A worker's own buffers: R rows of the left-hand side, interleaved, and one packed panel of the features.
  static int64_t left_size(int64_t R, int64_t weight_rows) { return elements<W>(R) * weight_rows; }
  static int64_t panel_size(int64_t R) { return Packed<W>::size(R, kNR * kLanes<S>); }
  int64_t bytes_of_workers() const {
    const int64_t R = least(schedule_.block_rows(), kRowsPerFloatSum);
    const int64_t each = left_size(R, least(l.G * l.H, kWeightRowsPerPacking)) + panel_size(R);
    return sizeof(W) * (threads_for_rows(R) * each + (p.projected ? left_size(R, l.P) : 0));
  }

  // Of rows [first, last) of W_ih, W_hh and the biases, from R rows of the block; the first of them also of the
  // projection.
  void add_to_weight_rows(int64_t row, int64_t R, int64_t first, int64_t last) const {
    const S *dz = block_.dz + row * l.G * l.U, *dz_hidden = block_.dz_hidden() + row * l.G * l.U;
    auto column = [&](int64_t q) { return q / l.H * l.U + q % l.H; };  // of row q of the weights, in dz
    Memory memory;
    Buffer<W> left(memory, left_size(R, last - first)), panel(memory, panel_size(R));
    interleave(dz, l.G * l.U, R, first, last, column, left.data());
    accumulate_weight_gradient(
        left, R, first, last, panel, [&](int64_t n) { return l.x(block_.first_row + row + n); }, d_w_ih());
    if (p.d_b_ih) accumulate_bias(dz, R, first, last, column, d_b_ih().total);
    if (l.cell.separate_gates) interleave(dz_hidden, l.G * l.U, R, first, last, column, left.data());
    accumulate_weight_gradient(
        left, R, first, last, panel, [&](int64_t n) { return block_.h_before[row + n]; }, d_w_hh());
    if (p.d_b_hh && !b_hh_is_copied()) accumulate_bias(dz_hidden, R, first, last, column, d_b_hh().total);
    if (p.projected && first == 0) add_to_projection(row, R, panel);
  }
  void add_to_projection(int64_t row, int64_t R, W* panel) const {
    const int64_t width = round_up<S>(l.P);
    Memory memory;
    Buffer<W> left(memory, left_size(R, l.P));
    interleave(block_.dh_projected + row * width, width, R, 0, l.P, [](int64_t q) { return q; }, left.data());
    accumulate_weight_gradient(
        left, R, 0, l.P, panel, [&](int64_t n) { return block_.raw + (row + n) * l.U; }, d_w_hr());
  }
  // Without separate gates both biases have the same gradient.
  bool b_hh_is_copied() const { return !l.cell.separate_gates && p.d_b_ih && p.d_b_hh; }

  // to[q][f] (+)= sum_n left[n][q] features(n)[f] for rows q in [first, last) of a weight, n in [0, R), run by run;
  // `panel` is room for a packed panel.
  template <class F>
  void accumulate_weight_gradient(const W* left, int64_t R, int64_t first, int64_t last, W* panel, F features,
                                  const Gradient& to) const {
    constexpr int L = kLanes<S>;
    for (int64_t f = 0; to.total && f < to.width; f += kNR * L) {
      const Packed<W> packed{panel, R, least<int64_t>(to.width - f, kNR * L), kNR * L};
      packed.pack_rows(0, 0, R, [&](int64_t n) { return features(n) + f; });
      for_each_tile(last - first, [&](int64_t q, int m) {
        S* target[kMR];
        for (int i = 0; i < m; ++i) target[i] = to.total + (first + q + i) * to.width + f;
        accumulate_tile(left + q * elements<W>(R), m, packed, target);
      });
    }
  }
  void accumulate_tile(const W* left, int m, const Packed<W>& panel, S* const* target) const {
    const int registers = panel.registers(0), n = int(panel.columns - (registers - 1) * kLanes<S>);
    const auto micro_kernel_of_tile = micro_kernel<W, Left::interleaved>(m, registers);
    const S* start[kMR];
    for (int i = 0; i < m; ++i) start[i] = begins_ ? zeros_ : target[i];
    for (int64_t k = 0; k < panel.K; k += kRowsPerRun) {
      const W* row[1] = {left + elements<W>(k) * m};
      const Term<W> term{row, elements<W>(least(panel.K - k, kRowsPerRun)),
                         panel.data + elements<W>(k) * registers * kLanes<S>};
      micro_kernel_of_tile(&term, 1, start, target, n);
      for (int i = 0; i < m; ++i) start[i] = target[i];
    }
  }

  template <class F> void accumulate_bias(const S* dz, int64_t R, int64_t first, int64_t last, F column, S* to) const {
    for (int64_t q = first; q < last;) {
      const int n = int(least(least(last - q, l.H - q % l.H), int64_t(kLanes<S>)));  // up to the end of the gate
      Vec<S> sum = begins_ ? Vec<S>{} : load(to + q, n);
      for (int64_t k = 0; k < R; k += kRowsPerRun)
        sum += sum_rows(dz + k * l.G * l.U + column(q), least(R - k, kRowsPerRun), n);
      store(to + q, sum, n);
      q += n;
    }
  }
  // The sum of one register of columns over some rows of dz, by runs.
  Vec<S> sum_rows(const S* dz, int64_t rows, int n) const {
    Vec<S> sum{};
    for (int64_t k = 0; k < rows; k += kBiasRowsPerRun) {
      Vec<S> run{};
      for (int64_t i = k; i < least(rows, k + kBiasRowsPerRun); ++i) run += load(dz + i * l.G * l.U, n);
      sum += run;
    }
    return sum;
  }
};

}  // namespace
}  // namespace bptt::BPTT_ISA
