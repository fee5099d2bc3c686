// One layer in one direction: its cell, its sizes, and where each row's numbers are.
#pragma once
#include "memory.h"
#include "pointwise.h"
#include "problem.h"
#include "product.h"

namespace bptt::BPTT_ISA {
namespace {

// W: the elements that products multiply, S: all other numbers.
template <class W> class Layer {
 public:
  using S = Sum<W>;
  const bptt_problem& p;
  const Cell<S>& cell;
  const int64_t G, D, H, P;
  const int64_t U;  // H rounded up to whole registers
  const int64_t N;  // rows: the sequences of all steps

  Layer(Memory& memory, const bptt_problem& problem, const Cell<S>& cell)
      : p(problem), cell(cell), G(cell.gates), D(p.inputs), H(p.hidden), P(p.projected ? p.projected : H),
        U(round_up<S>(H)), N(offset(p.steps)),
        zeros_(memory, most(most(round_up<S>(P), U), most(round_up<S>(D), int64_t(kNR * kLanes<S>)))) {
    zeros_.zero();
  }

  // A row of zeros, as wide as any.
  const S* zeros() const { return zeros_; }
  // For each row of a product that begins from zero.
  auto from_zero() const {
    return [zeros = zeros()](int64_t) { return zeros; };
  }

  // Rows of step t are offset(t) .. offset(t) + sequences(t).
  int64_t offset(int64_t t) const { return p.offsets ? p.offsets[t] : t * p.batch; }
  int64_t sequences(int64_t t) const { return offset(t + 1) - offset(t); }
  int64_t mean_sequences() const { return most<int64_t>(1, N / p.steps); }
  // The i-th step in the order of the layer.
  int64_t step_at(int64_t i) const { return p.reverse ? p.steps - 1 - i : i; }

  static const S* numbers(const void* tensor) { return static_cast<const S*>(tensor); }
  static S* numbers(void* tensor) { return static_cast<S*>(tensor); }
  const S* x(int64_t row) const { return numbers(p.x) + row * D; }
  S* h(int64_t row) const { return numbers(p.h) + row * P; }
  S* c(int64_t row) const { return has_c() ? numbers(p.c) + row * H : nullptr; }
  S* gates(int64_t row) const { return numbers(p.gates) + row * G * U; }
  S* candidate(int64_t row) const { return numbers(p.candidate) + row * U; }

  bool has_c() const { return cell.states == 2; }
  bool is_separate(int64_t gate) const { return gate >= G - cell.separate_gates; }
  // Numbers of a row's z and of its separate zh, where these are not kept.
  int64_t gates_width() const { return (G + cell.separate_gates) * U; }
  int64_t weight_bytes(int64_t rows, int64_t columns) const { return int64_t(sizeof(W)) / kPer<W> * rows * columns; }

  // The state before row r of step t, in one of its tensors.
  const S* h_before(int64_t t, int64_t r) const { return before(t, r, p.h0, p.h, P); }
  const S* c_before(int64_t t, int64_t r) const { return has_c() ? before(t, r, p.c0, p.c, H) : nullptr; }

 private:
  Buffer<S> zeros_;

  const S* before(int64_t t, int64_t r, const void* initial, const void* all, int64_t width) const {
    if (p.reset && p.reset[offset(t) + r]) return zeros_;
    const int64_t s = p.reverse ? t + 1 : t - 1;
    if (s < 0 || s >= p.steps || r >= sequences(s)) return numbers(initial) + r * width;
    return numbers(all) + (offset(s) + r) * width;
  }
};

}  // namespace
}  // namespace bptt::BPTT_ISA
