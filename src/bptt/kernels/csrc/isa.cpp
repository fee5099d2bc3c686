// Compiled once for each instruction set, with other flags.
#include "loops.h"

namespace bptt { namespace BPTT_ISA {
#if defined(__AVX512BF16__)  // for this alone; all else is in the one without
Run find_run(const bptt_problem& p) { return find<float, Pair>(p.cell); }
#else
Run find_run(const bptt_problem& p) { return p.format == 1 ? find<double>(p.cell) : find<float>(p.cell); }
int64_t units(int64_t hidden, bool is_double) { return is_double ? whole<double>(hidden) : whole<float>(hidden); }
#endif
}}
