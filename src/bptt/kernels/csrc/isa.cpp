// Compiled once for each instruction set, with other flags.
#include "loops.h"

namespace bptt { namespace BPTT_ISA {
Run find_run(const bptt_problem& p) { return p.is_double ? find<double>(p.cell) : find<float>(p.cell); }
int64_t units(int64_t hidden, bool is_double) { return is_double ? whole<double>(hidden) : whole<float>(hidden); }
}}
