// One register of numbers, for whatever instruction set this file is compiled for, and the three functions cells need.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX512F__)
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
  typedef int32_t I __attribute__((vector_size(kBytes)));
};
template <> struct Register<double> {
  typedef double V __attribute__((vector_size(kBytes)));
  typedef int64_t I __attribute__((vector_size(kBytes)));
};
template <class S> using Vec = typename Register<S>::V;
template <class S> constexpr int kLanes = kBytes / sizeof(S);

template <class S> inline Vec<S> splat(S x) { return Vec<S>{} + x; }

// The first n numbers at p (zeros after them); n = kLanes is the common case and costs one instruction.
template <class S> inline Vec<S> load(const S* p, int n = kLanes<S>) {
  Vec<S> v{};
  if (__builtin_expect(n == kLanes<S>, 1)) std::memcpy(&v, p, sizeof v);
  else std::memcpy(&v, p, n * sizeof(S));
  return v;
}
template <class S> inline void store(S* p, Vec<S> v, int n = kLanes<S>) {
  if (__builtin_expect(n == kLanes<S>, 1)) std::memcpy(p, &v, sizeof v);
  else std::memcpy(p, &v, n * sizeof(S));
}

// exp x = 2^n e^r with |r| <= ln 2 / 2 and a Taylor polynomial for e^r. The argument is clamped to where the result is a
// normal number; a NaN passes through. Rounding to n by adding and subtracting a number whose last bit is worth 1.
inline Vec<float> exp(Vec<float> x) {
  x = x < splat(-87.f) ? splat(-87.f) : x;
  x = x > splat(87.f) ? splat(87.f) : x;
  Vec<float> shifted = x * 1.44269504088896341f + 12582912.f, n = shifted - 12582912.f;
  Vec<float> r = x - n * 0.693145751953125f;
  r -= n * 1.428606820309417e-06f;
  Vec<float> p = splat(1.f / 5040);
  for (float c : {1.f / 720, 1.f / 120, 1.f / 24, 1.f / 6, .5f, 1.f, 1.f}) p = p * r + c;
  Register<float>::I bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 23) + (127 << 23);
  Vec<float> scale;
  std::memcpy(&scale, &bits, sizeof bits);
  return p * scale;
}
inline Vec<double> exp(Vec<double> x) {
  x = x < splat(-708.) ? splat(-708.) : x;
  x = x > splat(708.) ? splat(708.) : x;
  Vec<double> shifted = x * 1.4426950408889634 + 6755399441055744., n = shifted - 6755399441055744.;
  Vec<double> r = x - n * 6.93147180369123816490e-01;
  r -= n * 1.90821492927058770002e-10;
  Vec<double> p = splat(1. / 6227020800);
  for (double c : {1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040, 1. / 720, 1. / 120,
                   1. / 24, 1. / 6, .5, 1., 1.})
    p = p * r + c;
  Register<double>::I bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits << 52) + (int64_t(1023) << 52);
  Vec<double> scale;
  std::memcpy(&scale, &bits, sizeof bits);
  return p * scale;
}

template <class V> inline V sigmoid(V x) { return 1 / (1 + exp(-x)); }

// tanh x = 1 - 2 / (e^2x + 1) far from 0; near 0, where that cancels, an odd polynomial (float: least squares in the
// relative error, 5e-9 on |x| <= 0.625) or (e^2x - 1) / (e^2x + 1) with the difference from its own series (double).
inline Vec<float> tanh(Vec<float> x) {
  Vec<float> a = x < splat(0.f) ? -x : x, far = 1 - 2 / (exp(a + a) + 1), q = x * x;
  Vec<float> p = splat(-0.00571704f);
  for (float c : {0.02065058f, -0.0537435f, 0.13331491f, -0.33333284f}) p = p * q + c;
  return a < splat(0.625f) ? p * q * x + x : (x < splat(0.f) ? -far : far);
}
inline Vec<double> tanh(Vec<double> x) {
  Vec<double> a = x < splat(0.) ? -x : x, far = 1 - 2 / (exp(a + a) + 1), y = x + x;
  Vec<double> p = splat(1. / 87178291200);
  for (double c : {1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040,
                   1. / 720, 1. / 120, 1. / 24, 1. / 6, .5, 1.})
    p = p * y + c;
  Vec<double> m = p * y;  // e^2x - 1
  return a < splat(0.17) ? m / (m + 2) : (x < splat(0.) ? -far : far);
}

}}  // namespace bptt::BPTT_ISA
