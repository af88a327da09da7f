// The four types of weights and scores: their bits, and arithmetic on them.
//
// Half precision is handled as its bits, so that no header is needed: f16 by conversion
// instructions, bf16 (the upper half of an f32) by shifts.
#pragma once
#include "common.cuh"

struct F16 {
  u16 bits;
};
struct BF16 {
  u16 bits;
};

// Of a type: its bits as an integer, how many of them are not the sign, the pattern of infinity
// (larger ones are NaN) and of a NaN, and the type that its arithmetic is done in.
template <class T>
struct Format;
template <>
struct Format<float> {
  typedef u32 Bits;
  typedef float Math;
  static constexpr int WIDTH = 31;
  static constexpr Bits INFINITE = 0x7f800000u, NOT_A_NUMBER = 0x7fc00000u;
};
template <>
struct Format<double> {
  typedef u64 Bits;
  typedef double Math;
  static constexpr int WIDTH = 63;
  static constexpr Bits INFINITE = 0x7ff0000000000000u, NOT_A_NUMBER = 0x7ff8000000000000u;
};
template <>
struct Format<F16> {
  typedef u16 Bits;
  typedef float Math;
  static constexpr int WIDTH = 15;
  static constexpr Bits INFINITE = 0x7c00u, NOT_A_NUMBER = 0x7e00u;
};
template <>
struct Format<BF16> {
  typedef u16 Bits;
  typedef float Math;
  static constexpr int WIDTH = 15;
  static constexpr Bits INFINITE = 0x7f80u, NOT_A_NUMBER = 0x7fc0u;
};

template <class T>
using BitsOf = typename Format<T>::Bits;

// |x| by its bits: as unsigned integers these are in the order of the magnitudes.
template <class T>
__device__ __forceinline__ BitsOf<T> magnitude(BitsOf<T> bits) {
  return bits & ((static_cast<BitsOf<T>>(1) << Format<T>::WIDTH) - 1);
}

template <class To, class From>
__device__ __forceinline__ To reinterpret(const From& value) {
  static_assert(sizeof(To) == sizeof(From), "only the type changes");
  To to;
  memcpy(&to, &value, sizeof(To));
  return to;
}

__device__ __forceinline__ float value(float x) { return x; }
__device__ __forceinline__ double value(double x) { return x; }
__device__ __forceinline__ float value(BF16 x) {
  return reinterpret<float>(static_cast<u32>(x.bits) << 16);
}
#ifdef __CUDACC__
__device__ __forceinline__ float from_half(u16 bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
__device__ __forceinline__ u16 to_half(float x) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif  // where these sources are tested on a host, it brings its own conversions
__device__ __forceinline__ float value(F16 x) { return from_half(x.bits); }

// To the nearest value of T, ties to even.
template <class T>
__device__ __forceinline__ T rounded(typename Format<T>::Math x) {
  return x;
}
template <>
__device__ __forceinline__ F16 rounded<F16>(float x) {
  return {to_half(x)};
}
template <>
__device__ __forceinline__ BF16 rounded<BF16>(float x) {
  if (x != x) return {Format<BF16>::NOT_A_NUMBER};
  const u32 bits = reinterpret<u32>(x);
  return {static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}
