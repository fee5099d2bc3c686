// One register of numbers, for whatever instruction set this file is compiled for, and the three functions cells need.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512BF16__)
#define BPTT_ISA avx512_bf16
#elif defined(__AVX512F__)
#define BPTT_ISA avx512
#elif defined(__AVX2__)
#define BPTT_ISA avx2
#else
#define BPTT_ISA baseline
#endif

namespace bptt { namespace BPTT_ISA {

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
  typedef float Anywhere __attribute__((vector_size(kBytes), aligned(4), may_alias));
  typedef int32_t I __attribute__((vector_size(kBytes)));
};
template <> struct Register<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef double Anywhere __attribute__((vector_size(kBytes), aligned(8), may_alias));
  typedef int64_t I __attribute__((vector_size(kBytes)));
};
// Two bfloat16 numbers, the first in the low half: what the processor multiplies with two others and adds to one float.
struct Pair { uint32_t bits; };
template <> struct Register<Pair> {
  typedef uint32_t V __attribute__((vector_size(kBytes)));
  typedef uint32_t Anywhere __attribute__((vector_size(kBytes), aligned(4), may_alias));
};
template <class S> using Vec = typename Register<S>::V;
template <class S> constexpr int kLanes = kBytes / sizeof(S);

// Products take their operands as W and add up as Sum<W>; an element W holds kPer<W> numbers.
template <class W> struct SumOf { using S = W; };
template <> struct SumOf<Pair> { using S = float; };
template <class W> using Sum = typename SumOf<W>::S;
template <class W> constexpr int kPer = 1;
template <> inline constexpr int kPer<Pair> = 2;

template <class S> inline Vec<S> splat(S x) { return Vec<S>{} + x; }

template <class S> inline Vec<S> load(const S* p) {
  return *reinterpret_cast<const typename Register<S>::Anywhere*>(p);
}
template <class S> inline void store(S* p, Vec<S> v) { *reinterpret_cast<typename Register<S>::Anywhere*>(p) = v; }

// The first n numbers at p, and zeros after them; what lies behind them in memory is not touched.
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

// sum + a w, for one number a or one pair.
template <class S> inline Vec<S> add_product(Vec<S> sum, S a, Vec<S> w) { return sum + a * w; }

// v, which several products will take, from memory into a register: each of them reading it there costs a fifth of the rate.
template <class V> inline void keep(V& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#else
  (void)v;  // too few registers
#endif
}

// The elements that hold these numbers of one row and, where they are pairs, those of the next.
template <class W> inline Vec<W> join(Vec<W> first, Vec<W>) { return first; }
template <class W> inline W join(W first, W) { return first; }

#if defined(__AVX512BF16__)
inline Vec<float> add_product(Vec<float> sum, Pair a, Vec<Pair> w) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a.bits), (__m512bh)w);
}
inline __m512i rounded(Vec<float> x) { return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x)); }
template <class W, std::enable_if_t<kPer<W> == 2, int> = 0> inline Vec<W> join(Vec<float> first, Vec<float> second) {
  return (Vec<W>)_mm512_or_si512(rounded(first), _mm512_slli_epi32(rounded(second), 16));
}
template <class W, std::enable_if_t<kPer<W> == 2, int> = 0> inline W join(float first, float second) {
  return {join<W>(splat(first), splat(second))[0]};
}
// K numbers in a row as pairs; an odd last one with a zero.
inline void round_row(const float* from, int64_t K, Pair* to) {
  constexpr int L = kLanes<float>;
  for (int64_t k = 0; k < K; k += 2 * L) {
    const int first = int(K - k < L ? K - k : L), second = int(K - k < L ? 0 : K - k < 2 * L ? K - k - L : L);
    const __m512bh both = _mm512_cvtne2ps_pbh((__m512)load(from + k + L, second), (__m512)load(from + k, first));
    store(to + k / 2, (Vec<Pair>)both, (first + second + 1) / 2);
  }
}
#endif

