// Switching between fibers; see fibers.h.
#include "fibers.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
asm(R"(
.text
.globl pf_emulator_switch
.hidden pf_emulator_switch
.type pf_emulator_switch,@function
pf_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size pf_emulator_switch,.-pf_emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.globl pf_emulator_switch
.hidden pf_emulator_switch
pf_emulator_switch:
  sub sp, sp, #176
  stp x19,x20,[sp,#0]
  stp x21,x22,[sp,#16]
  stp x23,x24,[sp,#32]
  stp x25,x26,[sp,#48]
  stp x27,x28,[sp,#64]
  stp x29,x30,[sp,#80]
  stp d8,d9,[sp,#96]
  stp d10,d11,[sp,#112]
  stp d12,d13,[sp,#128]
  stp d14,d15,[sp,#144]
  mov x9, sp
  str x9,[x0]
  mov sp, x1
  ldp x19,x20,[sp,#0]
  ldp x21,x22,[sp,#16]
  ldp x23,x24,[sp,#32]
  ldp x25,x26,[sp,#48]
  ldp x27,x28,[sp,#64]
  ldp x29,x30,[sp,#80]
  ldp d8,d9,[sp,#96]
  ldp d10,d11,[sp,#112]
  ldp d12,d13,[sp,#128]
  ldp d14,d15,[sp,#144]
  add sp, sp, #176
  ret
)");
#else
#error "the emulator knows how to switch fibers on x86-64 and aarch64"
#endif

namespace emulator {

void prepare(Context& context, void (*function)()) {
  const std::uintptr_t top = (reinterpret_cast<std::uintptr_t>(context.stack) + kStackBytes) & ~std::uintptr_t(15);
#if defined(__x86_64__)
  void** place = reinterpret_cast<void**>(top);
  *--place = nullptr;  // stands for a return address: 16-byte alignment at entry
  *--place = reinterpret_cast<void*>(function);
  for (int saved = 0; saved < 6; ++saved) *--place = nullptr;
#else
  void** place = reinterpret_cast<void**>(top - 176);
  std::memset(place, 0, 176);
  place[11] = reinterpret_cast<void*>(function);  // x30
#endif
  context.stack_pointer = place;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(context.stack, kStackBytes);  // the last fiber here left for good, its frames standing
#elif defined(PF_EMULATOR_TSAN)
  if (!context.fiber) context.fiber = __tsan_create_fiber(0);
#endif
}

void switch_context(Context& from, Context& to, bool final) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = to.stack ? to.stack : to.bottom;
  __sanitizer_start_switch_fiber(final ? nullptr : &from.fake_stack, bottom, to.stack ? kStackBytes : to.size);
#elif defined(PF_EMULATOR_TSAN)
  __tsan_switch_to_fiber(to.fiber, 1);  // 1: the switch itself orders no memory
#endif
  (void) final;
  pf_emulator_switch(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  const void* old;
  std::size_t size;
  __sanitizer_finish_switch_fiber(from.fake_stack, &old, &size);
  if (from.stack) to.bottom = old, to.size = size;  // `to` is the scheduler
#endif
}

void arrived(Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
  (void)from;
}

}  // namespace emulator
