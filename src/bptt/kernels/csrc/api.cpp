// The C interface; it chooses the instruction set once.
#include "problem.h"
#include <cstring>
#include <cstdlib>
#include <new>

namespace bptt {
typedef void (*Run)(const bptt_problem&, bptt_parallel_for, bool);
#define BPTT_DECLARE(isa) namespace isa { Run find_run(const bptt_problem&); int64_t units(int64_t, bool); }
struct Isa { const char* name; bool supported; Run (*find_run)(const bptt_problem&); int64_t (*units)(int64_t, bool); };

BPTT_DECLARE(baseline)
#ifndef BPTT_BASELINE_ONLY
BPTT_DECLARE(avx2)
BPTT_DECLARE(avx512)
namespace avx512_bf16 { Run find_run(const bptt_problem&); }
#endif

static const Isa& isa() {
#ifndef BPTT_BASELINE_ONLY
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
#endif
  static const Isa all[] = {
#ifndef BPTT_BASELINE_ONLY
      {"avx512", has_avx512, avx512::find_run, avx512::units},
      {"avx2", has_avx2, avx2::find_run, avx2::units},
#endif
      {"baseline", true, baseline::find_run, baseline::units},
  };
  static const Isa& chosen = []() -> const Isa& {
    const char* wanted = std::getenv("BPTT_ISA");  // for the tests: a smaller one than the best
    const Isa* i = all;
    while (std::strcmp(i->name, "baseline") && (!i->supported || (wanted && std::strcmp(wanted, i->name)))) ++i;
    return *i;
  }();
  return chosen;
}

// For products of bfloat16 numbers; null where this processor has none.
static Run find_bfloat16_run(const bptt_problem& p) {
#ifndef BPTT_BASELINE_ONLY
  if (!std::strcmp(isa().name, "avx512") && __builtin_cpu_supports("avx512bf16")) return avx512_bf16::find_run(p);
#endif
  return nullptr;
}

}  // namespace bptt

extern "C" {
const char* bptt_isa() { return bptt::isa().name; }

int64_t bptt_units(int64_t hidden, int64_t is_double) { return bptt::isa().units(hidden, is_double != 0); }

int bptt_has_bfloat16() { return bptt::find_bfloat16_run({}) != nullptr; }

int64_t bptt_problem_size() { return sizeof(bptt_problem); }

int bptt_run(const bptt_problem* p, int64_t backward, bptt_parallel_for parallel_for) {
  bptt::Run run = p->format == 2 ? bptt::find_bfloat16_run(*p) : bptt::isa().find_run(*p);
  if (!run) return 1;
  try {
    run(*p, parallel_for, backward != 0);
  } catch (const std::bad_alloc&) {
    return 2;
  }
  return 0;
}
}
