// What the core is given: one layer in one direction. Plain C, so that Python's ctypes can fill it in.
#pragma once
#include <cstdint>

extern "C" {
typedef int (*bptt_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*work)(int64_t, int64_t, void*),
                                 void*);

// Rows: a padded batch [T, B, .] and a packed one are both N rows, step after step (src/bptt/kernels/walk.py). All
// tensors are contiguous. P is the size of h: that of the projection, or H. U is H rounded up to whole registers
// (bptt_units).
typedef struct {
  int64_t cell;            // 0 tanh, 1 ReLU, 2 sigmoid, 3 GRU, 4 LSTM
  int64_t format;          // 0 float, 1 double, 2 float whose products are of bfloat16 numbers, added up as float
  int64_t steps, batch;    // T, B
  int64_t inputs, hidden;  // D, H
  int64_t projected;       // size of the projection, or 0
  int64_t reverse;         // 1: from the last step to the first
  int64_t h_is_known;      // 1: forward finds c and gates alone, from the outputs h
  int64_t threads;
  const int64_t* offsets;  // T+1   rows of step t are offsets[t] .. offsets[t+1]; null: B in every step
  const uint8_t* reset;    // N     1 where the state before this row is zero; or null
  const void* x;           // N,D
  const void *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;  // as torch.nn has them; biases and projection may be null
  const void *h0, *c0;                           // B,P  B,H
  void* h;                                       // N,P   the outputs
  void* c;                                       // N,H   (LSTM)
  void* gates;            // N,G,U what backward needs of the gates; null: not kept, and backward computes them again
  void* candidate;        // N,U   (GRU) W_hn h + b_hn
  void *h_last, *c_last;  // B,P  B,H
  // backward
  const void *d_h, *d_h_last, *d_c_last;             // null: zero
  void* d_x;                                         // N,D   null: not wanted
  void *d_h0, *d_c0;                                 // B,P  B,H  null: not wanted
  void *d_w_ih, *d_w_hh, *d_b_ih, *d_b_hh, *d_w_hr;  // null: not wanted; without d_w_ih none of them is
  void *delta_h, *delta_c;                           // N,P  N,H   dL/dstate after each row, or null
} bptt_problem;

// What the library exports.
#define BPTT_EXPORT __attribute__((visibility("default")))

// The instruction set it chose: avx512, avx2 or baseline.
BPTT_EXPORT const char* bptt_isa();
// H rounded up to whole registers: the width of `gates` and `candidate`.
BPTT_EXPORT int64_t bptt_units(int64_t hidden, int64_t is_double);
// Whether this processor multiplies bfloat16 numbers, for format 2.
BPTT_EXPORT int bptt_has_bfloat16();
// Bytes of a bptt_problem: a core of another version must not be taken for this one.
BPTT_EXPORT int64_t bptt_problem_size();
// Bytes of working memory that forward or backward takes beside the tensors, all threads together, to a few KB; -1: no
// such cell or format. Of the tensors it reads `offsets` alone; of the others it only matters which are null.
BPTT_EXPORT int64_t bptt_workspace_bytes(const bptt_problem* problem, int64_t backward);
// Runs forward or backward. 0, or why not: 1 no such cell or format, 2 out of memory.
BPTT_EXPORT int bptt_run(const bptt_problem* problem, int64_t backward, bptt_parallel_for parallel_for);
}
