// A cell as the rest of the core sees it: a few numbers, and two functions over the hidden units of one row.
//
// Layer, products and threads know no cell: they call these two through pointers. What depends on a cell is cells.h and
// the two loops below, and only they are compiled once for each cell.
#pragma once
#include "cells.h"
#include "memory.h"

namespace bptt::BPTT_ISA {
namespace {

// Units [first, last) of a row, whole registers: `last` may lie beyond H, in the padding up to U.
struct Units {
  int64_t first, last;
  int64_t H, U;
  int in_register(int64_t j, int lanes) const { return j + lanes <= H ? lanes : int(H - j); }
};

// What the forward of one row reads and writes; each pointer is to unit 0.
template <class S> struct ForwardRow {
  S* gates;           // G,U  z; then, where keeps_gates, what the backward needs
  const S* zh;        // U    of the separate gate
  const S* h_before;  // H
  const S* c_before;  // H
  S *h, *c;           // H    null: not wanted
  bool keeps_gates;
};

// What the backward of one row reads and writes; each pointer is to unit 0. Gradients are those of the loss.
template <class S> struct BackwardRow {
  const S* gates;                        // G,U  what the forward kept
  const S* zh;                           // U    of the separate gate
  const S *h_before, *c_before, *h, *c;  // H
  const S* d_output;                     // H    added to dh: by the output of this row
  S *dh, *dc;            // U    by the state after the row; then by that before it, W_hh's part left out
  S *delta_h, *delta_c;  // H    copies of the former; null: not wanted
  S *dz, *dz_hidden;     // G,U  by zx and by zh; the same where no gate is separate
  S* raw;                // U    h before the projection; null: not wanted
};

template <class S> struct Cell {
  int gates, separate_gates, states;
  void (*forward)(const ForwardRow<S>&, const Units&);
  void (*backward)(const BackwardRow<S>&, const Units&);
};

template <class S, class C> void forward_row(const ForwardRow<S>& row, const Units& units) {
  constexpr int G = C::kGates, L = kLanes<S>;
  for (int64_t j = units.first; j < units.last; j += L) {
    const int n = units.in_register(j, L);
    Vec<S> gate[G];
    for (int g = 0; g < G; ++g) gate[g] = load(row.gates + g * units.U + j);
    Step<S> s{};
    s.h_before = load(row.h_before + j, n);
    if (C::kStates == 2) s.c_before = load(row.c_before + j, n);
    if (C::kSeparateGates) s.zh = load(row.zh + j);
    C::forward(gate, s);
    for (int g = 0; row.keeps_gates && g < G; ++g) store(row.gates + g * units.U + j, gate[g]);
    if (C::kStates == 2 && row.c) store(row.c + j, s.c, n);
    if (row.h) store(row.h + j, s.h, n);
  }
}

// Reads the step of the units from j on, n of which exist, and hands out copies of the gradient by its state.
template <class S, class C> inline Step<S> read_step(const BackwardRow<S>& row, int64_t j, int n) {
  Step<S> s{};
  s.h = load(row.h + j, n);
  s.h_before = load(row.h_before + j, n);
  s.dh = load(row.dh + j) + load(row.d_output + j, n);
  if (row.delta_h) store(row.delta_h + j, s.dh, n);
  if (C::kSeparateGates) s.zh = load(row.zh + j);
  if (C::kStates == 2) {
    s.c_before = load(row.c_before + j, n);
    s.c = load(row.c + j, n);
    s.dc = load(row.dc + j);
    if (row.delta_c) store(row.delta_c + j, s.dc, n);
  }
  return s;
}

// Zeroes the gradients of lanes without a unit: inf * 0 may have left a NaN there, which no weight of 0 would stop.
template <class S, int G> inline void zero_padding(Vec<S> (&dz)[G], Step<S>& s, int n) {
  for (int g = 0; g < G; ++g) dz[g] = first_lanes<S>(dz[g], n);
  s.dz_separate = first_lanes<S>(s.dz_separate, n);
  s.dh_direct = first_lanes<S>(s.dh_direct, n);
  s.dc = first_lanes<S>(s.dc, n);
}

template <class S, class C>
inline void write_step(const BackwardRow<S>& row, const Vec<S> (&dz)[C::kGates], const Step<S>& s, int64_t j,
                       int64_t U) {
  constexpr int G = C::kGates;
  for (int g = 0; g < G; ++g) store(row.dz + g * U + j, dz[g]);
  if (C::kSeparateGates) {
    for (int g = 0; g < G - 1; ++g) store(row.dz_hidden + g * U + j, dz[g]);
    store(row.dz_hidden + (G - 1) * U + j, s.dz_separate);
    store(row.dh + j, s.dh_direct);
  }
  if (C::kStates == 2) store(row.dc + j, s.dc);
  if (row.raw) store(row.raw + j, s.h);
}

template <class S, class C> void backward_row(const BackwardRow<S>& row, const Units& units) {
  constexpr int G = C::kGates, L = kLanes<S>;
  for (int64_t j = units.first; j < units.last; j += L) {
    const int n = units.in_register(j, L);
    Vec<S> z[G];
    for (int g = 0; G > 1 && g < G; ++g) z[g] = load(row.gates + g * units.U + j);  // one gate alone is h
    Step<S> s = read_step<S, C>(row, j, n);
    C::backward(z, s);
    if (n < L) zero_padding<S, G>(z, s, n);
    write_step<S, C>(row, z, s, j, units.U);
  }
}

template <class S, class C> constexpr Cell<S> cell_of() {
  return {C::kGates, C::kSeparateGates, C::kStates, forward_row<S, C>, backward_row<S, C>};
}

// The cell of that number in problem.h, or null.
template <class S> const Cell<S>* find_cell(int64_t number) {
  static constexpr Cell<S> all[] = {
      cell_of<S, Elman<S, Nonlinearity::tanh>>(),
      cell_of<S, Elman<S, Nonlinearity::relu>>(),
      cell_of<S, Elman<S, Nonlinearity::sigmoid>>(),
      cell_of<S, Gru<S>>(),
      cell_of<S, Lstm<S>>(),
  };
  return number >= 0 && number < int64_t(sizeof(all) / sizeof(all[0])) ? &all[number] : nullptr;
}

}  // namespace
}  // namespace bptt::BPTT_ISA
