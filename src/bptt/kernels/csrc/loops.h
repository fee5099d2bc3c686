// The loop over time: each thread runs its rows of the batch through all steps, with no barrier.
#pragma once
#include "cells.h"
#include "problem.h"

namespace bptt { namespace BPTT_ISA {

constexpr int kTileRows = kRegisters == 32 ? 6 : 3;   // 6 x 4 accumulators of 32 registers, 3 x 4 of 16
inline int64_t tile_rows(int64_t rows) {               // even tiles: 8 rows are 4 + 4, not 6 + 2
  int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  return (rows + tiles - 1) / tiles;
}

// acc[m][n] += sum_k a[m][k] * w[k][n]; with few accumulators two sets of them hide the latency of the multiply-add.
template <class S, int M, int N>
inline void multiply(const S* const (&a)[M], const S* w, int64_t K, Vec<S> (&acc)[M][N]) {
  constexpr int L = kLanes<S>, sets = M * N <= 8 ? 2 : 1;
  Vec<S> second[M][N] = {};
  int64_t k = 0;
  if (sets == 2)
    for (; k + 2 <= K; k += 2, w += 2 * N * L)
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
          acc[m][n] += a[m][k] * load(w + n * L);
          second[m][n] += a[m][k + 1] * load(w + (N + n) * L);
        }
  for (; k < K; ++k, w += N * L) {
    Vec<S> row[N];
    for (int n = 0; n < N; ++n) row[n] = load(w + n * L);
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) acc[m][n] += a[m][k] * row[n];
  }
  if (sets == 2)
    for (int m = 0; m < M; ++m)
      for (int n = 0; n < N; ++n) acc[m][n] += second[m][n];
}

