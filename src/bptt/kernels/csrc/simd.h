// One register of numbers, for whatever instruction set this file is compiled for, and the functions that cells need.
#pragma once
#include "isa.h"

#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace bptt::BPTT_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64, kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kBytes = 32, kRegisters = 16;
#else
constexpr int kBytes = 16, kRegisters = 16;
#endif

template <class S> struct Register;
template <> struct Register<float> {
  typedef float V __attribute__((vector_size(kBytes)));
  typedef float Unaligned __attribute__((vector_size(kBytes), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(kBytes)));
};
template <> struct Register<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef double Unaligned __attribute__((vector_size(kBytes), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(kBytes)));
};
// Two bfloat16 numbers, the first in the low half. The processor multiplies them with two others and adds both products
// to one float.
struct Bf16x2 {
  uint32_t bits;
};
template <> struct Register<Bf16x2> {
  typedef uint32_t V __attribute__((vector_size(kBytes)));
  typedef uint32_t Unaligned __attribute__((vector_size(kBytes), aligned(4), may_alias));
};
template <class S> using Vec = typename Register<S>::V;
template <class S> constexpr int kLanes = kBytes / sizeof(S);

// A matrix product multiplies elements W and accumulates in Sum<W>. An element holds kPer<W> numbers: Bf16x2 two, the
// others one.
template <class W> struct SumOf {
  using S = W;
};
template <> struct SumOf<Bf16x2> {
  using S = float;
};
template <class W> using Sum = typename SumOf<W>::S;
template <class W> constexpr int kPer = 1;
template <> inline constexpr int kPer<Bf16x2> = 2;

template <class S> inline Vec<S> splat(S x) { return Vec<S>{} + x; }

template <class S> inline Vec<S> load(const S* p) {
  return *reinterpret_cast<const typename Register<S>::Unaligned*>(p);
}
template <class S> inline void store(S* p, Vec<S> v) { *reinterpret_cast<typename Register<S>::Unaligned*>(p) = v; }

// The first n numbers at p, then zeros. Memory beyond them is not touched.
template <class S> inline Vec<S> load(const S* p, int n) {
  if (__builtin_expect(n == kLanes<S>, 1)) return load(p);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_maskz_loadu_ps((1u << n) - 1, p);
  else return (Vec<S>)_mm512_maskz_loadu_pd((1u << n) - 1, p);
#else
  Vec<S> v{};
  std::memcpy(&v, p, n * sizeof(S));
  return v;
#endif
}
template <class S> inline void store(S* p, Vec<S> v, int n) {
  if (__builtin_expect(n == kLanes<S>, 1)) return store(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)v);
  else _mm512_mask_storeu_pd(p, (1u << n) - 1, (__m512d)v);
#else
  std::memcpy(p, &v, n * sizeof(S));
#endif
}

// sum + a w, for one element a.
template <class S> inline Vec<S> add_product(Vec<S> sum, S a, Vec<S> w) { return sum + a * w; }

// Forces v into a register. Left to itself the compiler lets each multiply-add read it from memory, which costs a fifth
// of the rate.
template <class V> inline void pin_in_register(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#else
  (void)v;  // 16 registers are too few
#endif
}

// Packs numbers of one row, and those of the next row where an element holds two, into elements.
template <class W> inline Vec<W> pack_bf16(Vec<W> first, Vec<W>) { return first; }
template <class W> inline W pack_bf16(W first, W) { return first; }

#if defined(__AVX512BF16__)
inline Vec<float> add_product(Vec<float> sum, Bf16x2 a, Vec<Bf16x2> w) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a.bits), (__m512bh)w);
}
inline __m512i bf16_bits(Vec<float> x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)); }
template <class W, std::enable_if_t<kPer<W> == 2, int> = 0>
inline Vec<W> pack_bf16(Vec<float> first, Vec<float> second) {
  return (Vec<W>)_mm512_or_si512(bf16_bits(first), _mm512_slli_epi32(bf16_bits(second), 16));
}
template <class W, std::enable_if_t<kPer<W> == 2, int> = 0> inline W pack_bf16(float first, float second) {
  return {pack_bf16<W>(splat(first), splat(second))[0]};
}
// Rounds a row of K numbers to pairs; an odd last number is paired with zero.
inline void round_row(const float* from, int64_t K, Bf16x2* to) {
  constexpr int L = kLanes<float>;
  for (int64_t k = 0; k < K; k += 2 * L) {
    const int first = int(K - k < L ? K - k : L), second = int(K - k < L ? 0 : K - k < 2 * L ? K - k - L : L);
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(from + k + L, second), (__m512)load(from + k, first));
    store(to + k / 2, (Vec<Bf16x2>)both, (first + second + 1) / 2);
  }
}
#endif

