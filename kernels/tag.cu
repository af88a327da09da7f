// A step of TAG for many tensors at once; the equations are in tag.py.
//
// Two kernels, a block for every chunk of a tensor. `accumulate` updates the moments and multiplies
// the first with the direction of every finished task; the last block of a tensor adds up the sums
// of all its chunks, always in one order, and has alpha. `apply` weighs the second moments by it and
// takes the step. What is kept of finished tasks is read once; nothing comes back to the host.
#include "floats.cuh"

constexpr int BATCH = 48;   // tensors of a launch; their table is passed by value, 4 KiB at most
constexpr int VECTORS = 4;  // of 16 bytes of parameters, that a thread takes of a chunk
constexpr int TILE = 32;    // sums that a block adds up at once
constexpr int WARPS = THREADS / WARP;

struct Batch {
  void* params[BATCH];
  const void* grads[BATCH];
  void* moments[BATCH];
  void* variances[BATCH];
  const void* directions[BATCH];  // [tasks, numel]
  const void* past[BATCH];        // likewise
  void* totals[BATCH];            // [tasks]
  i64 numel[BATCH];
  i64 first_block[BATCH + 1];  // blocks first_block[p] .. first_block[p + 1] - 1 share tensor p
  int tasks[BATCH];
  int size[BATCH];  // bytes of an element of directions
  i64 tensors;
  i64 stride;  // > tasks of any tensor
  i64 by_moment;
  double minus_b, own, mix, decay, weight, lr, eps;
};

template <class T>
constexpr int PER_THREAD = VECTORS * 16 / sizeof(T);

// What a thread has to do with in a chunk of n elements of a tensor, WIDTH elements at a time:
// vectors of 16 bytes of T, or single elements where not all that is walked together is aligned.
template <class T, int WIDTH>
struct Part {
  typedef T Values[PER_THREAD<T>];
  static constexpr int COUNT = PER_THREAD<T> / WIDTH;
  i64 first;
  i64 n;

  __device__ __forceinline__ i64 at(int v) const { return first + v * THREADS * WIDTH; }

  // As T, and 0 behind the end.
  template <class K>
  __device__ __forceinline__ void get(const void* from, i64 row, Values& to) const {
    const K* const values = static_cast<const K*>(from) + row * n;
#pragma unroll
    for (int v = 0; v < COUNT; ++v) {
      Vector<K, WIDTH> x;
      const bool inside = at(v) < n;
      if (inside) x = load<Vector<K, WIDTH>>(values + at(v));
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) to[v * WIDTH + j] = inside ? value(x.at[j]) : T(0);
    }
  }

  __device__ __forceinline__ void put(void* to, const Values& values) const {
#pragma unroll
    for (int v = 0; v < COUNT; ++v) {
      Vector<T, WIDTH> x;
#pragma unroll
      for (int j = 0; j < WIDTH; ++j) x.at[j] = values[v * WIDTH + j];
      if (at(v) < n) store(static_cast<T*>(to) + at(v), x);
    }
  }
};

template <class T, int WIDTH>
__device__ __forceinline__ Part<T, WIDTH> part(const Batch& batch, int p) {
  const i64 chunk = blockIdx.x - batch.first_block[p];
  return {chunk * THREADS * PER_THREAD<T> + threadIdx.x * WIDTH, batch.numel[p]};
}

// Whether rows of n elements of T lie in aligned vectors, from all of these pointers on.
template <class T, class... Pointers>
__device__ __forceinline__ bool in_vectors(i64 n, const Pointers*... pointers) {
  return n * sizeof(T) % 16 == 0 && (... && is_aligned(pointers, 16));
}

// The tensor that this block works on.
__device__ __forceinline__ int tensor_of_block(const Batch& batch) {
  int p = 0;
  for (int step = 32; step; step /= 2)
    if (p + step < batch.tensors && batch.first_block[p + step] <= blockIdx.x) p += step;
  return p;
}

// As torch.lerp: exact at both ends.
template <class T>
__device__ __forceinline__ T mixed(T from, T to, T weight) {
  return weight < T(0.5) ? from + weight * (to - from) : to - (to - from) * (1 - weight);
}

// Moments of a chunk, its <M, M> to sums[0], and its <M, U_tau> to sums[1 + tau].
template <class T, class K, int WIDTH>
__device__ __forceinline__ void accumulate(const Batch& batch, int p, T* sums) {
  constexpr int PER = PER_THREAD<T>;
  __shared__ T of_warps[WARPS][TILE];
  const auto here = part<T, WIDTH>(batch, p);
  const T mix = batch.mix, decay = batch.decay, weight = batch.weight;
  T grad[PER], moment[PER], other[PER];
  here.template get<T>(batch.grads[p], 0, grad);
  here.template get<T>(batch.moments[p], 0, moment);
  here.template get<T>(batch.variances[p], 0, other);
  T square = 0;
#pragma unroll
  for (int k = 0; k < PER; ++k) {
    moment[k] = mixed(moment[k], grad[k], mix);
    other[k] = decay * other[k] + weight * grad[k] * grad[k];
    square += moment[k] * moment[k];
  }
  here.put(batch.moments[p], moment);
  here.put(batch.variances[p], other);

  const int count = batch.tasks[p] + 1, warp = threadIdx.x / WARP;
  for (int first = 0; first < count; first += TILE) {
    const int left = count - first < TILE ? count - first : TILE;
    for (int i = 0; i < left; ++i) {
      T sum = square;
      if (first + i) {
        sum = 0;
        here.template get<K>(batch.directions[p], first + i - 1, other);
#pragma unroll
        for (int k = 0; k < PER; ++k) sum += moment[k] * other[k];
      }
      sum = warp_sum(sum);
      if (threadIdx.x % WARP == 0) of_warps[warp][i] = sum;
    }
    __syncthreads();
    if (threadIdx.x < left) {
      T sum = 0;
      for (int w = 0; w < WARPS; ++w) sum += of_warps[w][threadIdx.x];
      sums[first + threadIdx.x] = sum;
    }
    __syncthreads();
  }
}

