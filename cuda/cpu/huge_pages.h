// Large buffers on 2 MiB pages: fewer faults when a fresh output is first written (32 MiB are 8192 faults, as long as
// the kernels that write them take), fewer TLB misses when a table of tens of megabytes is read at random. Advice only,
// for systems that grant huge pages on request; results do not change.
#pragma once
#include "api.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace polyfield {

constexpr i64 kHugePage = i64(2) << 20;

// Small arrays are left alone. Call before the first write, or with `collapse` for memory already in use (Linux 6.1).
inline void advise_huge_pages(void* data, i64 bytes, bool collapse = false) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const i64 begin = (i64(data) + kHugePage - 1) / kHugePage * kHugePage;
  const i64 end = (i64(data) + bytes) / kHugePage * kHugePage;
  if (end < begin + 2 * kHugePage) return;
  madvise(reinterpret_cast<void*>(begin), u64(end - begin), MADV_HUGEPAGE);
  if (collapse) madvise(reinterpret_cast<void*>(begin), u64(end - begin), 25);  // MADV_COLLAPSE
#else
  (void)data, (void)bytes, (void)collapse;
#endif
}

}  // namespace polyfield
