// The weights as the forward's products want them.
#pragma once
#include "schedule.h"

namespace bptt::BPTT_ISA {
namespace {

template <class W> class Operands {
 public:
  using S = Sum<W>;

  // Without `wanted` there is no room for any.
  Operands(Memory& memory, const Layer<W>& layer, const Schedule<W>& schedule, bool wanted = true)
      : joins_inputs(layer.p.batch >= 4 * schedule.groups &&
                     layer.weight_bytes(layer.G * layer.U, layer.D + layer.P) / schedule.workers <= kL2Bytes / 4),
        l(layer), schedule_(schedule), ih_size_(layer.G * Packed<W>::size(layer.D, layer.H)),
        hh_size_(layer.G * Packed<W>::size(layer.P, layer.H)),
        hr_size_(layer.p.projected ? Packed<W>::size(layer.H, layer.P) : 0),
        weights_(memory, wanted ? ih_size_ + hh_size_ + hr_size_ : 0), bias_(memory, wanted ? layer.G * layer.U : 0),
        separate_bias_(memory, wanted ? layer.U : 0) {}

  // Whether zx and zh are one product, step by step: where all weights fit a cache, and tiles are full.
  const bool joins_inputs;

  Packed<W> w_ih(const GateGroup& group) const { return packed(weights_, group, l.D); }
  Packed<W> w_hh(const GateGroup& group) const { return packed(weights_ + ih_size_, group, l.P); }
  Packed<W> w_hr() const { return {weights_ + ih_size_ + hh_size_, l.H, l.P, schedule_.outputs.panel_width}; }
  // b_ih + b_hh, each gate padded to U; of a separate gate b_ih, and its b_hh apart.
  const S* bias(const GateGroup& group) const { return bias_ + group.first * l.U; }
  const S* separate_bias() const { return separate_bias_; }

  void pack() {
    add_biases();
    const int64_t packers = schedule_.threads_for(l.G * l.H * (l.D + l.P) / 4);
    schedule_.run_parallel(packers, [&](int64_t begin, int64_t end) {
      for (int64_t g = 0; g < schedule_.gate_groups(); ++g) pack_group(schedule_.gate_group(g), packers, begin, end);
      if (l.p.projected && begin == 0) pack_projection();
    });
  }

 private:
  const Layer<W>& l;
  const Schedule<W>& schedule_;
  const int64_t ih_size_, hh_size_, hr_size_;
  const Buffer<W> weights_;  // in one piece, which the backward's dz gets from the pool
  Buffer<S> bias_, separate_bias_;

  Packed<W> packed(W* data, const GateGroup& group, int64_t K) const {
    return {data + group.first * Packed<W>::size(K, l.U), K, group.count * l.U, group.panel_width};
  }

  // The panels [begin, end) of each `packers`.
  void pack_group(const GateGroup& group, int64_t packers, int64_t begin, int64_t end) const {
    for (int64_t j = 0, i = 0; j < group.count * l.U; j += group.panel_width, ++i) {
      if (i % packers < begin || i % packers >= end) continue;
      w_ih(group).pack_transposed(j, l.D, gate_rows(l.p.w_ih, group, l.D));
      w_hh(group).pack_transposed(j, l.P, gate_rows(l.p.w_hh, group, l.P));
    }
  }
  auto gate_rows(const void* matrix, const GateGroup& group, int64_t width) const {
    return [=](int64_t column) -> typename Packed<W>::Source {
      const int64_t unit = column % l.U, row = (group.first + column / l.U) * l.H + unit;
      return {l.numbers(matrix) + row * width, int(least<int64_t>(kLanes<S>, l.H - unit))};
    };
  }

  void pack_projection() const {
    for (int64_t j = 0; j < l.P; j += schedule_.outputs.panel_width)
      w_hr().pack_transposed(j, l.H, [&](int64_t o) -> typename Packed<W>::Source {
        return {l.numbers(l.p.w_hr) + o * l.H, int(least<int64_t>(kLanes<S>, most<int64_t>(0, l.P - o)))};
      });
  }

  void add_biases() {
    bias_.zero();
    separate_bias_.zero();
    if (!l.p.b_ih) return;
    const S *b_ih = l.numbers(l.p.b_ih), *b_hh = l.numbers(l.p.b_hh);
    for (int64_t g = 0; g < l.G; ++g)
      for (int64_t j = 0; j < l.H; ++j) {
        bias_[g * l.U + j] = b_ih[g * l.H + j] + (l.is_separate(g) ? S(0) : b_hh[g * l.H + j]);
        if (l.is_separate(g)) separate_bias_[j] = b_hh[g * l.H + j];
      }
  }
};

}  // namespace
}  // namespace bptt::BPTT_ISA
