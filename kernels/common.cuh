// What the kernels share: types, bits of packed masks, loops over 16-byte vectors, sums.
//
// Every kernel works for any number of elements and any alignment of its pointers to their own
// element size, with any number of blocks: threads step over the data by the size of the grid.
// Indices are 64 bits wide. Nothing is included, so that NVRTC needs no headers.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr int THREADS = 256;  // of a block, in the kernels of this floor but for the select passes
constexpr int WARP = 32;

// N values that are moved at once.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T at[N];
};

// 16 bytes of values.
template <class T>
using Vector16 = Vector<T, 16 / sizeof(T)>;

template <class V, class T>
__device__ __forceinline__ V load(const T* from) {
  return *reinterpret_cast<const V*>(from);
}

template <class V, class T>
__device__ __forceinline__ void store(T* to, const V& value) {
  *reinterpret_cast<V*>(to) = value;
}

__device__ __forceinline__ bool is_aligned(const void* pointer, int bytes) {
  return (reinterpret_cast<u64>(pointer) & (bytes - 1)) == 0;
}

// The threads that share one piece of work, and the place of this one among them.
struct Team {
  i64 thread;
  i64 size;
};

__device__ __forceinline__ Team whole_grid() {
  return {blockIdx.x * static_cast<i64>(blockDim.x) + threadIdx.x,
          gridDim.x * static_cast<i64>(blockDim.x)};
}

// Elements [head, head + vectors * width) lie in aligned vectors, the others are taken one by one.
struct Span {
  i64 head;
  i64 vectors;
};

__device__ __forceinline__ Span no_vectors() { return {0, 0}; }

// How n elements of type T at `pointer` fall into aligned 16-byte vectors.
template <class T>
__device__ __forceinline__ Span span(const T* pointer, i64 n) {
  const i64 before = ((16 - (reinterpret_cast<u64>(pointer) & 15)) & 15) / sizeof(T);
  const i64 head = before < n ? before : n;
  return {head, (n - head) * static_cast<i64>(sizeof(T)) / 16};
}

// The same for several arrays that are walked together: no vectors unless they are aligned alike.
template <class T, class... Others>
__device__ __forceinline__ Span span(const T* pointer, i64 n, const Others*... others) {
  const u64 first = reinterpret_cast<u64>(pointer);
  const bool alike = (... && (((reinterpret_cast<u64>(others) ^ first) & 15) == 0));
  return alike ? span(pointer, n) : no_vectors();
}

// Calls finish(e, start(e)) for the first element e of every vector, and single(e) for every
// element outside of them. `start` loads: two loads are on their way before the first is used.
template <int WIDTH, class Start, class Finish, class Single>
__device__ __forceinline__ void for_each(Team team, i64 n, Span span, Start start, Finish finish,
                                         Single single) {
  constexpr int AHEAD = 2;
#pragma unroll 1
  for (i64 v = team.thread; v < span.vectors; v += AHEAD * team.size) {
    decltype(start(i64())) loaded[AHEAD];
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const i64 w = v + a * team.size;
      if (w < span.vectors) loaded[a] = start(span.head + w * WIDTH);
    }
#pragma unroll
    for (int a = 0; a < AHEAD; ++a) {
      const i64 w = v + a * team.size;
      if (w < span.vectors) finish(span.head + w * WIDTH, loaded[a]);
    }
  }
#pragma unroll 1
  for (i64 e = team.thread; e < span.head; e += team.size) single(e);
#pragma unroll 1
  for (i64 e = span.head + span.vectors * WIDTH + team.thread; e < n; e += team.size) single(e);
}

// Bits e .. e + COUNT - 1 of a packed mask that holds them all; COUNT <= 8.
template <int COUNT>
__device__ __forceinline__ u32 bits_at(const u8* bits, i64 e) {
  const i64 byte = e >> 3;
  const int shift = e & 7;
  u32 word = bits[byte];
  if (shift + COUNT > 8) word |= static_cast<u32>(bits[byte + 1]) << 8;
  return word >> shift & ((1u << COUNT) - 1);
}

// Bits 0, 8, 16, 24 of a word of four 0/1 bytes as bits 0..3.
__device__ __forceinline__ u32 gather4(u32 bytes) { return (bytes * 0x01020408u) >> 24 & 15u; }

// The inverse: bits 0..3 as four 0/1 bytes.
__device__ __forceinline__ u32 spread4(u32 bits) { return (bits * 0x00204081u) & 0x01010101u; }

// The sum over the threads of a warp, in its lane 0; all of them call it.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) value += __shfl_down_sync(~0u, value, step);
  return value;
}

// Adds the values of all threads of a block to *total; all of them call it.
__device__ __forceinline__ void add_all(u64 value, u64* total) {
  const u64 sum = warp_sum(value);
  if (threadIdx.x % WARP == 0 && sum) atomicAdd(total, sum);
}