// result[j] = number index[j] of a followed by b.
template <class S> inline Vec<S> shuffle(Vec<S> a, Vec<S> b, typename Register<S>::I index) {
#ifdef __clang__
  Vec<S> result;
  for (int j = 0; j < kLanes<S>; ++j) result[j] = index[j] < kLanes<S> ? a[index[j]] : b[index[j] - kLanes<S>];
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// L registers of L numbers, as a matrix, transposed: halves change places, then quarters, and so on.
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

// The larger, the smaller of x and a constant; a NaN in x stays.
#if defined(__AVX512F__)
inline Vec<float> at_least(Vec<float> x, float c) { return (Vec<float>)_mm512_max_ps((__m512)splat(c), (__m512)x); }
inline Vec<float> at_most(Vec<float> x, float c) { return (Vec<float>)_mm512_min_ps((__m512)splat(c), (__m512)x); }
#else
inline Vec<float> at_least(Vec<float> x, float c) { return x < splat(c) ? splat(c) : x; }
inline Vec<float> at_most(Vec<float> x, float c) { return x > splat(c) ? splat(c) : x; }
#endif
inline Vec<double> at_least(Vec<double> x, double c) { return x < splat(c) ? splat(c) : x; }
inline Vec<double> at_most(Vec<double> x, double c) { return x > splat(c) ? splat(c) : x; }

// The first n numbers of v, and zeros after them.
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

// |x|, and |x| with the sign of y.
template <class S> constexpr typename Register<S>::I kSign = typename Register<S>::I{} + (sizeof(S) == 4 ? INT32_MIN : INT64_MIN);
template <class S> inline Vec<S> magnitude(Vec<S> x) { return (Vec<S>)((typename Register<S>::I)x & ~kSign<S>); }
template <class S> inline Vec<S> with_sign(Vec<S> x, Vec<S> y) {
  typedef typename Register<S>::I I;
  return (Vec<S>)((I)x | ((I)y & kSign<S>));
}

// Functions of one number, with their worst error in units in the last place (ULP) over 10^6 numbers, among them all powers of
// two and the ends of the range (tests/test_accuracy.py).

// What e^x is made of: x = n ln 2 + r with whole n and |r| <= ln 2 / 2, and rest = (e^r - 1 - r) / r^2 by a polynomial (float:
// least squares in the relative error of e^r, 3e-9; double: Taylor's). n is rounded by adding and subtracting a number whose last
// bit is worth 1.
template <class V> struct Exponential { V n, r, rest; };
inline Exponential<Vec<float>> exponential(Vec<float> x) {
  const Vec<float> n = (x * 1.44269504088896341f + 12582912.f) - 12582912.f;
  const Vec<float> r = (x - n * 0.693145751953125f) - n * 1.428606820309417e-06f;
  Vec<float> p = splat(0.00138145976f);
  for (float c : {0.00836871658f, 0.0416683890f, 0.166665211f, 0.499999940f}) p = p * r + c;
  return {n, r, p};
}
inline Exponential<Vec<double>> exponential(Vec<double> x) {
  const Vec<double> n = (x * 1.4426950408889634 + 6755399441055744.) - 6755399441055744.;
  const Vec<double> r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Vec<double> p = splat(1. / 6227020800);
  for (double c : {1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040, 1. / 720, 1. / 120,
                   1. / 24, 1. / 6, .5})
    p = p * r + c;
  return {n, r, p};
}

// x 2^n for whole n in [-126, 128] (double: [-1022, 1024]); too large a result is infinite.
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

// Below -87 (double: -708) about what it is there, or 0; from 89 (710) on infinite; of a NaN a NaN.
template <class S> inline Vec<S> exp(Vec<S> x) {
  constexpr bool is_float = sizeof(S) == 4;
  const auto e = exponential(at_most(at_least(x, is_float ? S(-87) : S(-708)), is_float ? S(89) : S(710)));
  return scaled((e.rest * e.r + 1) * e.r + 1, e.n);
}

// 2.5 ULP; exactly 0 below -89 (double: -710), as torch's: the least slope times the largest input would be no small number.
// Where the right number is denormal it may be 0.
template <class S> inline Vec<S> sigmoid(Vec<S> x) { return 1 / (1 + exp<S>(-x)); }

// 2.2 ULP (double: 2.6); exactly 1 from 9.02 (19.1) on, and odd. With e = e^-2|x| it is (1 - e) / (1 + e), the difference without
// cancelling; and 1 - 2e / (1 + e) where that is above 1/2, so that 1 - tanh^2, the slope, is as right as h's own digits allow.
template <class S> inline Vec<S> tanh(Vec<S> x) {
  const Vec<S> a = magnitude<S>(x);
  const auto e = exponential(at_least(a * S(-2), S(-40)));
  const Vec<S> power = scaled(splat(S(1)), e.n), less_1 = e.r * e.r * e.rest + e.r;  // e^-2|x| = power (1 + less_1)
  const Vec<S> exp_2a = power + power * less_1, one_less = (1 - power) - power * less_1;
  const auto is_far = a > splat(S(0.5493));
  const Vec<S> ratio = (is_far ? exp_2a * S(-2) : one_less) / (1 + exp_2a);
  return with_sign<S>(is_far ? 1 + ratio : ratio, x);
}

}}  // namespace bptt::BPTT_ISA
