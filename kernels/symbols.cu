// Symbols: bit t of symbol j is element j of mask t; one byte for up to 8 tasks, else 4 bytes.
#include "common.cuh"

// masks: uint8 [tasks, ceil(n / 8)].
extern "C" __global__ void __launch_bounds__(THREADS)
    stack_bits_1(const u8* __restrict__ masks, u8* __restrict__ symbols, i64 n, i64 tasks) {
  const i64 bytes = (n + 7) / 8;
  for_each<16>(
      whole_grid(), n, Span{0, is_aligned(symbols, 16) ? n / 16 : 0},
      [=](i64 e) {
        Vector16<u32> s = {};
        for (int t = 0; t < tasks; ++t) {
          const u8* row = masks + t * bytes + (e >> 3);
          const u32 word = row[0] | row[1] << 8;
#pragma unroll
          for (int q = 0; q < 4; ++q) s.at[q] |= spread4(word >> 4 * q & 15) << t;
        }
        return s;
      },
      [=](i64 e, const Vector16<u32>& s) { store(symbols + e, s); },
      [=](i64 e) {
        u32 symbol = 0;
        for (int t = 0; t < tasks; ++t) symbol |= bits_at<1>(masks + t * bytes, e) << t;
        symbols[e] = symbol;
      });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    stack_bits_4(const u8* __restrict__ masks, u32* __restrict__ symbols, i64 n, i64 tasks) {
  const i64 bytes = (n + 7) / 8;
  for_each<4>(
      whole_grid(), n, Span{0, is_aligned(symbols, 16) ? n / 4 : 0},
      [=](i64 e) {
        Vector16<u32> s = {};
        for (int t = 0; t < tasks; ++t) {
          const u32 nibble = bits_at<4>(masks + t * bytes, e);
#pragma unroll
          for (int q = 0; q < 4; ++q) s.at[q] |= (nibble >> q & 1) << t;
        }
        return s;
      },
      [=](i64 e, const Vector16<u32>& s) { store(symbols + e, s); },
      [=](i64 e) {
        u32 symbol = 0;
        for (int t = 0; t < tasks; ++t) symbol |= bits_at<1>(masks + t * bytes, e) << t;
        symbols[e] = symbol;
      });
}

// The byte of mask t that holds elements 8 byte .. 8 byte + 7 below n.
template <class S>
__device__ __forceinline__ u8 byte_of(const S* symbols, i64 byte, i64 n, int t) {
  u32 packed = 0;
  for (int j = 0; j < 8 && 8 * byte + j < n; ++j)
    packed |= (static_cast<u32>(symbols[8 * byte + j]) >> t & 1) << j;
  return packed;
}

// The inverse of stack_bits; bits of a symbol beyond the tasks are ignored.
extern "C" __global__ void __launch_bounds__(THREADS)
    unstack_bits_1(const u8* __restrict__ symbols, u8* __restrict__ masks, i64 n, i64 tasks) {
  const i64 bytes = (n + 7) / 8;
  for_each<1>(
      whole_grid(), bytes, Span{0, is_aligned(symbols, 8) ? n / 8 : 0},
      [=](i64 byte) { return load<Vector<u32, 2>>(symbols + 8 * byte); },
      [=](i64 byte, const Vector<u32, 2>& s) {
        for (int t = 0; t < tasks; ++t) {
          const u32 low = gather4(s.at[0] >> t & 0x01010101u);
          masks[t * bytes + byte] = low | gather4(s.at[1] >> t & 0x01010101u) << 4;
        }
      },
      [=](i64 byte) {
        for (int t = 0; t < tasks; ++t)
          masks[t * bytes + byte] = byte_of(symbols, byte, n, t);
      });
}

extern "C" __global__ void __launch_bounds__(THREADS)
    unstack_bits_4(const u32* __restrict__ symbols, u8* __restrict__ masks, i64 n, i64 tasks) {
  struct Eight {
    Vector16<u32> low, high;
  };
  const i64 bytes = (n + 7) / 8;
  for_each<1>(
      whole_grid(), bytes, Span{0, is_aligned(symbols, 16) ? n / 8 : 0},
      [=](i64 byte) {
        const u32* from = symbols + 8 * byte;
        return Eight{load<Vector16<u32>>(from), load<Vector16<u32>>(from + 4)};
      },
      [=](i64 byte, const Eight& s) {
        for (int t = 0; t < tasks; ++t) {
          u32 packed = 0;
#pragma unroll
          for (int q = 0; q < 4; ++q)
            packed |= (s.low.at[q] >> t & 1) << q | (s.high.at[q] >> t & 1) << (q + 4);
          masks[t * bytes + byte] = packed;
        }
      },
      [=](i64 byte) {
        for (int t = 0; t < tasks; ++t)
          masks[t * bytes + byte] = byte_of(symbols, byte, n, t);
      });
}

constexpr int WINDOW = 8192;  // counters of a block; 32 KiB of shared memory

// counts[s] += how often s occurs among n symbols, for the window of symbols that blockIdx.y names;
// `bins` is the number of symbols, a power of two. Others than these are ignored. A block counts in
// shared memory, in as many copies as there is room for (at most one per lane of a warp), so that
// frequent symbols do not queue for one counter. A counter cannot overflow: a block would have to
// see 2^32 symbols, with the smallest grid 2^39.
template <class S>
__device__ __forceinline__ void histogram(const S* __restrict__ symbols, i64 n, i64 bins,
                                          u64* counts) {
  constexpr int WIDTH = 16 / sizeof(S);
  __shared__ u32 shared[WINDOW];
  const u32 window = bins < WINDOW ? bins : WINDOW;
  const u32 copies = WINDOW / window < WARP ? WINDOW / window : WARP;
  const u32 first = blockIdx.y * window;
  const u32 copy = threadIdx.x & (copies - 1);
  for (u32 k = threadIdx.x; k < window * copies; k += blockDim.x) shared[k] = 0;
  __syncthreads();

  const auto add = [&](u32 symbol) {
    const u32 bin = symbol - first;  // wraps below the window
    if (bin < window) atomicAdd(&shared[bin * copies + copy], 1u);
  };
  for_each<WIDTH>(
      whole_grid(), n, span(symbols, n), [=](i64 e) { return load<Vector16<S>>(symbols + e); },
      [&](i64, const Vector16<S>& s) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) add(s.at[k]);
      },
      [&](i64 e) { add(symbols[e]); });
  __syncthreads();

  for (u32 bin = threadIdx.x; bin < window; bin += blockDim.x) {
    u64 sum = 0;
    // Every thread begins with another copy: with the same they would meet in one memory bank.
    for (u32 c = 0; c < copies; ++c) sum += shared[bin * copies + ((c + threadIdx.x) & (copies - 1))];
    if (sum) atomicAdd(&counts[first + bin], sum);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    symbol_histogram_1(const u8* __restrict__ symbols, i64 n, i64 bins, u64* counts) {
  histogram(symbols, n, bins, counts);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    symbol_histogram_4(const u32* __restrict__ symbols, i64 n, i64 bins, u64* counts) {
  histogram(symbols, n, bins, counts);
}