// result[j] = (a, b)[index[j]], where (a, b) is a followed by b.
template <class S> inline Vec<S> shuffle(Vec<S> a, Vec<S> b, typename Register<S>::I index) {
#ifdef __clang__
  Vec<S> result;
  for (int j = 0; j < kLanes<S>; ++j) result[j] = index[j] < kLanes<S> ? a[index[j]] : b[index[j] - kLanes<S>];
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Transposes an L by L matrix held in L registers: swaps halves, then quarters, and so on.
template <class S> inline void transpose(Vec<S> (&rows)[kLanes<S>]) {
  constexpr int L = kLanes<S>;
  typedef typename Register<S>::I I;
  for (int half = L / 2; half; half /= 2) {
    I low, high;
    for (int j = 0; j < L; ++j) low[j] = j & half ? L + j - half : j, high[j] = j & half ? L + j : j + half;
    for (int i = 0; i < L; ++i)
      if (!(i & half)) {
        Vec<S> a = rows[i], b = rows[i + half];
        rows[i] = shuffle<S>(a, b, low);
        rows[i + half] = shuffle<S>(a, b, high);
      }
  }
}

// max(x, c) and min(x, c). A NaN in x stays.
#if defined(__AVX512F__)
inline Vec<float> at_least(Vec<float> x, float c) { return (Vec<float>)_mm512_max_ps((__m512)splat(c), (__m512)x); }
inline Vec<float> at_most(Vec<float> x, float c) { return (Vec<float>)_mm512_min_ps((__m512)splat(c), (__m512)x); }
#else
inline Vec<float> at_least(Vec<float> x, float c) { return x < splat(c) ? splat(c) : x; }
inline Vec<float> at_most(Vec<float> x, float c) { return x > splat(c) ? splat(c) : x; }
#endif
inline Vec<double> at_least(Vec<double> x, double c) { return x < splat(c) ? splat(c) : x; }
inline Vec<double> at_most(Vec<double> x, double c) { return x > splat(c) ? splat(c) : x; }

// The first n numbers of v, then zeros.
template <class S> inline Vec<S> first_lanes(Vec<S> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(S) == 4) return (Vec<S>)_mm512_maskz_mov_ps((1u << n) - 1, (__m512)v);
  else return (Vec<S>)_mm512_maskz_mov_pd((1u << n) - 1, (__m512d)v);
#else
  Vec<S> kept{};
  std::memcpy(&kept, &v, n * sizeof(S));
  return kept;
#endif
}

// magnitude: |x|. with_sign: |x| with the sign of y, for x >= 0.
template <class S>
constexpr typename Register<S>::I kSign = typename Register<S>::I{} + (sizeof(S) == 4 ? INT32_MIN : INT64_MIN);
template <class S> inline Vec<S> magnitude(Vec<S> x) { return (Vec<S>)((typename Register<S>::I)x & ~kSign<S>); }
template <class S> inline Vec<S> with_sign(Vec<S> x, Vec<S> y) {
  typedef typename Register<S>::I I;
  return (Vec<S>)((I)x | ((I)y & kSign<S>));
}

// ---- Functions of one number
//
// Each states its range and its worst error there in units in the last place (ULP), over 10^6 numbers among which are
// all powers of two and the ends of the range. tests/test_accuracy.py measures sigmoid and tanh again.

