// One fiber: a stack and the place where it was left. Switching costs about 50 ns on x86-64 and aarch64 (ucontext would
// make two system calls). The sanitizers are told of every switch.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(PF_EMULATOR_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace emulator {

constexpr std::size_t kStackBytes = 64 * 1024;

struct Context {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // null for the scheduler, which runs on its thread's own
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  std::size_t size = 0;
#elif defined(PF_EMULATOR_TSAN)
  void* fiber = nullptr;
#endif
};

extern "C" void pf_emulator_switch(void** save, void* load);

// Makes `context` start in `function`, which must never return.
void prepare(Context& context, void (*function)());
// Leaves `from` (for good where `final`) and goes on in `to`; returns when somebody switches back.
void switch_context(Context& from, Context& to, bool final);
// To be called first in a new fiber.
void arrived(Context& from);

}  // namespace emulator
