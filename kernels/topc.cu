// Exact order statistics of |score| for many tensors at once, by radix selection on its bits.
//
// Two kernels take turns: `count` reads every tensor once and counts, in 2048 bins, the scores
// inside the interval of bit patterns that is known to hold the threshold; `narrow` finds the bin
// that the threshold lies in, which is the next interval. Each turn settles up to 11 bits: three
// turns for 31-bit patterns (float32), two for 15 (half precision), six for 63 (float64). A
// threshold of similar scores names a second, narrow interval in the first turn; when that holds
// the new threshold too, one turn fewer has to read the tensor. Nothing comes back to the host.
#include "floats.cuh"

constexpr int BATCH = 64;          // tensors of a launch; their table is passed by value
constexpr int COUNT_THREADS = 512; // of a block of `count`
constexpr int BITS = 11;           // settled in a turn
constexpr int BINS = 1 << BITS;
constexpr int COPIES = 4;  // of the first bins: the exponents of scores crowd in few of them
constexpr int COUNTERS = 2 * BINS + 1;  // of a tensor: bins, bins of the narrow interval, above it

struct Batch {
  const void* scores[BATCH];
  i64 numel[BATCH];
  i64 kept[BATCH];
  i64 first_block[BATCH + 1];  // blocks first_block[t] .. first_block[t + 1] - 1 read tensor t
  i64 tensors;
};

// What is known of a tensor's threshold: it is the rank-th largest (from 1) of the patterns in
// [low, low + 2^width). Width 0: it is `low`.
struct State {
  u64 low;
  i64 rank;
  i64 width;
};

// The narrow interval around an earlier threshold: 2048 bins of 2^NARROW patterns, some 3 % of the
// threshold up and down; single patterns in half precision.
template <class T>
__device__ __forceinline__ constexpr int narrow_shift() {
  return Format<T>::WIDTH == 31 ? 8 : Format<T>::WIDTH == 63 ? 37 : 0;
}

template <class T>
__device__ __forceinline__ u64 narrow_low(const BitsOf<T>* start) {
  const u64 centre = magnitude<T>(*start), half = static_cast<u64>(BINS / 2) << narrow_shift<T>();
  return centre > half ? centre - half : 0;
}

__device__ __forceinline__ int next_shift(i64 width) { return width > BITS ? width - BITS : 0; }

// Adds to counters [tensors, COUNTERS]. `start` [tensors]: earlier thresholds, in the first turn.
template <class T>
__device__ __forceinline__ void count(const Batch& batch, const State* states,
                                      const BitsOf<T>* start, u64* counters, i64 turn) {
  typedef BitsOf<T> Bits;
  constexpr int WIDTH = 16 / sizeof(T);
  __shared__ u32 wide[BINS * COPIES];
  __shared__ u32 narrow[BINS];
  int t = 0;
  for (int step = BATCH / 2; step; step /= 2)
    if (t + step < batch.tensors && batch.first_block[t + step] <= blockIdx.x) t += step;
  State state = {0, 0, Format<T>::WIDTH};
  if (turn) state = states[t];
  if (!state.width) return;

  const u32 copy = threadIdx.x % COPIES;
  for (int k = threadIdx.x; k < BINS * COPIES; k += blockDim.x) wide[k] = 0;
  for (int k = threadIdx.x; k < BINS; k += blockDim.x) narrow[k] = 0;
  __syncthreads();

  const bool warm = start != nullptr;
  const u64 low = state.low, size = static_cast<u64>(1) << state.width;
  const u64 warm_low = warm ? narrow_low<T>(start + t) : 0;
  constexpr u64 warm_size = static_cast<u64>(BINS) << narrow_shift<T>();
  const int shift = next_shift(state.width);
  u64 above = 0;
  const auto add = [&](Bits bits) {
    const u64 pattern = magnitude<T>(bits);
    const u64 offset = pattern - low;  // wraps below the interval
    if (offset < size) atomicAdd(&wide[(offset >> shift) * COPIES + copy], 1u);
    if (!warm || pattern < warm_low) return;
    if (pattern - warm_low < warm_size) {
      atomicAdd(&narrow[(pattern - warm_low) >> narrow_shift<T>()], 1u);
    } else {
      ++above;
    }
  };
  const Bits* scores = static_cast<const Bits*>(batch.scores[t]);
  const i64 n = batch.numel[t], first = batch.first_block[t];
  const Team team = {(blockIdx.x - first) * blockDim.x + threadIdx.x,
                     (batch.first_block[t + 1] - first) * blockDim.x};
  for_each<WIDTH>(
      team, n, span(scores, n), [=](i64 e) { return load<Vector16<Bits>>(scores + e); },
      [&](i64, const Vector16<Bits>& s) {
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) add(s.at[k]);
      },
      [&](i64 e) { add(scores[e]); });
  __syncthreads();

  u64* const total = counters + t * COUNTERS;
  for (int bin = threadIdx.x; bin < BINS; bin += blockDim.x) {
    u32 sum = 0;
    for (int c = 0; c < COPIES; ++c) sum += wide[bin * COPIES + c];
    if (sum) atomicAdd(&total[bin], static_cast<u64>(sum));
    if (narrow[bin]) atomicAdd(&total[BINS + bin], static_cast<u64>(narrow[bin]));
  }
  if (warm) add_all(above, &total[2 * BINS]);
}

