// The pointwise part of each cell, on one register of hidden units. Equations and tables: src/bptt/cells/*.py.
//
//   kGates   G
//   kApart   how many of the last gates need zx and zh apart (the GRU's candidate); the others enter as the sum z = zx + zh
//   kStates  1 (h) or 2 (h, c)
//   forward  z[G] (where apart: zx; `extra` is zh) -> h, c; what the backward needs is left in z
//   backward what forward left, dh, dc -> dz[G] (by zx), dz_apart (by zh, where apart), dh_direct (where apart),
//            dc (by c before); a cell with two states gives h once more, for the gradient of a projection
#pragma once
#include "simd.h"

namespace bptt { namespace BPTT_ISA {

template <class S> struct Step {  // one register of hidden units at one step of one row
  using V = Vec<S>;
  V h_before, c_before, h, c, extra;
  V dh, dc, dh_direct, dz_apart;
};

template <class S, int kind> struct Elman {  // kind 0 tanh, 1 ReLU, 2 sigmoid
  using V = Vec<S>;
  static constexpr int kGates = 1, kApart = 0, kStates = 1;
  static void forward(V (&z)[1], Step<S>& s) {
    if (kind == 0) s.h = tanh<S>(z[0]);
    if (kind == 1) s.h = z[0] < splat(S(0)) ? V{} : z[0];
    if (kind == 2) s.h = sigmoid<S>(z[0]);
  }
  static void backward(V (&z)[1], Step<S>& s) {
    if (kind == 0) z[0] = s.dh * (1 - s.h * s.h);
    if (kind == 1) z[0] = s.h <= splat(S(0)) ? V{} : s.dh;
    if (kind == 2) z[0] = s.dh * s.h * (1 - s.h);
  }
};

template <class S> struct Gru {  // r, z, n
  using V = Vec<S>;
  static constexpr int kGates = 3, kApart = 1, kStates = 1;
  static void forward(V (&z)[3], Step<S>& s) {
    z[0] = sigmoid<S>(z[0]);
    z[1] = sigmoid<S>(z[1]);
    z[2] = tanh<S>(z[2] + z[0] * s.extra);
    s.h = (1 - z[1]) * z[2] + z[1] * s.h_before;
  }
  static void backward(V (&z)[3], Step<S>& s) {
    V r = z[0], u = z[1], n = z[2], a = s.dh * (1 - u) * (1 - n * n);
    z[0] = a * s.extra * r * (1 - r);
    z[1] = s.dh * (s.h_before - n) * u * (1 - u);
    z[2] = a;
    s.dz_apart = a * r;
    s.dh_direct = s.dh * u;
  }
};

template <class S> struct Lstm {  // i, f, g, o
  using V = Vec<S>;
  static constexpr int kGates = 4, kApart = 0, kStates = 2;
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

}}  // namespace bptt::BPTT_ISA