template <class S, class C> struct Loops {
  static constexpr int L = kLanes<S>, G = C::kGates;
  static constexpr int U = G == 1 ? 4 : 1;  // registers of units at a time, so that there are enough accumulators
  static constexpr int N = U * G;
  const bptt_problem& p;
  const int64_t H;

  explicit Loops(const bptt_problem& problem) : p(problem), H(problem.hidden) {}

  int64_t size(int64_t t) const { return p.offsets[t + 1] - p.offsets[t]; }
  int64_t previous(int64_t t) const { return p.reverse ? t + 1 : t - 1; }

  // The state before row r of step t, in one of its buffers.
  const S* before(int64_t t, int64_t r, const void* initial, const void* all) const {
    if (p.cut && p.cut[p.offsets[t] + r]) return static_cast<const S*>(p.zeros);
    int64_t s = previous(t);
    if (s < 0 || s >= p.steps || r >= size(s)) return static_cast<const S*>(initial) + r * H;
    return static_cast<const S*>(all) + (p.offsets[s] + r) * H;
  }

  template <int M> void forward_tile(int64_t t, int64_t r) const {
    const S *h_before[M], *c_before[M];
    for (int m = 0; m < M; ++m) {
      h_before[m] = before(t, r + m, p.h0, p.h);
      c_before[m] = C::kStates == 2 ? before(t, r + m, p.c0, p.c) : nullptr;
    }
    const int64_t row = p.offsets[t] + r;
    S* z = static_cast<S*>(p.z) + row * G * H;
    for (int64_t j = 0; j < H; j += U * L) {
      Vec<S> acc[M][N];
      for (int u = 0; u < U; ++u) {
        int64_t unit = j + u * L;
        int n = unit >= H ? 0 : unit + L <= H ? L : int(H - unit);
        for (int m = 0; m < M; ++m)
          for (int g = 0; g < G; ++g)
            acc[m][u * G + g] = g >= G - C::kApart
                                    ? (p.bias_apart ? load(static_cast<const S*>(p.bias_apart) + unit, n) : Vec<S>{})
                                    : load(z + (m * G + g) * H + unit, n);
      }
      multiply<S, M, N>(h_before, static_cast<const S*>(p.weight) + j * G * H, H, acc);
      for (int u = 0; u < U; ++u) {
        int64_t unit = j + u * L;
        if (unit >= H) break;
        int n = unit + L <= H ? L : int(H - unit);
        for (int m = 0; m < M; ++m) finish(acc[m], u, z + m * G * H, row + m, unit, n, h_before[m], c_before[m]);
      }
    }
  }

  void finish(Vec<S> (&acc)[N], int u, S* z, int64_t row, int64_t unit, int n, const S* h_before, const S* c_before) const {
    Vec<S> gates[G];
    for (int g = 0; g < G; ++g) gates[g] = acc[u * G + g];
    Step<S> s;
    s.h_before = load(h_before + unit, n);
    if (C::kStates == 2) s.c_before = load(c_before + unit, n);
    C::forward(gates, C::kApart ? load(z + (G - 1) * H + unit, n) : Vec<S>{}, s);
    if (G > 1)
      for (int g = 0; g < G; ++g) store(z + g * H + unit, gates[g], n);
    if (C::kApart) store(static_cast<S*>(p.extra) + row * H + unit, s.extra, n);
    if (C::kStates == 2) store(static_cast<S*>(p.c) + row * H + unit, s.c, n);
    store(static_cast<S*>(p.h) + row * H + unit, s.h, n);
  }

  void forward(int64_t first, int64_t last) const {
    for (int64_t i = 0; i < p.steps; ++i) {
      int64_t t = p.reverse ? p.steps - 1 - i : i;
      tiles(first, last < size(t) ? last : size(t), [&](auto M, int64_t r) { this->template forward_tile<M.value>(t, r); });
    }
  }

  void backward_pointwise(int64_t t, int64_t r) const {
    const int64_t row = p.offsets[t] + r, in_block = row - p.offsets[p.first];
    const S* h_before = before(t, r, p.h0, p.h);
    const S* c_before = C::kStates == 2 ? before(t, r, p.c0, p.c) : nullptr;
    const S* z = static_cast<const S*>(p.z) + row * G * H;
    S *dz = static_cast<S*>(p.dz) + in_block * G * H, *dz_hidden = static_cast<S*>(p.dz_hidden) + in_block * G * H;
    S *dh = static_cast<S*>(p.dh) + r * H, *dc = static_cast<S*>(p.dc) + r * H;
    for (int64_t j = 0; j < H; j += L) {
      int n = j + L <= H ? L : int(H - j);
      Vec<S> gates[G];
      if (G > 1)
        for (int g = 0; g < G; ++g) gates[g] = load(z + g * H + j, n);
      Step<S> s;
      s.h_before = load(h_before + j, n);
      s.h = load(static_cast<const S*>(p.h) + row * H + j, n);
      s.dh = load(dh + j, n) + load(static_cast<const S*>(p.d_outputs) + row * H + j, n);
      if (C::kStates == 2) {
        s.c_before = load(c_before + j, n);
        s.c = load(static_cast<const S*>(p.c) + row * H + j, n);
        s.dc = load(dc + j, n);
      }
      if (C::kApart) s.extra = load(static_cast<const S*>(p.extra) + row * H + j, n);
      C::backward(gates, s);
      for (int g = 0; g < G; ++g) store(dz + g * H + j, gates[g], n);
      if (C::kApart) {
        for (int g = 0; g < G - 1; ++g) store(dz_hidden + g * H + j, gates[g], n);
        store(dz_hidden + (G - 1) * H + j, s.dz_apart, n);
      }
      store(dh + j, s.dh_direct, n);
      if (C::kStates == 2) store(dc + j, s.dc, n);
      store(static_cast<S*>(p.before) + in_block * H + j, s.h_before, n);
    }
  }

  // dh[r..] += dz_hidden W_hh, for M rows
  template <int M> void backward_tile(int64_t t, int64_t r) const {
    constexpr int W = 4;
    const S* dz[M];
    const int64_t in_block = p.offsets[t] + r - p.offsets[p.first];
    for (int m = 0; m < M; ++m) dz[m] = static_cast<const S*>(p.dz_hidden) + (in_block + m) * G * H;
    S* dh = static_cast<S*>(p.dh) + r * H;
    for (int64_t j = 0; j < H; j += W * L) {
      Vec<S> acc[M][W];
      int n[W];
      for (int u = 0; u < W; ++u) {
        int64_t unit = j + u * L;
        n[u] = unit >= H ? 0 : unit + L <= H ? L : int(H - unit);
        for (int m = 0; m < M; ++m) acc[m][u] = C::kApart ? load(dh + m * H + unit, n[u]) : Vec<S>{};
      }
      multiply<S, M, W>(dz, static_cast<const S*>(p.weight) + j * G * H, G * H, acc);
      for (int u = 0; u < W; ++u)
        for (int m = 0; m < M; ++m) store(dh + m * H + j + u * L, acc[m][u], n[u]);
    }
  }

  void zero_cut_rows(int64_t t, int64_t first, int64_t last) const {
    for (int64_t r = first; r < last; ++r)
      if (p.cut[p.offsets[t] + r]) {
        std::memset(static_cast<S*>(p.dh) + r * H, 0, H * sizeof(S));
        if (C::kStates == 2) std::memset(static_cast<S*>(p.dc) + r * H, 0, H * sizeof(S));
      }
  }

  void backward(int64_t first, int64_t last) const {
    for (int64_t i = 0; i < p.last - p.first; ++i) {
      int64_t t = p.reverse ? p.first + i : p.last - 1 - i;
      int64_t end = last < size(t) ? last : size(t);
      for (int64_t r = first; r < end; ++r) backward_pointwise(t, r);
      tiles(first, end, [&](auto M, int64_t r) { this->template backward_tile<M.value>(t, r); });
      if (p.cut) zero_cut_rows(t, first, end);
    }
  }

  // work(M, r) over rows [first, last) in even tiles of at most kTileRows
  template <class F> static void tiles(int64_t first, int64_t last, F work) {
    if (first >= last) return;
    const int64_t tile = tile_rows(last - first);
    for (int64_t r = first; r < last;) {
      int64_t m = last - r < tile ? last - r : tile;
      with_rows(m, [&](auto M) { work(M, r); });
      r += m;
    }
  }
  template <int M> struct Rows { static constexpr int value = M; };
  template <class F> static void with_rows(int64_t m, F f) {
    switch (m) {
      case 1: return f(Rows<1>{});
      case 2: return f(Rows<2>{});
      case 3: return f(Rows<3>{});
#if defined(__AVX512F__)
      case 4: return f(Rows<4>{});
      case 5: return f(Rows<5>{});
      case 6: return f(Rows<6>{});
#endif
    }
  }
};

// One entry for each (cell, number format): rows [first, last) of the batch; backward or forward.
typedef void (*Run)(const bptt_problem&, int64_t first, int64_t last, bool backward);
template <class S, class C> void run(const bptt_problem& p, int64_t first, int64_t last, bool backward) {
  Loops<S, C> loops(p);
  if (backward) loops.backward(first, last);
  else loops.forward(first, last);
}
template <class S> Run find(int64_t cell) {
  switch (cell) {
    case 0: return run<S, Elman<S, 0>>;
    case 1: return run<S, Elman<S, 1>>;
    case 2: return run<S, Elman<S, 2>>;
    case 3: return run<S, Gru<S>>;
    case 4: return run<S, Lstm<S>>;
  }
  return nullptr;
}

}}  // namespace bptt::BPTT_ISA