// The parts of e^x: x = n ln 2 + r with n whole and |r| <= ln 2 / 2, and rest = (e^r - 1 - r) / r^2, so that
// e^x = 2^n (1 + r + rest r^2). Float: a polynomial of least squares, relative error of e^r 3e-9; double: Taylor's of
// degree 13, relative error below 1e-17. n is rounded by adding and subtracting 1.5 2^23 (double: 1.5 2^52), whose last
// bit is worth 1. Range: |x| <= 89 (double: 710); the callers clamp.
template <class V> struct Exponential {
  V n, r, rest;
};
inline Exponential<Vec<float>> exponential(Vec<float> x) {
  const Vec<float> n = (x * 1.44269504088896341f + 12582912.f) - 12582912.f;
  const Vec<float> r = (x - n * 0.693145751953125f) - n * 1.428606820309417e-06f;
  constexpr float coefficients[] = {0.00836871658f, 0.0416683890f, 0.166665211f, 0.499999940f};
  Vec<float> p = splat(0.00138145976f);
  for (float c : coefficients) p = p * r + c;
  return {n, r, p};
}
inline Exponential<Vec<double>> exponential(Vec<double> x) {
  const Vec<double> n = (x * 1.4426950408889634 + 6755399441055744.) - 6755399441055744.;
  const Vec<double> r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  constexpr double coefficients[] = {1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
                                     1. / 720,       1. / 120,      1. / 24,      1. / 6,      .5};
  Vec<double> p = splat(1. / 6227020800);
  for (double c : coefficients) p = p * r + c;
  return {n, r, p};
}

// x 2^n for 1/2 <= x <= 2, 0 ULP. Range: n whole in [-125, 128] (double: [-1021, 1024]), where too large a result is
// infinity; below, the result may be 0.
inline Vec<float> scaled(Vec<float> x, Vec<float> n) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
  const Vec<float> shifted = n + (12582912.f + 126.f);  // whose last bits are the exponent of 2^(n - 1)
  x *= (Vec<float>)((Register<float>::I)shifted << 23);
  return x + x;
#endif
}
inline Vec<double> scaled(Vec<double> x, Vec<double> n) {
#if defined(__AVX512F__)
  return (Vec<double>)_mm512_scalef_pd((__m512d)x, (__m512d)n);
#else
  const Vec<double> shifted = n + (6755399441055744. + 1022.);
  x *= (Vec<double>)((Register<double>::I)shifted << 52);
  return x + x;
#endif
}

// e^x. 1.6 ULP (0.9 with AVX-512) for x in [-86.9, 88] (double: [-708, 709]). Below it is e^-87 (e^-708) or 0, from 89
// (710) on infinity, and NaN for NaN.
template <class S> inline Vec<S> exp(Vec<S> x) {
  constexpr bool is_float = sizeof(S) == 4;
  const auto e = exponential(at_most(at_least(x, is_float ? S(-87) : S(-708)), is_float ? S(89) : S(710)));
  return scaled((e.rest * e.r + 1) * e.r + 1, e.n);
}

// 1 / (1 + e^-x). 2.5 ULP for all x whose result is a normal number; where it would be denormal the result may be 0.
// NaN for NaN. Exactly 0 below -89 (double: -710), as torch's: otherwise the smallest slope times the largest input
// would be no small number.
template <class S> inline Vec<S> sigmoid(Vec<S> x) { return 1 / (1 + exp<S>(-x)); }

// tanh x. 2.2 ULP (double: 2.6) for all x; odd, exactly 1 from 9.02 (19.1) on, NaN for NaN.
//
// With e = e^-2|x| it is (1 - e) / (1 + e), the difference taken without cancellation; and 1 - 2e / (1 + e) where the
// result is above 1/2, so that the slope 1 - tanh^2 is as accurate as the digits of tanh allow.
template <class S> inline Vec<S> tanh(Vec<S> x) {
  const Vec<S> a = magnitude<S>(x);
  const auto e = exponential(at_least(a * S(-2), S(-40)));
  const Vec<S> power = scaled(splat(S(1)), e.n), less_1 = e.r * e.r * e.rest + e.r;  // e^-2|x| = power (1 + less_1)
  const Vec<S> exp_2a = power + power * less_1, one_less = (1 - power) - power * less_1;
  const auto is_far = a > splat(S(0.5493));
  const Vec<S> ratio = (is_far ? exp_2a * S(-2) : one_less) / (1 + exp_2a);
  return with_sign<S>(is_far ? 1 + ratio : ratio, x);
}

}  // namespace
}  // namespace bptt::BPTT_ISA
