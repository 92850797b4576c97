// How the CPU library meets Python: C names, raw pointers, `i64` for every integer, `double` for every scalar, and the
// number of threads always last. The caller (fields/ops/_cpu.py) has checked shapes, dtypes and contiguity.
#pragma once
#include "polyfield/common.h"

#if defined(_WIN32)
#define PF_API extern "C" __declspec(dllexport)
#else
#define PF_API extern "C" __attribute__((visibility("default")))
#endif

using polyfield::i32;
using polyfield::i64;
using polyfield::u16;
using polyfield::u32;
using polyfield::u64;
using polyfield::u8;
