// The entry points of the CUDA driver that the launcher uses, answered by the emulator: the same Python code (finding,
// loading, packing, launching) then runs on a machine without a GPU. Images must be real CUBINs; they are not run.
#include <cstring>
#include <map>
#include <string>

#include "launch.h"

#define DRIVER extern "C" __attribute__((visibility("default"))) int

namespace {

constexpr int kInvalidValue = 1, kInvalidImage = 200, kNotFound = 500, kLaunchFailed = 719;
thread_local std::string last_error = "no error";
int context;  // its address stands for the primary context

struct Kernel {
  emulator::Entry entry;
};

}  // namespace

DRIVER cuInit(unsigned) { return 0; }
DRIVER cuDriverGetVersion(int* version) {
  *version = 13000;
  return 0;
}
DRIVER cuDeviceGet(int* device, int) {
  *device = 0;
  return 0;
}
DRIVER cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 75 ? 9 : 0;  // compute capability 9.0
  return 0;
}
DRIVER cuCtxGetCurrent(void** current) {
  *current = &context;
  return 0;
}
DRIVER cuDevicePrimaryCtxRetain(void** primary, int) {
  *primary = &context;
  return 0;
}
DRIVER cuCtxSetCurrent(void*) { return 0; }
DRIVER cuLibraryLoadData(void** library, const void* image, void*, void*, unsigned, void*, void*, unsigned) {
  *library = &context;
  return std::memcmp(image, "\177ELF", 4) == 0 ? 0 : kInvalidImage;
}
DRIVER cuLibraryGetKernel(void** kernel, void*, const char* name) {
  static std::map<std::string, Kernel> known;
  const emulator::Entry entry = emulator::find_kernel(name);
  if (!entry) {
    last_error = std::string("no kernel ") + name;
    return kNotFound;
  }
  *kernel = &(known[name] = {entry});
  return 0;
}
DRIVER cuLaunchKernel(void* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned, void*, void** parameters, void**) {
  if (!gx || !gy || !gz || bx * by * bz == 0 || bx * by * bz > 1024) {
    last_error = "invalid value";
    return kInvalidValue;
  }
  const std::string error =
      emulator::run({static_cast<Kernel*>(kernel)->entry, parameters, {gx, gy, gz}, {bx, by, bz}});
  if (error.empty()) return 0;
  last_error = error;
  return kLaunchFailed;
}
DRIVER cuGetErrorString(int, const char** text) {
  *text = last_error.c_str();
  return 0;
}
