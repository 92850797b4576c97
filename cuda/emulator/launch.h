// What the driver's shim asks of the emulator.
#pragma once
#include <string>

#include "emulator.h"

namespace emulator {

struct Launch {
  Entry entry;
  void** parameters;
  uint3 grid, block;
};

// The kernel of that name, or null.
Entry find_kernel(const std::string& name);
// Runs all blocks; returns what went wrong, or nothing.
std::string run(const Launch& launch);

}  // namespace emulator
