// Runs one launch: blocks in turn, the threads of a block as fibers. One launch at a time, so that a run repeats
// exactly.
#include "emulator.h"

#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "fibers.h"
#include "launch.h"

#if defined(PF_EMULATOR_TSAN)
#define PF_RELEASE(tag) __tsan_release(tag)
#define PF_ACQUIRE(tag) __tsan_acquire(tag)
#else
#define PF_RELEASE(tag) (void)(tag)
#define PF_ACQUIRE(tag) (void)(tag)
#endif

namespace emulator {
namespace {

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Fiber : Context {
  uint3 index;
  unsigned number;
  State state;
  const char* where;
  unsigned mask;  // of the collective that it waits at, and what it brought and takes away
  std::uint64_t value, result;
  unsigned source;
  float* sums;
  const unsigned *a, *b;
};

struct Block {
  std::vector<Fiber> fibers;
  uint3 index, size, grid;
  unsigned alive = 0, waiting = 0;
  Fiber* current = nullptr;
  Context scheduler;
  Entry entry;
  void** parameters;
  std::string error;
  char start_tag, barrier_tag, end_tag, warp_tags[32];  // what ThreadSanitizer orders by
};

Block* block = nullptr;

std::string text(const uint3& v) {
  return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " + std::to_string(v.z) + ")";
}
std::string name_of(const Block& b, const Fiber& fiber) {
  return "block " + text(b.index) + " thread " + text(fiber.index);
}

void fiber_main() {
  Block& b = *block;
  arrived(b.scheduler);
  PF_ACQUIRE(&b.start_tag);
  b.entry(b.parameters);
  PF_RELEASE(&b.end_tag);
  b.current->state = State::kDone;
  --b.alive;
  switch_context(*b.current, b.scheduler, true);
  __builtin_unreachable();
}

void start(Block& b, const std::vector<char*>& stacks) {
  b.alive = unsigned(b.fibers.size());
  b.waiting = 0;
  for (unsigned i = 0; i < b.alive; ++i) {
    Fiber& fiber = b.fibers[i];
    fiber.index = {i % b.size.x, i / b.size.x % b.size.y, i / (b.size.x * b.size.y)};
    fiber.number = i;
    fiber.state = State::kReady;
    fiber.stack = stacks[i];
    prepare(fiber, fiber_main);
  }
  PF_RELEASE(&b.start_tag);  // the launch, and the block before, happen before every thread
}

void open_barrier(Block& b) {
  for (Fiber& fiber : b.fibers)
    if (fiber.state == State::kAtBarrier) fiber.state = State::kReady;
  b.waiting = 0;
}

std::string deadlock(const Block& b) {
  std::string message = "deadlock:";
  int shown = 0;
  for (const Fiber& fiber : b.fibers) {
    if (fiber.state == State::kDone || shown++ >= 3) continue;
    const char* what = fiber.state == State::kAtBarrier ? " waits at the barrier " : " waits at the warp collective ";
    message += " " + name_of(b, fiber) + what + fiber.where + ";";
  }
  return message + " " + std::to_string(b.fibers.size() - b.alive) + " threads have ended";
}

// Ends the launch: the scheduler sees the error. Does not return.
void fail(const std::string& what) {
  Block& b = *block;
  b.error = name_of(b, *b.current) + ": " + what;
  switch_context(*b.current, b.scheduler, false);
  __builtin_unreachable();
}

// Waits until all lanes of `mask` are here; the last to come runs `act` for all. Returns the first lane's fiber.
template <class Act> void collective(unsigned mask, const char* where, const Act& act) {
  Block& b = *block;
  Fiber& me = *b.current;
  Fiber* lanes = &b.fibers[me.number / 32 * 32];
  const unsigned present = unsigned(&b.fibers.back() - lanes) + 1;
  if (!(mask >> me.number % 32 & 1)) fail(std::string("left out of the mask of its own collective ") + where);
  if (present < 32 && mask >> present) fail(std::string("the mask names lanes that the block has not ") + where);
  me.state = State::kAtCollective;
  me.mask = mask;
  me.where = where;
  for (unsigned i = 0; i < 32; ++i) {
    if (!(mask >> i & 1)) continue;
    const Fiber& other = lanes[i];
    if (other.state == State::kAtCollective && other.mask == mask && !std::strcmp(other.where, where)) continue;
    switch_context(me, b.scheduler, false);
    return;
  }
  act(lanes);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1) lanes[i].state = State::kReady;
}

void run_block(Block& b) {
  // Threads that have ended do not count as waiting: a barrier that they skipped never opens, as the language has it.
  while (b.alive) {
    bool progress = false;
    for (Fiber& fiber : b.fibers) {
      if (fiber.state != State::kReady) continue;
      progress = true;
      b.current = &fiber;
      switch_context(b.scheduler, fiber, false);
      if (!b.error.empty()) return;
    }
    if (progress) continue;
    b.error = deadlock(b);
    return;
  }
  PF_ACQUIRE(&b.end_tag);
}

std::map<std::string, Entry>& kernels() {
  static std::map<std::string, Entry> table;
  return table;
}

}  // namespace

