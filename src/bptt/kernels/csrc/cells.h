// The pointwise part of each cell, on one register of hidden units. Equations and tables: src/bptt/cells/*.py.
//
//   kGates          G
//   kSeparateGates  1 where the last gate needs zx and zh separately (the GRU's candidate), else 0. The other gates
//                   take z = zx + zh.
//   kStates         1 (h) or 2 (h, c)
//   forward         z[G] (of the separate gate zx, and `zh` is its zh) -> h, c. Leaves in z what the backward needs.
//   backward        what forward left, dh, dc -> dz[G] = dL/dzx, dz_separate = dL/dzh of the separate gate, dc = dL/dc
//                   before. With a separate gate also dh_direct: the part of dL/dh before that does not pass through
//                   W_hh. A cell with two states recomputes h, for the gradient of a projection.
#pragma once
#include "simd.h"

namespace bptt::BPTT_ISA {
namespace {

// One register of hidden units at one step of one row.
template <class S> struct Step {
  using V = Vec<S>;
  V h_before, c_before, h, c, zh;
  V dh, dc, dh_direct, dz_separate;
};

enum class Nonlinearity { tanh, relu, sigmoid };

template <class S, Nonlinearity kind> struct Elman {
  using V = Vec<S>;
  static constexpr int kGates = 1, kSeparateGates = 0, kStates = 1;
  static void forward(V (&z)[1], Step<S>& s) {
    if (kind == Nonlinearity::tanh) s.h = tanh<S>(z[0]);
    if (kind == Nonlinearity::relu) s.h = z[0] < splat(S(0)) ? V{} : z[0];
    if (kind == Nonlinearity::sigmoid) s.h = sigmoid<S>(z[0]);
  }
  static void backward(V (&z)[1], Step<S>& s) {
    if (kind == Nonlinearity::tanh) z[0] = s.dh * (1 - s.h * s.h);
    if (kind == Nonlinearity::relu) z[0] = s.h <= splat(S(0)) ? V{} : s.dh;
    if (kind == Nonlinearity::sigmoid) z[0] = s.dh * s.h * (1 - s.h);
  }
};

// Gates r, z, n.
template <class S> struct Gru {
  using V = Vec<S>;
  static constexpr int kGates = 3, kSeparateGates = 1, kStates = 1;
  static void forward(V (&z)[3], Step<S>& s) {
    z[0] = sigmoid<S>(z[0]);
    z[1] = sigmoid<S>(z[1]);
    z[2] = tanh<S>(z[2] + z[0] * s.zh);
    s.h = (1 - z[1]) * z[2] + z[1] * s.h_before;
  }
  static void backward(V (&z)[3], Step<S>& s) {
    V r = z[0], u = z[1], n = z[2], a = s.dh * (1 - u) * (1 - n * n);
    z[0] = a * s.zh * r * (1 - r);
    z[1] = s.dh * (s.h_before - n) * u * (1 - u);
    z[2] = a;
    s.dz_separate = a * r;
    s.dh_direct = s.dh * u;
  }
};

// Gates i, f, g, o.
template <class S> struct Lstm {
  using V = Vec<S>;
  static constexpr int kGates = 4, kSeparateGates = 0, kStates = 2;
  static void forward(V (&z)[4], Step<S>& s) {
    z[0] = sigmoid<S>(z[0]);
    z[1] = sigmoid<S>(z[1]);
    z[2] = tanh<S>(z[2]);
    z[3] = sigmoid<S>(z[3]);
    s.c = z[1] * s.c_before + z[0] * z[2];
    s.h = z[3] * tanh<S>(s.c);
  }
  static void backward(V (&z)[4], Step<S>& s) {
    V i = z[0], f = z[1], g = z[2], o = z[3], tanh_c = tanh<S>(s.c);
    V dc = s.dc + s.dh * o * (1 - tanh_c * tanh_c);
    z[0] = dc * g * i * (1 - i);
    z[1] = dc * s.c_before * f * (1 - f);
    z[2] = dc * i * (1 - g * g);
    z[3] = s.dh * tanh_c * o * (1 - o);
    s.h = o * tanh_c;
    s.dc = dc * f;
  }
};

}  // namespace
}  // namespace bptt::BPTT_ISA