constexpr int PER_THREAD = BINS / THREADS;

// The bin of the rank-th largest, and its rank therein; bin -1 when there are fewer. All threads
// of a block call it, get the same answer, and may call it again.
struct Place {
  i64 bin;
  i64 rank;
};

__device__ __forceinline__ Place find(const u64* bins, i64 rank) {
  __shared__ i64 sums[THREADS];
  __shared__ Place place;
  const int i = threadIdx.x, top = BINS - 1 - i * PER_THREAD;  // thread 0 takes the highest bins
  i64 own = 0;
  for (int k = 0; k < PER_THREAD; ++k) own += bins[top - k];
  __syncthreads();
  if (i == 0) place = {-1, 0};
  sums[i] = own;
  __syncthreads();
  for (int step = 1; step < THREADS; step *= 2) {  // inclusive sums
    const i64 before = i >= step ? sums[i - step] : 0;
    __syncthreads();
    sums[i] += before;
    __syncthreads();
  }
  i64 left = rank - (sums[i] - own);
  if (left >= 1 && left <= own) {  // true in one thread at most
    int bin = top;
    for (; left > static_cast<i64>(bins[bin]); --bin) left -= bins[bin];
    place = {bin, left};
  }
  __syncthreads();
  return place;
}

// Whether a score was NaN or infinite, by the bins of the first turn.
template <class T>
__device__ __forceinline__ bool any_not_finite(const u64* bins) {
  __shared__ int any;
  if (threadIdx.x == 0) any = 0;
  __syncthreads();
  for (int bin = (Format<T>::INFINITE >> (Format<T>::WIDTH - BITS)) + threadIdx.x; bin < BINS;
       bin += blockDim.x)
    if (bins[bin]) any = 1;
  __syncthreads();
  return any;
}

// Block t narrows the interval of tensor t, empties its counters, and writes the threshold once it
// is known: NaN when a score is not finite, infinity when there are no scores.
template <class T>
__device__ __forceinline__ void narrow(const Batch& batch, State* states, const BitsOf<T>* start,
                                       u64* counters, BitsOf<T>* thresholds, i64 turn) {
  const int t = blockIdx.x;
  u64* const bins = counters + t * COUNTERS;
  State state = {0, batch.kept[t], Format<T>::WIDTH};
  if (turn) state = states[t];
  if (!state.width) return;

  bool settled = false;
  if (!turn && any_not_finite<T>(bins)) {
    state = {Format<T>::NOT_A_NUMBER, 0, 0};
    settled = true;
  } else if (!batch.kept[t]) {
    state = {Format<T>::INFINITE, 0, 0};
    settled = true;
  } else if (!turn && start) {
    const Place place = find(bins + BINS, state.rank - static_cast<i64>(bins[2 * BINS]));
    if (place.bin >= 0) {
      const u64 low = narrow_low<T>(start + t) + (static_cast<u64>(place.bin) << narrow_shift<T>());
      state = {low, place.rank, narrow_shift<T>()};
      settled = true;
    }
  }
  if (!settled) {
    const Place place = find(bins, state.rank);
    const int shift = next_shift(state.width);
    state = {state.low + (static_cast<u64>(place.bin) << shift), place.rank, shift};
  }
  __syncthreads();
  for (int k = threadIdx.x; k < COUNTERS; k += blockDim.x) bins[k] = 0;
  if (threadIdx.x) return;
  states[t] = state;
  if (!state.width) thresholds[t] = static_cast<BitsOf<T>>(state.low);
}

#define BY_TYPE(T, NAME)                                                                        \
  extern "C" __global__ void __launch_bounds__(COUNT_THREADS)                                   \
      count_##NAME(const __grid_constant__ Batch batch, const State* states,                    \
                   const BitsOf<T>* start, u64* counters, i64 turn) {                           \
    count<T>(batch, states, start, counters, turn);                                             \
  }                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS)                                         \
      narrow_##NAME(const __grid_constant__ Batch batch, State* states, const BitsOf<T>* start, \
                    u64* counters, BitsOf<T>* thresholds, i64 turn) {                           \
    narrow<T>(batch, states, start, counters, thresholds, turn);                                \
  }
BY_TYPE(float, float32)
BY_TYPE(double, float64)
BY_TYPE(F16, float16)
BY_TYPE(BF16, bfloat16)
