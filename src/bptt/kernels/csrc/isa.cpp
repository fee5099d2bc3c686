// Compiled once for each instruction set, with different flags (isa.h). Entry points, found by api.cpp in the set's
// namespace.
#include "backward.h"

namespace bptt::BPTT_ISA {
namespace {

template <class W, class F> bool with_layer(Memory& memory, const bptt_problem& p, bptt_parallel_for pool, F work) {
  const Cell<Sum<W>>* cell = find_cell<Sum<W>>(p.cell);
  if (!cell) return false;
  const Layer<W> layer(memory, p, *cell);
  const Schedule<W> schedule(memory, layer, pool);
  work(layer, schedule);
  return true;
}

template <class W> bool run_layer(const bptt_problem& p, bool backward, bptt_parallel_for pool) {
  Memory memory;
  return with_layer<W>(memory, p, pool, [&](const Layer<W>& layer, const Schedule<W>& schedule) {
    if (backward) Backward<W>(memory, layer, schedule).run();
    else Forward<W>(memory, layer, schedule).run();
  });
}

template <class W> int64_t count_bytes(const bptt_problem& p, bool backward) {
  Memory memory(Memory::Mode::only_counts);
  const bool found = with_layer<W>(memory, p, nullptr, [&](const Layer<W>& layer, const Schedule<W>& schedule) {
    if (backward) Backward<W>(memory, layer, schedule);
    else Forward<W>(memory, layer, schedule);
  });
  return found ? memory.counted_bytes() : -1;
}

}  // namespace

#if defined(__AVX512BF16__)  // for products in bfloat16 alone; everything else is in the set without
bool run(const bptt_problem& p, bool backward, bptt_parallel_for pool) { return run_layer<Bf16x2>(p, backward, pool); }
int64_t workspace_bytes(const bptt_problem& p, bool backward) { return count_bytes<Bf16x2>(p, backward); }
#else
bool run(const bptt_problem& p, bool backward, bptt_parallel_for pool) {
  return p.format == 1 ? run_layer<double>(p, backward, pool) : run_layer<float>(p, backward, pool);
}
int64_t workspace_bytes(const bptt_problem& p, bool backward) {
  return p.format == 1 ? count_bytes<double>(p, backward) : count_bytes<float>(p, backward);
}
#endif
int64_t units(int64_t hidden, bool is_double) { return is_double ? round_up<double>(hidden) : round_up<float>(hidden); }

}  // namespace bptt::BPTT_ISA
