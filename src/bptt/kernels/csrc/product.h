// Matrix products whose right-hand side is packed once into panels: the one form of product that everything here uses.
#pragma once
#include "memory.h"
#include "simd.h"

#include <utility>

namespace bptt::BPTT_ISA {
namespace {

// The micro-kernel holds a tile of kMR rows by kNR registers of columns: 24 (or 12) accumulators, and 4 + 1 registers
// for the operands.
constexpr int kMR = kRegisters == 32 ? 6 : 3, kNR = 4;

// n rounded up to whole registers.
template <class S> inline int64_t round_up(int64_t n) { return (n + kLanes<S> - 1) / kLanes<S> * kLanes<S>; }

// The elements that K numbers take.
template <class W> inline int64_t elements(int64_t K) { return (K + kPer<W> - 1) / kPer<W>; }

// How columns are divided into panels of at most kNR registers, and these evenly among threads.
template <class S> struct Panels {
  int64_t columns, panel_width, columns_per_thread;
  Panels(int64_t columns, int64_t threads) : columns(columns) {
    const int64_t registers = (round_up<S>(columns) / kLanes<S> + threads - 1) / threads;
    const int64_t count = (registers + kNR - 1) / kNR;
    panel_width = (registers + count - 1) / count * kLanes<S>;
    columns_per_thread = panel_width * count;
  }
  int64_t begin(int64_t thread) const { return least(thread * columns_per_thread, columns); }
};

// ---- The right-hand side

// A matrix [K, columns] of elements W, panel by panel [elements(K)][registers][lanes], padded with zeros.
template <class W> struct Packed {
  using S = Sum<W>;
  W* data;
  int64_t K, columns, panel_width;

  static int64_t size(int64_t K, int64_t columns) { return elements<W>(K) * round_up<S>(columns); }
  // With the columns of zeros at its end, so that a product writes them too.
  Packed padded() const { return {data, K, round_up<S>(columns), panel_width}; }
  W* panel(int64_t column) const { return data + column * elements<W>(K); }
  // Registers of columns in the panel that begins at `column`.
  int registers(int64_t column) const { return int(least(panel_width, round_up<S>(columns - column)) / kLanes<S>); }

  // Packs rows [first, last) of the panel that begins at `column`; `first` is a multiple of kPer<W>, and from(k) points
  // to row k of the matrix.
  template <class F> void pack_rows(int64_t column, int64_t first, int64_t last, F from) const {
    const int64_t width = registers(column) * kLanes<S>, filled = least(columns - column, width);
    W* to = panel(column) + first / kPer<W> * width;
    for (int64_t k = first; k < last; k += kPer<W>, to += width)
      pack_row(from(k) + column, kPer<W> == 2 && k + 1 < last ? from(k + 1) + column : nullptr, filled, width, to);
  }

  // Packs the panel that begins at `column` from the transposed matrix: the columns of a register, from column j on,
  // are the rows at from(j).row, `stride` numbers apart, of which from(j).count exist.
  struct Source {
    const S* row;
    int count;
  };
  template <class F> void pack_transposed(int64_t column, int64_t stride, F from) const {
    const int64_t width = registers(column) * kLanes<S>;
    for (int64_t j = 0; j < width; j += kLanes<S>) {
      const Source source = from(column + j);
      W* const to = panel(column) + j;
      const int64_t done = source.count == kLanes<S> ? pack_blocks(source.row, stride, width, to) : 0;
      pack_numbers(source, stride, width, done, to);
    }
  }

 private:
  static void pack_row(const S* row, const S* next, int64_t filled, int64_t width, W* to) {
    constexpr int L = kLanes<S>;
    int64_t j = 0;
    for (; j + L <= filled; j += L) store(to + j, pack_bf16<W>(load(row + j), next ? load(next + j) : Vec<S>{}));
    if (j == width) return;
    const int n = int(filled - j);
    store(to + j, pack_bf16<W>(load(row + j, n), next ? load(next + j, n) : Vec<S>{}));
  }

  // One register of columns, by square blocks that are transposed in registers; returns the rows that these cover.
  int64_t pack_blocks(const S* row, int64_t stride, int64_t width, W* to) const {
    constexpr int L = kLanes<S>;
    int64_t k = 0;
    for (; k + L <= K; k += L) {
      Vec<S> block[L];
      for (int i = 0; i < L; ++i) block[i] = load(row + i * stride + k);
      transpose<S>(block);
      for (int i = 0; i < L; i += kPer<W>)
        store(to + (k + i) / kPer<W> * width, pack_bf16<W>(block[i], block[i + kPer<W> - 1]));
    }
    return k;
  }

  // The rest of it, from row k on, number by number.
  void pack_numbers(Source source, int64_t stride, int64_t width, int64_t k, W* to) const {
    auto number = [&](int i, int64_t k) { return i < source.count && k < K ? source.row[i * stride + k] : S(0); };
    for (; k < K; k += kPer<W>)
      for (int i = 0; i < kLanes<S>; ++i) to[k / kPer<W> * width + i] = pack_bf16<W>(number(i, k), number(i, k + 1));
  }
};

// ---- The micro-kernel

// The left-hand side: M rows anywhere in memory; or interleaved, [K][M], where row[0] is their beginning.
enum class Left { rows, interleaved };

// One of the products that a tile adds up: its left-hand rows and a panel, K elements deep.
template <class W> struct Term {
  const W* const* row;
  int64_t K;
  const W* panel;
};

// to[m] = from[m] + sum over the terms of row[m] . panel, for M rows and N registers of columns, the last of which has
// `n` numbers.
//
// The M N results are held in `kSets` sets of accumulators, which take the elements k in turn: several sets hide the
// latency of few multiply-adds. Accumulator i belongs to set i / (M N), row i / N % M and register i % N. Everything is
// written as fold expressions over i, since only without loops does the compiler keep all accumulators in registers
// from the first load to the last store.
//
// Worked example, M = 2, N = 2, where kSets = 2. Eight accumulators, i = 0 .. 7:
//
//     i       0     1     2     3     4     5     6     7
//     set     0     0     0     0     1     1     1     1      takes k = 0, 2, 4, ... (set 0) or 1, 3, 5, ... (set 1)
//     row m   0     0     1     1     0     0     1     1
//     reg.    0     1     0     1     0     1     0     1
//
//     load        set 0 = from, set 1 = 0
//     accumulate  w[0..3] = the two registers of panel rows k and k + 1; then for each i
//                 sum[i] += a[m][k + set] * w[2 set + register], for example sum[6] += a[1][k + 1] * w[2]
//     join sets   sum[0] += sum[4] .. sum[3] += sum[7]
//     store       to[0] = sum[0], sum[1];  to[1] = sum[2], sum[3]
//
// Interleaved rows are those of a weight gradient, and there are many of them: each call is one part of a longer sum.
// That sum is added at the end, so that each part is rounded by its own size, not by that of the whole; and prefetched
// at the beginning, since it has left the caches meanwhile (4 to 9 % of a step with 512 units).
template <class W, int M, int N, Left left> class MicroKernel {
  using S = Sum<W>;
  static constexpr int L = kLanes<S>, kTile = M * N, kSets = kTile >= 8 ? 1 : kTile >= 4 ? 2 : 4;
  static constexpr bool kAddsLast = left == Left::interleaved;
  using Accumulators = Vec<S>[kSets * kTile];
  template <int... i> using Indices = std::integer_sequence<int, i...>;
  using Tile = std::make_integer_sequence<int, kTile>;
  using All = std::make_integer_sequence<int, kSets * kTile>;
  using PanelRegisters = std::make_integer_sequence<int, kSets * N>;
#define BPTT_INLINE __attribute__((always_inline)) static inline

  // Register i % N of row i / N; the last one has n numbers.
  BPTT_INLINE Vec<S> number(const S* const* from, int i, int n) {
    const S* const at = from[i / N] + i % N * L;
    return i % N < N - 1 ? load(at) : load(at, n);
  }
  BPTT_INLINE void put(S* const* to, int i, int n, Vec<S> value) {
    S* const at = to[i / N] + i % N * L;
    if (i % N < N - 1) store(at, value);
    else store(at, value, n);
  }

  template <int... i> BPTT_INLINE void zero(Accumulators& sum, Indices<i...>) { ((sum[i] = Vec<S>{}), ...); }
  template <int... i> BPTT_INLINE void begin(Accumulators& sum, const S* const* from, int n, Indices<i...>) {
    zero(sum, All{});
    if (kAddsLast) (__builtin_prefetch(from[i / N] + i % N * L), ...);
    else ((sum[i] = number(from, i, n)), ...);
  }

  // Elements k to k + kSets - 1, one for each set.
  template <int... i, int... j>
  BPTT_INLINE void accumulate(Accumulators& sum, const W* const (&a)[M], int64_t k, const W* panel, Indices<i...>,
                              Indices<j...>) {
    Vec<W> w[] = {load(panel + j * L)...};
    if (M > 1) (pin_in_register(w[j]), ...);
    ((sum[i] = add_product(sum[i], a[i / N % M][(k + i / kTile) * kStep], w[i / kTile * N + i % N])), ...);
  }
  // One element alone, into the first set: those left over at the end.
  template <int... i>
  BPTT_INLINE void accumulate_last(Accumulators& sum, const W* const (&a)[M], int64_t k, const W* panel,
                                   Indices<i...>) {
    ((sum[i] = add_product(sum[i], a[i / N][k * kStep], load(panel + i % N * L))), ...);
  }

  BPTT_INLINE void add_term(Accumulators& sum, const Term<W>& term) {
    const W *a[M], *panel = term.panel;
    for (int m = 0; m < M; ++m) a[m] = left == Left::rows ? term.row[m] : term.row[0] + m;
    const int64_t K = term.K;
    int64_t k = 0;
    for (; k + kSets <= K; k += kSets, panel += kSets * N * L) accumulate(sum, a, k, panel, All{}, PanelRegisters{});
    for (; kSets > 1 && k < K; ++k, panel += N * L) accumulate_last(sum, a, k, panel, Tile{});
  }

  template <int... i> BPTT_INLINE void join_sets(Accumulators& sum, Indices<i...>) {
    ((i < kTile ? void() : void(sum[i % kTile] += sum[i])), ...);
  }
  // Reads each pointer of `to` where it is needed. The caller has just written them one by one: a copy of all, which
  // the compiler loads as one register, would wait for these stores, and they for the tile before (8 to 15 % of a
  // forward).
  template <int... i>
  BPTT_INLINE void finish(Accumulators& sum, const S* const* from, S* const* to, int n, Indices<i...>) {
    if (kAddsLast) ((sum[i] += number(from, i, n)), ...);
    (put(to, i, n, sum[i]), ...);
  }

  static constexpr int kStep = left == Left::rows ? 1 : M;  // from an element of a row to its next
#undef BPTT_INLINE

 public:
  static void run(const Term<W>* terms, int count, const S* const* from, S* const* to, int n) {
    Accumulators sum;
    begin(sum, from, n, Tile{});
    for (const Term<W>* term = terms; term < terms + count; ++term) add_term(sum, *term);
    join_sets(sum, All{});
    finish(sum, from, to, n, Tile{});
  }
};

// The micro-kernel of M rows and N registers, where these are known only at run time.
template <class W> using MicroKernelFunction = void (*)(const Term<W>*, int, const Sum<W>* const*, Sum<W>* const*, int);
template <class W, Left left, int... i>
MicroKernelFunction<W> micro_kernel(int m, int n, std::integer_sequence<int, i...>) {
  static constexpr MicroKernelFunction<W> all[] = {MicroKernel<W, i / kNR + 1, i % kNR + 1, left>::run...};
  return all[(m - 1) * kNR + n - 1];
}
template <class W, Left left> MicroKernelFunction<W> micro_kernel(int m, int n) {
  return micro_kernel<W, left>(m, n, std::make_integer_sequence<int, kMR * kNR>());
}

// Splits rows evenly into parts of at most `most` and calls work(begin, rows) for each.
template <class F> inline void split_rows(int64_t rows, int64_t most, F work) {
  const int64_t count = (rows + most - 1) / most;
  for (int64_t i = 0, begin = 0; i < count; ++i) {
    const int64_t end = rows * (i + 1) / count;
    work(begin, end - begin);
    begin = end;
  }
}
// Calls work(begin, rows) for each tile.
template <class F> inline void for_each_tile(int64_t rows, F work) {
  split_rows(rows, kMR, [&](int64_t begin, int64_t count) { work(begin, int(count)); });
}

// ---- The product

// A left-hand side and the weight that it is multiplied with: row(r) points to row r of the former.
template <class W, class Row> struct Factors {
  Row row;
  Packed<W> weight;
};
template <class W, class Row> Factors<W, Row> times(Row row, const Packed<W>& weight) { return {row, weight}; }
template <class First, class... Rest> auto first_weight(const First& first, const Rest&...) { return first.weight; }

// Columns [first, last) of a product, where `first` begins a panel. Taken backwards every other time, the weights that
// were read last are still in the cache.
struct Columns {
  int64_t first, last;
  bool backwards = false;
};

// to(r)[j] = from(r)[j] + sum over the factors of sum_k row(r)[k] weight[k][j], for `rows` rows and some columns j. All
// weights have the same panels. from(r) and to(r) point to column 0, row(r) to elements.
template <class W, class From, class To, class... Row>
void product_of_elements(int64_t rows, Columns columns, From from, To to, Factors<W, Row>... factors) {
  using S = Sum<W>;
  constexpr int L = kLanes<S>, count = sizeof...(Row);
  const Packed<W> w = first_weight(factors...);
  const int64_t panels = (columns.last - columns.first + w.panel_width - 1) / w.panel_width;
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t column = columns.first + (columns.backwards ? panels - 1 - i : i) * w.panel_width;
    const int registers = w.registers(column);
    const int n = int(least<int64_t>(w.columns - column - (registers - 1) * L, L));  // numbers in the last register
    for_each_tile(rows, [&](int64_t r, int m) {
      const W* row[count][kMR];
      const S* start[kMR];
      S* target[kMR];
      for (int i = 0; i < m; ++i) {
        int f = 0;
        ((row[f++][i] = factors.row(r + i)), ...);
        start[i] = from(r + i) + column;
        target[i] = to(r + i) + column;
      }
      int f = -1;
      const Term<W> terms[count] = {
          (++f, Term<W>{row[f], elements<W>(factors.weight.K), factors.weight.panel(column)})...};
      micro_kernel<W, Left::rows>(m, registers)(terms, count, start, target, n);
    });
  }
}

// As product_of_elements, but row(r) points to numbers. Where elements are pairs these first go to `scratch`, for as
// many rows at a time as make up for another pass of the weights through the cache.
constexpr int64_t kRoundedRows = 128;

template <class S, class From, class To, class... Row>
void product(S*, int64_t rows, Columns columns, From from, To to, Factors<S, Row>... factors) {
  product_of_elements(rows, columns, from, to, factors...);
}
template <class From, class To, class... Row>
void product(Bf16x2* scratch, int64_t rows, Columns columns, From from, To to, Factors<Bf16x2, Row>... factors) {
  split_rows(rows, kRoundedRows, [&](int64_t begin, int64_t count) {
    Bf16x2* next = scratch;
    auto rounded = [&](const auto& numbers) {
      Bf16x2* const pairs = next;
      const int64_t K = numbers.weight.K, width = elements<Bf16x2>(K);
      for (int64_t r = 0; r < count; ++r) round_row(numbers.row(begin + r), K, pairs + r * width);
      next += count * width;
      return times([=](int64_t r) { return pairs + r * width; }, numbers.weight);
    };
    product_of_elements(
        count, columns, [&](int64_t r) { return from(begin + r); }, [&](int64_t r) { return to(begin + r); },
        rounded(factors)...);
  });
}

}  // namespace
}  // namespace bptt::BPTT_ISA
