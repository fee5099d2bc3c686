// The C interface: chooses the instruction set once, and splits the batch over torch's threads.
#include "problem.h"
#include <cstring>
#include <cstdlib>

namespace bptt {
typedef void (*Run)(const bptt_problem&, int64_t, int64_t, bool);
#define BPTT_DECLARE(isa) namespace isa { Run find_run(const bptt_problem&); int lanes(bool); }
struct Isa { const char* name; bool supported; Run (*find_run)(const bptt_problem&); int (*lanes)(bool); };

BPTT_DECLARE(baseline)
#ifndef BPTT_BASELINE_ONLY
BPTT_DECLARE(avx2)
BPTT_DECLARE(avx512)
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
      {"avx512", has_avx512, avx512::find_run, avx512::lanes},
      {"avx2", has_avx2, avx2::find_run, avx2::lanes},
#endif
      {"baseline", true, baseline::find_run, baseline::lanes},
  };
  static const Isa& chosen = []() -> const Isa& {
    const char* wanted = std::getenv("BPTT_ISA");  // for the tests: a smaller one than the best
    const Isa* i = all;
    while (std::strcmp(i->name, "baseline") && (!i->supported || (wanted && std::strcmp(wanted, i->name)))) ++i;
    return *i;
  }();
  return chosen;
}

struct Work { const bptt_problem* p; Run run; bool backward; };
}  // namespace bptt

#define BPTT_EXPORT __attribute__((visibility("default")))

extern "C" {
BPTT_EXPORT const char* bptt_isa() { return bptt::isa().name; }
BPTT_EXPORT int64_t bptt_lanes(int64_t is_double) { return bptt::isa().lanes(is_double); }

BPTT_EXPORT int bptt_run(const bptt_problem* p, int64_t backward, bptt_parallel_for parallel_for) {
  bptt::Run run = bptt::isa().find_run(*p);
  if (!run) return 1;
  bptt::Work work{p, run, backward != 0};
  return parallel_for(0, p->threads, 1, [](int64_t a, int64_t b, void* context) {
    const bptt::Work& w = *static_cast<bptt::Work*>(context);
    for (int64_t i = a; i < b; ++i) w.run(*w.p, w.p->borders[i], w.p->borders[i + 1], w.backward);
  }, &work);
}
}
