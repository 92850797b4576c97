// Runs one launch: blocks in turn, the threads of a block as fibers. One launch at a time, so that a run repeats exactly.
#include "emulator.h"

#include <sys/mman.h>

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

enum class State { kReady, kAtBarrier, kDone };

struct Fiber : Context {
  uint3 index;
  unsigned number;
  State state;
  const char* where;
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
  char start_tag, barrier_tag, end_tag;  // what ThreadSanitizer orders by
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
  for (const Fiber& fiber : b.fibers)
    if (fiber.state == State::kAtBarrier && shown++ < 3)
      message += " " + name_of(b, fiber) + " waits at the barrier " + fiber.where + ";";
  return message + " " + std::to_string(b.fibers.size() - b.alive) + " threads have ended";
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
    stacks.push_back(static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
  Block b;
  b.fibers.resize(threads);
  b.size = launch.block, b.grid = launch.grid, b.entry = launch.entry, b.parameters = launch.parameters;
#if defined(PF_EMULATOR_TSAN)
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
  for (Fiber& fiber : b.fibers) __tsan_destroy_fiber(fiber.fiber);
#endif
  return b.error;
}

}  // namespace emulator
