// What the loops are given. Plain C, so that Python's ctypes can fill it in. Rows: see src/bptt/kernels/reference.py.
#pragma once
#include <cstdint>

extern "C" {
typedef int (*bptt_parallel_for)(int64_t begin, int64_t end, int64_t grain, void (*work)(int64_t, int64_t, void*), void*);

typedef struct {
  int64_t cell;            // 0 tanh, 1 ReLU, 2 sigmoid, 3 GRU, 4 LSTM
  int64_t is_double;       // 0 float, 1 double
  int64_t hidden;          // H
  int64_t steps;           // T
  int64_t batch;           // B, rows of the initial state
  int64_t reverse;         // 1: from the last step to the first
  int64_t threads;
  int64_t first, last;     // backward: the block of steps [first, last)
  const int64_t* offsets;  // T+1      rows of step t are offsets[t] .. offsets[t+1]
  const int64_t* borders;  // threads+1  batch rows of each thread
  const uint8_t* cut;      // N        1 where the state before this row is zero; or null
  const void* zeros;       // H        that state
  const void *h0, *c0;     // B,H      initial state
  void* z;                 // N,G,H    zx, with b_hh where it enters as a sum; forward leaves here what backward needs
  void* extra;             // N,H      (GRU) zh of the candidate
  void *h, *c;             // N,H      state after each row
  const void* weight;      // packed by cpu.py
  const void* bias_apart;  // H        (GRU) b_hh of the candidate, or null
  const void* d_outputs;   // N,H
  void *dh, *dc;           // B,H      gradient of the state, carried from block to block
  void *dz, *dz_hidden;    // rows of the block,G,H  by zx and by zh (one buffer where they are the same)
  void* before;            // rows of the block,H    h before each row
} bptt_problem;
}
