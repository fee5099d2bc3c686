// The namespace of everything that is compiled once for each instruction set.
//
// isa.cpp is compiled once a set, with different flags. If two of these objects held an inline function or a template
// instance of the same name, the linker would keep one of them for all, and an old processor would meet instructions
// that it does not have. So the code of a set
//
//   - lives in an unnamed namespace within the set's own: no name of it leaves the object;
//   - calls no inline function or template of the standard library (std::vector, std::max). It uses small things of its
//     own (memory.h), calls C (memcpy, nanosleep), or calls what is compiled once (throw_bad_alloc).
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