uint3 thread_index() { return block->current->index; }
uint3 block_index() { return block->index; }
uint3 block_size() { return block->size; }
uint3 grid_size() { return block->grid; }

void barrier(const char* where) {
  Block& b = *block;
  Fiber& me = *b.current;
  PF_RELEASE(&b.barrier_tag);
  me.state = State::kAtBarrier;
  me.where = where;
  if (++b.waiting == b.fibers.size()) open_barrier(b);
  switch_context(me, b.scheduler, false);
  PF_ACQUIRE(&b.barrier_tag);
}

void warp_barrier(unsigned mask, const char* where) {
  char* tag = block->warp_tags + block->current->number / 32;
  PF_RELEASE(tag);
  collective(mask, where, [](Fiber*) {});
  PF_ACQUIRE(tag);
}

unsigned ballot(unsigned mask, bool vote, const char* where) {
  Fiber& me = *block->current;
  me.value = vote;
  collective(mask, where, [mask](Fiber* lanes) {
    unsigned votes = 0;
    for (unsigned i = 0; i < 32; ++i)
      if (mask >> i & 1) votes |= unsigned(lanes[i].value) << i;
    for (unsigned i = 0; i < 32; ++i) lanes[i].result = mask >> i & 1 ? votes : lanes[i].result;
  });
  return unsigned(me.result);
}

std::uint64_t exchange(unsigned mask, std::uint64_t value, unsigned source, const char* where) {
  Fiber& me = *block->current;
  me.value = value;
  me.source = source % 32;
  if (!(mask >> me.source & 1))
    fail("reads lane " + std::to_string(me.source) + ", which takes no part in the collective " + where);
  collective(mask, where, [mask](Fiber* lanes) {
    for (unsigned i = 0; i < 32; ++i)
      if (mask >> i & 1) lanes[i].result = lanes[lanes[i].source].value;
  });
  return me.result;
}

void mma_bf16(float* sums, const unsigned* a, const unsigned* b, const char* where) {
  Fiber& me = *block->current;
  me.sums = sums, me.a = a, me.b = b;
  collective(~0u, where, [](Fiber* lanes) {
    const auto element = [](unsigned both, unsigned odd) {
      const std::uint32_t bits = odd ? both & 0xffff0000u : both << 16;
      float value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    };
    for (unsigned row = 0; row < 16; ++row)
      for (unsigned column = 0; column < 8; ++column) {
        float& sum = lanes[row % 8 * 4 + column / 2].sums[row / 8 * 2 + column % 2];
        for (unsigned k = 0; k < 16; ++k) {
          const unsigned holder = k % 8 / 2;  // of the pair of k's, in a group of four lanes
          const float left = element(lanes[row % 8 * 4 + holder].a[row / 8 + k / 8 * 2], k % 2);
          sum += left * element(lanes[column * 4 + holder].b[k / 8], k % 2);
        }
      }
  });
}

unsigned transpose_8x8(unsigned held, const char* where) {
  Fiber& me = *block->current;
  me.value = held;
  collective(~0u, where, [](Fiber* lanes) {
    const auto element = [&](unsigned row, unsigned column) {
      return lanes[row * 4 + column / 2].value >> (column % 2 * 16) & 0xffffu;
    };
    for (unsigned i = 0; i < 32; ++i) lanes[i].result = element(i % 4 * 2, i / 4) | element(i % 4 * 2 + 1, i / 4) << 16;
  });
  return unsigned(me.result);
}

Registration::Registration(const char* name, Entry entry) { kernels()[name] = entry; }

Entry find_kernel(const std::string& name) {
  const auto found = kernels().find(name);
  return found == kernels().end() ? nullptr : found->second;
}

std::string run(const Launch& launch) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  static std::vector<char*> stacks;  // kept between launches
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  while (stacks.size() < threads)
    stacks.push_back(static_cast<char*>(
        mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
  Block b;
  b.fibers.resize(threads);
  b.size = launch.block, b.grid = launch.grid, b.entry = launch.entry, b.parameters = launch.parameters;
#if defined(PF_EMULATOR_TSAN)
  static std::vector<void*> known;  // ThreadSanitizer's names of the fibers: kept between launches, they cost a lot
  known.resize(std::max<std::size_t>(known.size(), threads));
  for (unsigned i = 0; i < threads; ++i) b.fibers[i].fiber = known[i];
  b.scheduler.fiber = __tsan_get_current_fiber();
#endif
  block = &b;
  const std::uint64_t plane = std::uint64_t(b.grid.x) * b.grid.y;
  for (std::uint64_t i = 0; b.error.empty() && i < plane * b.grid.z; ++i) {
    b.index = {unsigned(i % b.grid.x), unsigned(i / b.grid.x % b.grid.y), unsigned(i / plane)};
    start(b, stacks);
    run_block(b);
  }
#if defined(PF_EMULATOR_TSAN)
  for (unsigned i = 0; i < threads; ++i) known[i] = b.fibers[i].fiber;
#endif
  return b.error;
}

}  // namespace emulator