// The sum over chunks of one of their sums, in lane 0 of a warp; all of its lanes call it.
template <class T>
__device__ __forceinline__ T over_chunks(const T* sums, i64 chunks, i64 stride) {
  T sum = 0;
  for (i64 chunk = threadIdx.x % WARP; chunk < chunks; chunk += WARP)
    sum += *static_cast<const volatile T*>(sums + chunk * stride);
  return warp_sum(sum);
}

// Alpha of a tensor, which is added to its totals too.
template <class T>
__device__ __forceinline__ void weigh(const Batch& batch, int p, const T* sums, T* alphas) {
  const i64 chunks = batch.first_block[p + 1] - batch.first_block[p];
  const T norm = sqrt(over_chunks(sums, chunks, batch.stride));
  for (int tau = threadIdx.x / WARP; tau < batch.tasks[p]; tau += WARPS) {
    const T dot = over_chunks(sums + 1 + tau, chunks, batch.stride);
    if (threadIdx.x % WARP) continue;
    T cosine = norm == 0 ? T(0) : dot / norm;
    cosine = cosine < -1 ? T(-1) : cosine > 1 ? T(1) : cosine;  // NaN stays
    const T alpha = exp(static_cast<T>(batch.minus_b) * cosine);
    alphas[tau] = alpha;
    static_cast<T*>(batch.totals[p])[tau] += alpha;
  }
}

// sums [blocks, stride] for any use; alphas [tensors, stride], written; done [tensors], zeros.
template <class T>
__device__ __forceinline__ void accumulate_all(const Batch& batch, T* sums, T* alphas, u32* done) {
  constexpr int WIDTH = 16 / sizeof(T);
  const int p = tensor_of_block(batch);
  T* const own = sums + blockIdx.x * batch.stride;
  const bool vectors = in_vectors<T>(batch.numel[p], batch.grads[p], batch.moments[p],
                                     batch.variances[p], batch.directions[p]);
  const int size = batch.size[p];
  if (size == sizeof(T)) {
    vectors ? accumulate<T, T, WIDTH>(batch, p, own) : accumulate<T, T, 1>(batch, p, own);
  } else if (size == sizeof(BF16)) {
    vectors ? accumulate<T, BF16, WIDTH>(batch, p, own) : accumulate<T, BF16, 1>(batch, p, own);
  } else {
    vectors ? accumulate<T, float, WIDTH>(batch, p, own) : accumulate<T, float, 1>(batch, p, own);
  }
  if (!batch.tasks[p]) return;
  __shared__ bool last;
  __threadfence();  // the sums of this block are seen before it counts as done
  __syncthreads();
  const i64 first = batch.first_block[p], blocks = batch.first_block[p + 1] - first;
  if (threadIdx.x == 0) last = atomicAdd(&done[p], 1u) + 1 == blocks;
  __syncthreads();
  if (!last) return;
  __threadfence();
  weigh(batch, p, sums + first * batch.stride, alphas + p * batch.stride);
}

template <class T, int WIDTH>
__device__ __forceinline__ void apply(const Batch& batch, int p, const T* alphas) {
  constexpr int PER = PER_THREAD<T>;
  const auto here = part<T, WIDTH>(batch, p);
  const int tasks = batch.tasks[p];
  const T own = tasks ? batch.own : 1, lr = batch.lr, eps = batch.eps;
  T sum[PER], other[PER], param[PER];
  here.template get<T>(batch.variances[p], 0, sum);
#pragma unroll
  for (int k = 0; k < PER; ++k) sum[k] *= own;
  for (int tau = 0; tau < tasks; ++tau) {
    const T alpha = alphas[tau];
    here.template get<T>(batch.past[p], tau, other);
#pragma unroll
    for (int k = 0; k < PER; ++k) sum[k] += alpha * other[k];
  }
  here.template get<T>(batch.by_moment ? batch.moments[p] : batch.grads[p], 0, other);
  here.template get<T>(batch.params[p], 0, param);
#pragma unroll
  for (int k = 0; k < PER; ++k) param[k] -= lr * other[k] / (sqrt(sum[k]) + eps);
  here.put(batch.params[p], param);
}

template <class T>
__device__ __forceinline__ void apply_all(const Batch& batch, const T* alphas) {
  const int p = tensor_of_block(batch);
  const void* const numerator = batch.by_moment ? batch.moments[p] : batch.grads[p];
  const bool vectors = in_vectors<T>(batch.numel[p], batch.params[p], numerator,
                                     batch.variances[p], batch.past[p]);
  alphas += p * batch.stride;
  vectors ? apply<T, 16 / sizeof(T)>(batch, p, alphas) : apply<T, 1>(batch, p, alphas);
}

#define BY_TYPE(T, NAME)                                                                      \
  extern "C" __global__ void __launch_bounds__(THREADS) accumulate_##NAME(                    \
      const __grid_constant__ Batch batch, T* sums, T* alphas, u32* done) {                   \
    accumulate_all(batch, sums, alphas, done);                                                \
  }                                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS)                                       \
      apply_##NAME(const __grid_constant__ Batch batch, const T* alphas) {                    \
    apply_all(batch, alphas);                                                                 \
  }
BY_TYPE(float, float32)
BY_TYPE(double, float64)
