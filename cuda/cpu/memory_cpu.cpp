// Memory advice for tensors that torch has allocated.
#include "huge_pages.h"

PF_API i64 pf_advise_huge_pages(void* data, i64 bytes, i64 in_use, i64 /*threads*/) {
  polyfield::advise_huge_pages(data, bytes, in_use != 0);
  return 0;
}
