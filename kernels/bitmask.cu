// Packed masks: bit j of byte i is element 8 i + j, and unused bits of the last byte are zero.
#include "common.cuh"

// A word of four bytes, each 0 or not, as four bits.
__device__ __forceinline__ u32 nonzero4(u32 bytes) {
  const u32 high = ((bytes & 0x7f7f7f7fu) + 0x7f7f7f7fu) | bytes;
  return gather4(high >> 7 & 0x01010101u);
}

// mask: n bytes, 0 or not; bits: ceil(n / 8) bytes. A vector is 16 elements, 2 bytes of bits.
extern "C" __global__ void __launch_bounds__(THREADS)
    pack_bits(const u8* __restrict__ mask, u8* __restrict__ bits, i64 n) {
  const bool vectors = is_aligned(mask, 16) && is_aligned(bits, 2);
  for_each<2>(
      whole_grid(), (n + 7) / 8, Span{0, vectors ? n / 16 : 0},
      [=](i64 byte) { return load<Vector16<u32>>(mask + 8 * byte); },
      [=](i64 byte, const Vector16<u32>& m) {
        const u32 low = nonzero4(m.at[0]) | nonzero4(m.at[1]) << 4;
        const u32 high = nonzero4(m.at[2]) | nonzero4(m.at[3]) << 4;
        store(bits + byte, static_cast<u16>(low | high << 8));
      },
      [=](i64 byte) {
        u32 packed = 0;
        for (int j = 0; j < 8 && 8 * byte + j < n; ++j) packed |= (mask[8 * byte + j] != 0) << j;
        bits[byte] = packed;
      });
}

// The inverse; mask becomes n bytes, 0 or 1.
extern "C" __global__ void __launch_bounds__(THREADS)
    unpack_bits(const u8* __restrict__ bits, u8* __restrict__ mask, i64 n) {
  for_each<16>(
      whole_grid(), n, Span{0, is_aligned(mask, 16) ? n / 16 : 0},
      [=](i64 e) { return static_cast<u32>(bits[e >> 3] | bits[(e >> 3) + 1] << 8); },
      [=](i64 e, u32 word) {
        Vector16<u32> m;
#pragma unroll
        for (int q = 0; q < 4; ++q) m.at[q] = spread4(word >> 4 * q & 15);
        store(mask + e, m);
      },
      [=](i64 e) { mask[e] = bits_at<1>(bits, e); });
}

template <class T>
struct Masked {
  Vector16<T> value;
  u32 bits;
};

// out = weight where the bit is set, else +0; T is any type of the weight's size.
template <class T>
__device__ __forceinline__ void apply(const T* __restrict__ weight, const u8* __restrict__ bits,
                                      T* __restrict__ out, i64 n) {
  constexpr int WIDTH = 16 / sizeof(T);
  for_each<WIDTH>(
      whole_grid(), n, span(weight, n, out),
      [=](i64 e) {
        return Masked<T>{load<Vector16<T>>(weight + e), bits_at<WIDTH>(bits, e)};
      },
      [=](i64 e, Masked<T>& x) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)
          if (!(x.bits >> k & 1)) x.value.at[k] = 0;
        store(out + e, x.value);
      },
      [=](i64 e) { out[e] = bits_at<1>(bits, e) ? weight[e] : T(0); });
}

// grad = +0 where the bit is set. Vectors without a set bit are neither read nor written.
template <class T>
__device__ __forceinline__ void keep_unset(T* __restrict__ grad, const u8* __restrict__ bits,
                                           i64 n) {
  constexpr int WIDTH = 16 / sizeof(T);
  for_each<WIDTH>(
      whole_grid(), n, span(grad, n),
      [=](i64 e) {
        Masked<T> x;
        x.bits = bits_at<WIDTH>(bits, e);
        if (x.bits) x.value = load<Vector16<T>>(grad + e);
        return x;
      },
      [=](i64 e, Masked<T>& x) {
        if (!x.bits) return;
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)
          if (x.bits >> k & 1) x.value.at[k] = 0;
        store(grad + e, x.value);
      },
      [=](i64 e) {
        if (bits_at<1>(bits, e)) grad[e] = 0;
      });
}

#define BY_SIZE(T, SIZE)                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS) apply_bits_##SIZE(                      \
      const T* __restrict__ weight, const u8* __restrict__ bits, T* __restrict__ out, i64 n) {  \
    apply(weight, bits, out, n);                                                                \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS)                                         \
      keep_unset_##SIZE(T* __restrict__ grad, const u8* __restrict__ bits, i64 n) {             \
    keep_unset(grad, bits, n);                                                                  \
  }
BY_SIZE(u16, 2)
BY_SIZE(u32, 4)
BY_SIZE(u64, 8)

