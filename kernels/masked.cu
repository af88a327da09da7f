// The masked weight of WSN and its gradients; a bit set in `used` forbids a weight's gradient.
#include "floats.cuh"

// Whether |score| reaches the threshold; never when one of them is NaN.
template <class T>
__device__ __forceinline__ bool selects(T threshold, T score) {
  const auto s = value(score);
  return (s < 0 ? -s : s) >= value(threshold);
}

// What unselected weights become: +0, but NaN when the threshold is: scores without an order must
// not go unnoticed.
template <class T>
__device__ __forceinline__ T unselected(T threshold) {
  const auto t = value(threshold);
  return reinterpret<T>(static_cast<BitsOf<T>>(t == t ? 0 : Format<T>::NOT_A_NUMBER));
}

template <class T>
__device__ __forceinline__ void forward(const T* __restrict__ weight, const T* __restrict__ score,
                                        const T* __restrict__ threshold, T* __restrict__ out,
                                        i64 n) {
  constexpr int WIDTH = 16 / sizeof(T);
  struct Pair {
    Vector16<T> weight, score;
  };
  const T limit = *threshold, other = unselected(limit);
  for_each<WIDTH>(
      whole_grid(), n, span(weight, n, score, out),
      [=](i64 e) {
        return Pair{load<Vector16<T>>(weight + e), load<Vector16<T>>(score + e)};
      },
      [=](i64 e, Pair& x) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)
          if (!selects(limit, x.score.at[k])) x.weight.at[k] = other;
        store(out + e, x.weight);
      },
      [=](i64 e) { out[e] = selects(limit, score[e]) ? weight[e] : other; });
}

// grad * weight * sign(score), rounded like two products in T; the sign of NaN is 0.
template <class T>
__device__ __forceinline__ T score_gradient(T grad, T weight, T score) {
  const T product = rounded<T>(value(grad) * value(weight));
  const auto s = value(score);
  return rounded<T>(value(product) * static_cast<decltype(s)>((s > 0) - (s < 0)));
}

// used: packed mask of n bits, or null for an empty one.
template <class T>
__device__ __forceinline__ void backward(const T* __restrict__ grad, const T* __restrict__ weight,
                                         const T* __restrict__ score,
                                         const T* __restrict__ threshold,
                                         const u8* __restrict__ used, T* __restrict__ dweight,
                                         T* __restrict__ dscore, i64 n) {
  constexpr int WIDTH = 16 / sizeof(T);
  struct Inputs {
    Vector16<T> grad, weight, score;
    u32 used;
  };
  const T limit = *threshold, zero = reinterpret<T>(BitsOf<T>(0));
  for_each<WIDTH>(
      whole_grid(), n, span(grad, n, weight, score, dweight, dscore),
      [=](i64 e) {
        return Inputs{load<Vector16<T>>(grad + e), load<Vector16<T>>(weight + e),
                      load<Vector16<T>>(score + e), used ? bits_at<WIDTH>(used, e) : 0};
      },
      [=](i64 e, Inputs& x) {
        Vector16<T> by_score;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
          by_score.at[k] = score_gradient(x.grad.at[k], x.weight.at[k], x.score.at[k]);
          if (x.used >> k & 1 || !selects(limit, x.score.at[k])) x.grad.at[k] = zero;
        }
        store(dweight + e, x.grad);
        store(dscore + e, by_score);
      },
      [=](i64 e) {
        const bool kept = !(used && bits_at<1>(used, e)) && selects(limit, score[e]);
        dweight[e] = kept ? grad[e] : zero;
        dscore[e] = score_gradient(grad[e], weight[e], score[e]);
      });
}

// bits: where |score| reaches the threshold, packed, ceil(n / 8) bytes.
template <class T>
__device__ __forceinline__ void select(const T* __restrict__ score,
                                       const T* __restrict__ threshold, u8* __restrict__ bits,
                                       i64 n) {
  constexpr int WIDTH = 16 / sizeof(T), VECTORS = 8 / WIDTH;
  struct Eight {
    Vector16<T> at[VECTORS];
  };
  const T limit = *threshold;
  for_each<1>(
      whole_grid(), (n + 7) / 8, Span{0, is_aligned(score, 16) ? n / 8 : 0},
      [=](i64 byte) {
        Eight x;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v)
          x.at[v] = load<Vector16<T>>(score + 8 * byte + v * WIDTH);
        return x;
      },
      [=](i64 byte, const Eight& x) {
        u32 packed = 0;
#pragma unroll
        for (int j = 0; j < 8; ++j) packed |= selects(limit, x.at[j / WIDTH].at[j % WIDTH]) << j;
        bits[byte] = packed;
      },
      [=](i64 byte) {
        u32 packed = 0;
        for (int j = 0; j < 8 && 8 * byte + j < n; ++j)
          packed |= selects(limit, score[8 * byte + j]) << j;
        bits[byte] = packed;
      });
}

#define BY_TYPE(T, NAME)                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS) masked_weight_##NAME(                   \
      const T* __restrict__ weight, const T* __restrict__ score,                                \
      const T* __restrict__ threshold, T* __restrict__ out, i64 n) {                            \
    forward(weight, score, threshold, out, n);                                                  \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS) masked_weight_backward_##NAME(          \
      const T* __restrict__ grad, const T* __restrict__ weight, const T* __restrict__ score,    \
      const T* __restrict__ threshold, const u8* __restrict__ used, T* __restrict__ dweight,    \
      T* __restrict__ dscore, i64 n) {                                                          \
    backward(grad, weight, score, threshold, used, dweight, dscore, n);                         \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS)                                         \
      select_bits_##NAME(const T* __restrict__ score, const T* __restrict__ threshold,          \
                         u8* __restrict__ bits, i64 n) {                                        \
    select(score, threshold, bits, n);                                                          \
  }
BY_TYPE(float, float32)
BY_TYPE(double, float64)
BY_TYPE(F16, float16)
BY_TYPE(BF16, bfloat16)
