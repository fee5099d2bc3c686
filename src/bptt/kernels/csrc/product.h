// Matrix products whose right-hand side is packed once into panels: the one form of product that everything here uses.
#pragma once
#include <tuple>
#include <utility>
#include "simd.h"

namespace bptt { namespace BPTT_ISA {

constexpr int kTileRows = kRegisters == 32 ? 6 : 3, kTileVectors = 4;  // 24 (or 12) accumulators; 4 + 1 for the operands

template <class S> inline int64_t whole(int64_t n) { return (n + kLanes<S> - 1) / kLanes<S> * kLanes<S>; }

// How columns are divided into panels of at most kTileVectors registers, and those evenly among the members of a team.
template <class S> struct Panels {
  int64_t columns, wide, each;  // all columns, those of a panel, those of a member
  Panels(int64_t columns, int64_t members) : columns(columns) {
    const int64_t registers = (whole<S>(columns) / kLanes<S> + members - 1) / members;
    const int64_t count = (registers + kTileVectors - 1) / kTileVectors;
    wide = (registers + count - 1) / count * kLanes<S>;
    each = wide * count;
  }
  int64_t begin(int64_t member) const { return member * each < columns ? member * each : columns; }
};

// Elements that K numbers take.
template <class W> inline int64_t depth(int64_t K) { return (K + kPer<W> - 1) / kPer<W>; }

// A matrix [K, columns] of W, panel by panel [depth(K)][registers][lanes], filled up with zeros.
template <class W> struct Packed {
  using S = Sum<W>;
  W* data;
  int64_t K, columns, wide;

  static int64_t size(int64_t K, int64_t columns) { return depth<W>(K) * whole<S>(columns); }
  Packed filled_up() const { return {data, K, whole<S>(columns), wide}; }  // a product with it has its columns of zeros too
  const W* panel(int64_t column) const { return data + column * depth<W>(K); }
  int vectors(int64_t column) const {
    return int((columns - column >= wide ? wide : whole<S>(columns - column)) / kLanes<S>);
  }

  // The rows k in [first, last), `first` a multiple of kPer<W>, of the panel that begins at `column`: from(k) points to that
  // row's numbers, `column` the first of them.
  template <class F> void pack_rows(int64_t column, int64_t first, int64_t last, F from) const {
    const int64_t left = columns - column, width = vectors(column) * kLanes<S>, real = left < width ? left : width;
    W* to = data + column * depth<W>(K) + first / kPer<W> * width;
    for (int64_t k = first; k < last; k += kPer<W>, to += width) {
      const S *row = from(k) + column, *next = kPer<W> == 2 && k + 1 < last ? from(k + 1) + column : nullptr;
      int64_t j = 0;
      for (; j + kLanes<S> <= real; j += kLanes<S>) store(to + j, join<W>(load(row + j), next ? load(next + j) : Vec<S>{}));
      const int n = int(real - j);
      if (j < width) store(to + j, join<W>(load(row + j, n), next ? load(next + j, n) : Vec<S>{}));
    }
  }
  // The panel that begins at `column`, from the transposed matrix [columns, K] that has its rows in groups: the column j and
  // those of the same register are the rows at from(j).row of `stride` numbers each, the first from(j).count of which exist.
  struct Source { const S* row; int count; };
  template <class F> void pack_transposed(int64_t column, int64_t stride, F from) const {
    constexpr int L = kLanes<S>;
    const int64_t width = vectors(column) * L;
    for (int64_t j = 0; j < width; j += L) {
      const Source source = from(column + j);
      W* to = data + column * depth<W>(K) + j;
      int64_t k = 0;
      for (; source.count == L && k + L <= K; k += L) {
        Vec<S> block[L];
        for (int i = 0; i < L; ++i) block[i] = load(source.row + i * stride + k);
        transpose<S>(block);
        for (int i = 0; i < L; i += kPer<W>) store(to + (k + i) / kPer<W> * width, join<W>(block[i], block[i + kPer<W> - 1]));
      }
      auto number = [&](int i, int64_t k) { return i < source.count && k < K ? source.row[i * stride + k] : S(0); };
      for (; k < K; k += kPer<W>)
        for (int i = 0; i < L; ++i) to[k / kPer<W> * width + i] = join<W>(number(i, k), number(i, k + 1));
    }
  }
};

// Left-hand sides: M rows anywhere in memory, or interleaved, [K][M], and then row[0] is where they begin.
enum class Left { rows, interleaved };

// One of the products that a tile adds up: its rows and a panel, of K elements each.
template <class W> struct Term {
  const W* const* row;
  int64_t K;
  const W* panel;
};

// to[m] = from[m] + sum over the terms of row[m] . panel, for M rows and N registers of columns, the last of which has `n`
// numbers.
//
// Sum i belongs to set i / (M N), row i / N % M and register i % N; several sets hide the latency of few multiply-adds. Fold
// expressions, not loops, since only so the compiler keeps all sums in registers from the first load to the last store.
// Interleaved rows are the many of a weight gradient, part of a longer sum: it is added at the end, so that each part is
// rounded by its own size, not by that of the whole; fetched in the beginning, since it has left the caches meanwhile (4 to 9 % of
// a step with 512 units).
template <class W, int M, int N, int sets, Left left, int... i, int... j, class S = Sum<W>>
inline void multiply(const Term<W>* terms, int count, const S* const* from, S* const* to, int n,
                     std::integer_sequence<int, i...>, std::integer_sequence<int, j...>) {
  constexpr int L = kLanes<S>, all = M * N, step = left == Left::rows ? 1 : M;
  S* result[M];
  for (int m = 0; m < M; ++m) result[m] = to[m];
  Vec<S> sum[sets * all];
  auto start = [&](int sum) {
    const S* const at = from[sum / N % M] + sum % N * L;
    return sum % N < N - 1 ? load(at) : load(at, n);
  };
  ((sum[i] = i >= all || left == Left::interleaved ? Vec<S>{} : start(i)), ...);
  if (left == Left::interleaved) ((i >= all ? void() : __builtin_prefetch(from[i / N % M] + i % N * L)), ...);
  for (const Term<W>* term = terms; term < terms + count; ++term) {
    const W *a[M], *panel = term->panel;
    for (int m = 0; m < M; ++m) a[m] = left == Left::rows ? term->row[m] : term->row[0] + m;
    const int64_t K = term->K;
    int64_t k = 0;
    for (; k + sets <= K; k += sets, panel += sets * N * L) {
      Vec<W> w[] = {load(panel + j * L)...};
      if (M > 1) (keep(w[j]), ...);
      ((sum[i] = add_product(sum[i], a[i / N % M][(k + i / all) * step], w[i / all * N + i % N])), ...);
    }
    if (sets > 1)
      for (; k < K; ++k, panel += N * L)
        ((i < all ? void(sum[i] = add_product(sum[i], a[i / N % M][k * step], load(panel + i % N * L))) : void()), ...);
  }
  ((i >= all ? void(sum[i % all] += sum[i]) : void()), ...);
  if (left == Left::interleaved) ((i >= all ? void() : void(sum[i] += start(i))), ...);
  ((i >= all         ? void()
    : i % N < N - 1 ? store(result[i / N % M] + i % N * L, sum[i])
                    : store(result[i / N % M] + i % N * L, sum[i], n)),
   ...);
}
template <class W, int M, int N, Left left>
void multiply(const Term<W>* terms, int count, const Sum<W>* const* from, Sum<W>* const* to, int n) {
  constexpr int sets = M * N >= 8 ? 1 : M * N >= 4 ? 2 : 4;
  multiply<W, M, N, sets, left>(terms, count, from, to, n, std::make_integer_sequence<int, sets * M * N>(),
                                std::make_integer_sequence<int, sets * N>());
}

// multiply<W, M, N, left> for M and N known only when it runs.
template <class W> using Multiply = void (*)(const Term<W>*, int, const Sum<W>* const*, Sum<W>* const*, int);
template <class W, Left left, int... i> Multiply<W> multiply_for(int m, int n, std::integer_sequence<int, i...>) {
  static constexpr Multiply<W> all[] = {multiply<W, i / kTileVectors + 1, i % kTileVectors + 1, left>...};
  return all[(m - 1) * kTileVectors + n - 1];
}
template <class W, Left left> Multiply<W> multiply_for(int m, int n) {
  return multiply_for<W, left>(m, n, std::make_integer_sequence<int, kTileRows * kTileVectors>());
}

// Even parts of at most `most` rows: work(begin, rows).
template <class F> inline void parts(int64_t rows, int64_t most, F work) {
  const int64_t count = (rows + most - 1) / most;
  for (int64_t i = 0, begin = 0; i < count; ++i) {
    const int64_t end = rows * (i + 1) / count;
    work(begin, end - begin);
    begin = end;
  }
}
template <class F> inline void tiles(int64_t rows, F work) {
  parts(rows, kTileRows, [&](int64_t begin, int64_t count) { work(begin, int(count)); });
}

// A left-hand side and the weight that it is multiplied with: row(r) points to row r of the former.
template <class W, class Row> struct Factors {
  Row row;
  const Packed<W>& weight;
};
template <class W, class Row> Factors<W, Row> times(Row row, const Packed<W>& weight) { return {row, weight}; }

// Columns [first, last) of a product, where `first` begins a panel. Who takes them to and fro finds in the cache, at each turn,
// the weights that he read last.
struct Columns {
  int64_t first, last;
  bool backwards = false;
};

// to(r)[j] = from(r)[j] + sum over the factors of sum_k row(r)[k] weight[k][j], for `rows` rows and some columns j. All weights
// have the same panels. from(r) and to(r) point to column 0, row(r) to elements.
template <class W, class From, class To, class... Row>
void product_of_elements(int64_t rows, Columns columns, From from, To to, Factors<W, Row>... factors) {
  using S = Sum<W>;
  constexpr int L = kLanes<S>, count = sizeof...(Row);
  const Packed<W>& w = std::get<0>(std::tie(factors...)).weight;
  const int64_t panels = (columns.last - columns.first + w.wide - 1) / w.wide;
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t column = columns.first + (columns.backwards ? panels - 1 - i : i) * w.wide;
    const int vectors = w.vectors(column);
    const int64_t left = w.columns - column;
    const int n = left >= vectors * L ? L : int(left - (vectors - 1) * L);
    tiles(rows, [&](int64_t r, int m) {
      const W* row[count][kTileRows];
      const S* start[kTileRows];
      S* target[kTileRows];
      for (int i = 0; i < m; ++i) {
        int f = 0;
        ((row[f++][i] = factors.row(r + i)), ...);
        start[i] = from(r + i) + column;
        target[i] = to(r + i) + column;
      }
      int f = -1;
      const Term<W> terms[count] = {(++f, Term<W>{row[f], depth<W>(factors.weight.K), factors.weight.panel(column)})...};
      multiply_for<W, Left::rows>(m, vectors)(terms, count, start, target, n);
    });
  }
}

// The same where row(r) points to numbers. As pairs they first go to `room`, for as many rows at a time as repay the way of the
// weights through the cache.
constexpr int64_t kRoundedRows = 128;

template <class S, class From, class To, class... Row>
void product(S*, int64_t rows, Columns columns, From from, To to, Factors<S, Row>... factors) {
  product_of_elements(rows, columns, from, to, factors...);
}
template <class From, class To, class... Row>
void product(Pair* room, int64_t rows, Columns columns, From from, To to, Factors<Pair, Row>... factors) {
  for (int64_t begin = 0; begin < rows; begin += kRoundedRows) {
    const int64_t count = rows - begin < kRoundedRows ? rows - begin : kRoundedRows;
    Pair* next = room;
    auto rounded = [&](const auto& numbers) {
      Pair* const all = next;
      const int64_t K = numbers.weight.K, each = depth<Pair>(K);
      for (int64_t r = 0; r < count; ++r) round_row(numbers.row(begin + r), K, all + r * each);
      next += count * each;
      return times([=](int64_t r) { return all + r * each; }, numbers.weight);
    };
    product_of_elements(count, columns, [&](int64_t r) { return from(begin + r); },
                        [&](int64_t r) { return to(begin + r); }, rounded(factors)...);
  }
}

}}  // namespace bptt::BPTT_ISA