// bits |= other, both of `bytes` bytes.
extern "C" __global__ void __launch_bounds__(THREADS)
    or_bits(u8* __restrict__ bits, const u8* __restrict__ other, i64 bytes) {
  struct Both {
    Vector16<u32> mine, theirs;
  };
  for_each<16>(
      whole_grid(), bytes, span(bits, bytes, other),
      [=](i64 b) {
        return Both{load<Vector16<u32>>(bits + b), load<Vector16<u32>>(other + b)};
      },
      [=](i64 b, Both& x) {
#pragma unroll
        for (int q = 0; q < 4; ++q) x.mine.at[q] |= x.theirs.at[q];
        store(bits + b, x.mine);
      },
      [=](i64 b) { bits[b] |= other[b]; });
}

// *total += the number of set bits.
extern "C" __global__ void __launch_bounds__(THREADS)
    count_bits(const u8* __restrict__ bits, i64 bytes, u64* total) {
  u64 count = 0;
  for_each<16>(
      whole_grid(), bytes, span(bits, bytes),
      [=](i64 b) { return load<Vector16<u32>>(bits + b); },
      [&](i64, const Vector16<u32>& x) {
#pragma unroll
        for (int q = 0; q < 4; ++q) count += __popc(x.at[q]);
      },
      [&](i64 b) { count += __popc(bits[b]); });
  add_all(count, total);
}

// Bytes 4 w .. 4 w + 3 of a row of `bytes` bytes, those beyond its end being zero.
__device__ __forceinline__ u32 word_of(const u8* row, i64 w, i64 bytes) {
  const u8* from = row + 4 * w;
  if (4 * w + 4 <= bytes && is_aligned(from, 4)) return load<u32>(from);
  u32 word = 0;
#pragma unroll 1
  for (int b = 0; b < 4 && 4 * w + b < bytes; ++b) word |= static_cast<u32>(from[b]) << 8 * b;
  return word;
}

constexpr int TILE = 8;  // tasks; a thread keeps TILE^2 counts in registers

// counts[i, j] += |m_i and m_j|: uint8 masks [tasks, bytes], int64 counts [tasks, tasks]. A column
// of blocks (blockIdx.x) takes one pair (a, b) of tiles of tasks, a <= b, and shares its bytes. The
// counts of a warp cannot overflow: it would have to see 2^32 elements, all warps at least 2^38.
extern "C" __global__ void __launch_bounds__(THREADS)
    overlap_bits(const u8* __restrict__ masks, i64 bytes, i64 tasks, u64* counts) {
  __shared__ u64 sums[TILE * TILE];
  i64 b = 0;
  while ((b + 1) * (b + 2) / 2 <= blockIdx.x) ++b;
  const i64 a = blockIdx.x - b * (b + 1) / 2;
  for (int k = threadIdx.x; k < TILE * TILE; k += blockDim.x) sums[k] = 0;
  __syncthreads();

  u32 count[TILE][TILE] = {};
  const Team team = {blockIdx.y * static_cast<i64>(blockDim.x) + threadIdx.x,
                     gridDim.y * static_cast<i64>(blockDim.x)};
#pragma unroll 1
  for (i64 w = team.thread; w < (bytes + 3) / 4; w += team.size) {
    u32 left[TILE], right[TILE];
#pragma unroll
    for (int k = 0; k < TILE; ++k) {
      const i64 i = a * TILE + k, j = b * TILE + k;
      left[k] = i < tasks ? word_of(masks + i * bytes, w, bytes) : 0;
      right[k] = j < tasks ? word_of(masks + j * bytes, w, bytes) : 0;
    }
#pragma unroll
    for (int i = 0; i < TILE; ++i)
#pragma unroll
      for (int j = 0; j < TILE; ++j) count[i][j] += __popc(left[i] & right[j]);
  }
#pragma unroll 1
  for (int step = WARP / 2; step; step /= 2)
#pragma unroll
    for (int k = 0; k < TILE * TILE; ++k)
      count[k / TILE][k % TILE] += __shfl_down_sync(~0u, count[k / TILE][k % TILE], step);
  if (threadIdx.x % WARP == 0) {
#pragma unroll
    for (int k = 0; k < TILE * TILE; ++k)
      if (count[k / TILE][k % TILE])
        atomicAdd(&sums[k], static_cast<u64>(count[k / TILE][k % TILE]));
  }
  __syncthreads();

  for (int k = threadIdx.x; k < TILE * TILE; k += blockDim.x) {
    const i64 i = a * TILE + k / TILE, j = b * TILE + k % TILE;
    if (!sums[k]) continue;
    atomicAdd(&counts[i * tasks + j], sums[k]);
    if (a != b) atomicAdd(&counts[j * tasks + i], sums[k]);
  }
}
