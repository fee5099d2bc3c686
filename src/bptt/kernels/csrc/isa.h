// The namespace of everything that is compiled once for each instruction set.
//
// isa.cpp is compiled once a set, with different flags. If two of these objects held an inline function or template instance
// under the same name, the linker would keep one of them for all, and an old processor would meet instructions that it does not
// have. So a file of such code
//
//   - lives in an unnamed namespace within the set's own: no name of it leaves the object;
//   - calls no inline function or template of the standard library (std::vector, std::max): small things of our own instead.
//     What it calls is C (memcpy, nanosleep), or is compiled once (throw_bad_alloc).
//
// tests/test_instruction_sets.py reads the symbols and the machine code of the objects.
#pragma once

#if defined(__AVX512BF16__)
#define BPTT_ISA avx512_bf16
#elif defined(__AVX512F__)
#define BPTT_ISA avx512
#elif defined(__AVX2__)
#define BPTT_ISA avx2
#else
#define BPTT_ISA baseline
#endif
