// The C interface. Compiled once, without the flags of any instruction set; chooses the set that runs.
#include "problem.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace bptt {

[[noreturn]] void throw_bad_alloc() { throw std::bad_alloc(); }

namespace {
using Run = bool (*)(const bptt_problem&, bool backward, bptt_parallel_for);
using WorkspaceBytes = int64_t (*)(const bptt_problem&, bool backward);
using UnitsOf = int64_t (*)(int64_t hidden, bool is_double);
struct InstructionSet {
  const char* name;
  bool supported;
  Run run;
  WorkspaceBytes workspace_bytes;
  UnitsOf units;
};
}  // namespace

// The entry points of isa.cpp.
#define BPTT_DECLARE(set)                                          \
  namespace set {                                                  \
  bool run(const bptt_problem&, bool backward, bptt_parallel_for); \
  int64_t workspace_bytes(const bptt_problem&, bool backward);     \
  int64_t units(int64_t hidden, bool is_double);                   \
  }
#define BPTT_ENTRY(set, supported) {#set, supported, set::run, set::workspace_bytes, set::units}

BPTT_DECLARE(baseline)
#ifndef BPTT_BASELINE_ONLY
BPTT_DECLARE(avx2)
BPTT_DECLARE(avx512)
BPTT_DECLARE(avx512_bf16)
#endif

namespace {

#ifdef BPTT_BASELINE_ONLY
const InstructionSet& instruction_set() {
  static const InstructionSet only = BPTT_ENTRY(baseline, true);
  return only;
}
// For products of bfloat16 numbers; null where this processor has none.
const InstructionSet* bfloat16_set() { return nullptr; }
#else
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
}

// The best set of the processor; or, for the tests, a smaller one that BPTT_ISA names (baseline for an unknown name).
const InstructionSet& choose() {
  __builtin_cpu_init();
  static const InstructionSet all[] = {BPTT_ENTRY(avx512, has_avx512()), BPTT_ENTRY(avx2, has_avx2()),
                                       BPTT_ENTRY(baseline, true)};
  const char* wanted = std::getenv("BPTT_ISA");
  const InstructionSet* set = all;
  while (std::strcmp(set->name, "baseline") && (!set->supported || (wanted && std::strcmp(wanted, set->name)))) ++set;
  return *set;
}
const InstructionSet& instruction_set() {
  static const InstructionSet& chosen = choose();
  return chosen;
}
const InstructionSet* bfloat16_set() {
  static const InstructionSet bfloat16 = BPTT_ENTRY(avx512_bf16, true);
  const bool has_it = !std::strcmp(instruction_set().name, "avx512") && __builtin_cpu_supports("avx512bf16");
  return has_it ? &bfloat16 : nullptr;
}
#endif

const InstructionSet* set_for(const bptt_problem& p) { return p.format == 2 ? bfloat16_set() : &instruction_set(); }

}  // namespace
}  // namespace bptt

extern "C" {
const char* bptt_isa() { return bptt::instruction_set().name; }

int64_t bptt_units(int64_t hidden, int64_t is_double) { return bptt::instruction_set().units(hidden, is_double != 0); }

int bptt_has_bfloat16() { return bptt::bfloat16_set() != nullptr; }

int64_t bptt_problem_size() { return sizeof(bptt_problem); }

int64_t bptt_workspace_bytes(const bptt_problem* p, int64_t backward) {
  const bptt::InstructionSet* set = bptt::set_for(*p);
  return set ? set->workspace_bytes(*p, backward != 0) : -1;
}

int bptt_run(const bptt_problem* p, int64_t backward, bptt_parallel_for parallel_for) {
  const bptt::InstructionSet* set = bptt::set_for(*p);
  try {
    return set && set->run(*p, backward != 0, parallel_for) ? 0 : 1;
  } catch (const std::bad_alloc&) {
    return 2;
  }
}
}
