// Just enough of CUDA C++ for a host compiler to run the kernels' sources, one block at a time.
//
// The threads of a block are fibers of one thread of the host: each runs until it waits for the
// others, in an order that the caller chooses, so that a missing barrier shows in one order or
// another. A barrier that not all threads reach is reported instead of waited for.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __grid_constant__
#define __shared__ static  // as on a device, it holds whatever the last block left in it

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class T>
inline T atomicAdd(T* to, T value) {
  const T before = *to;
  *to += value;
  return before;
}

namespace host {

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

// A thread of the host at a time; made once, and then running one thread of a block after another.
struct Fiber {
  jmp_buf where;
  std::unique_ptr<char[]> stack;
  bool done;
  unsigned shuffles;
};

constexpr unsigned WARP_SIZE = 32, MAX_THREADS = 1024;
constexpr size_t STACK = 1 << 16;
static std::vector<Fiber> fibers(MAX_THREADS);
static jmp_buf scheduler;
static Barrier block_barrier, warp_barriers[MAX_THREADS / WARP_SIZE];
static unsigned long long exchanged[2][MAX_THREADS];
static unsigned long progress;
static std::function<void()> body;

// Switching by jumps: swapcontext, which also begins a fiber, makes two calls of the system.
inline void back_to_scheduler(unsigned mine) {
  if (!_setjmp(fibers[mine].where)) _longjmp(scheduler, 1);
  threadIdx.x = mine;
}

inline void wait(Barrier& barrier, unsigned expected) {
  const unsigned generation = barrier.generation, mine = threadIdx.x;
  ++progress;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) back_to_scheduler(mine);
}

inline void live() {
  for (const unsigned mine = threadIdx.x;;) {
    body();
    fibers[mine].done = true;
    ++progress;
    back_to_scheduler(mine);
  }
}

inline void begin(Fiber& fiber) {
  static ucontext_t unused, context;
  fiber.stack.reset(new char[STACK]);
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = STACK;
  makecontext(&context, live, 0);
  swapcontext(&unused, &context);
}

inline void resume(unsigned thread) {
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  Fiber& fiber = fibers[thread];
  if (fiber.stack) _longjmp(fiber.where, 1);
  begin(fiber);
}

// False when some threads wait at a barrier that others never reach.
inline bool run_block(unsigned threads, std::mt19937& random, int order) {
  block_barrier = {};
  for (auto& barrier : warp_barriers) barrier = {};
  for (unsigned t = 0; t < threads; ++t) fibers[t].done = false, fibers[t].shuffles = 0;
  std::vector<unsigned> turn(threads);
  std::iota(turn.begin(), turn.end(), 0u);
  if (order == 1) std::reverse(turn.begin(), turn.end());
  // In orders 1 and -1 every warp goes as far as it can before the next one is let on.
  const unsigned group = order == 1 || order == -1 ? WARP_SIZE : threads;
  for (bool all_done = false; !all_done;) {
    const unsigned long before_all = progress;
    all_done = true;
    for (unsigned first = 0; first < threads; first += group) {
      unsigned long before;
      bool done;
      do {
        if (order > 1) std::shuffle(turn.begin(), turn.end(), random);
        before = progress;
        done = true;
        for (unsigned i = first; i < first + group; ++i) {
          Fiber& fiber = fibers[turn[i]];
          if (!fiber.done) resume(turn[i]);
          done = done && fiber.done;
        }
      } while (!done && progress != before);
      all_done = all_done && done;
    }
    if (!all_done && progress == before_all) {
      for (auto& fiber : fibers) fiber.stack.reset();  // they stay where they are
      return false;
    }
  }
  return block_barrier.arrived == 0;
}

// Blocks [first, last) of the grid, counted along x first. Blocks and threads in ascending (orders 0
// and -1) or descending order (1), else shuffled by that seed. 0 on success.
template <class... Parameters, size_t... I>
int launch(void (*kernel)(Parameters...), std::index_sequence<I...>, const unsigned* grid,
           unsigned threads, void** arguments, int order, uint64_t first, uint64_t last) {
  body = [&] { kernel(*static_cast<std::decay_t<Parameters>*>(arguments[I])...); };
  if (threads % WARP_SIZE || threads > MAX_THREADS) return 2;
  blockDim = {threads, 1, 1};
  gridDim = {grid[0], grid[1], 1};
  threadIdx = {0, 0, 0};
  std::vector<uint64_t> blocks(last - first);
  std::iota(blocks.begin(), blocks.end(), first);
  std::mt19937 random(order);
  if (order == 1) std::reverse(blocks.begin(), blocks.end());
  if (order > 1) std::shuffle(blocks.begin(), blocks.end(), random);
  for (const uint64_t b : blocks) {
    blockIdx = {static_cast<unsigned>(b % grid[0]), static_cast<unsigned>(b / grid[0]), 0};
    if (!run_block(threads, random, order)) return 1;
  }
  return 0;
}

}  // namespace host

inline void __threadfence() {}
inline void __syncthreads() { host::wait(host::block_barrier, blockDim.x); }

// A lane is at most one exchange ahead of the others of its warp, so that two sets of slots do.
template <class T>
inline T __shfl_down_sync(unsigned, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % host::WARP_SIZE, thread = threadIdx.x;
  auto& slots = host::exchanged[host::fibers[thread].shuffles++ % 2];
  memcpy(&slots[thread], &value, sizeof(T));
  host::wait(host::warp_barriers[thread / host::WARP_SIZE], host::WARP_SIZE);
  if (lane + delta < host::WARP_SIZE) memcpy(&value, &slots[thread + delta], sizeof(T));
  return value;
}

// IEEE half precision: by scaling, which is exact, and by rounding to a multiple of the spacing.
inline float from_half(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  float x = exponent == 31 ? (fraction ? __builtin_nanf("") : __builtin_inff())
            : exponent     ? __builtin_ldexpf(1024 + fraction, exponent - 25)
                           : __builtin_ldexpf(fraction, -24);
  return bits >> 15 ? -x : x;
}

inline unsigned short to_half(float x) {
  const unsigned short sign = __builtin_signbit(x) ? 0x8000 : 0;
  const float size = __builtin_fabsf(x);
  if (x != x) return 0x7fff;
  if (size >= 65520) return sign | 0x7c00;
  int exponent = 0;
  __builtin_frexpf(size, &exponent);  // size in [2^(exponent - 1), 2^exponent)
  if (exponent < -13 || !size) exponent = -13;
  const int steps = __builtin_lrintf(__builtin_ldexpf(size, 11 - exponent));
  return sign | ((exponent + 13) * 1024 + steps);
}

// The door to one kernel, for a caller without types: arguments as cuLaunchKernel takes them.
template <class... Parameters>
int host_launch(void (*kernel)(Parameters...), const unsigned* grid, unsigned threads,
                void** arguments, int order, uint64_t first, uint64_t last) {
  return host::launch(kernel, std::index_sequence_for<Parameters...>(), grid, threads, arguments,
                      order, first, last);
}
#define HOST_KERNEL(name)                                                                     \
  extern "C" int host_##name(const unsigned* grid, unsigned threads, void** arguments,        \
                             int order, uint64_t first, uint64_t last) {                      \
    return host_launch(name, grid, threads, arguments, order, first, last);                   \
  }
