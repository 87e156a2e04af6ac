// A libcuda.so.1 for machines without one: a card as a test describes it, which keeps count of
// contexts, and hands images and launches to the test.
#include <stddef.h>
#include <string.h>

// The fields that Python sees and sets, as `State` in stub_driver.py.
struct {
  int version, major, minor, processors, shared_per_block;
  const char* failing;  // the name of the function that fails, and with which status
  int failure;
  int contexts;  // pushed and not popped
  int static_shared, most_dynamic_shared;
  void* stream;  // of the last launch
  int (*loaded)(const char* image);
  void (*launched)(const unsigned* grid, const unsigned* block, unsigned shared,
                   const void* argument);
} state;

static int done(const char* name) {
  return state.failing && !strcmp(state.failing, name) ? state.failure : 0;
}
// Of a function that needs a context.
static int done_there(const char* name) { return state.contexts > 0 ? done(name) : 201; }

int cuInit(unsigned flags) { return flags ? 1 : done("cuInit"); }
int cuDriverGetVersion(int* version) {
  return *version = state.version, done("cuDriverGetVersion");
}
int cuGetErrorString(int status, const char** words) {
  *words = status == 100   ? "no CUDA-capable device is detected"
           : status == 201 ? "invalid device context"
           : status == 209 ? "not UTF-8: \xff"
           : status == 222 ? "the provided PTX was compiled with an unsupported toolchain."
                           : "an error";
  return 0;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal < 2 ? done("cuDeviceGet") : 101;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 16 ? state.processors
           : attribute == 75 ? state.major
           : attribute == 76 ? state.minor
           : attribute == 97 ? state.shared_per_block
                             : -1;
  return device < 2 && *value >= 0 ? done("cuDeviceGetAttribute") : 1;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  *context = (char*)NULL + 16 + device;
  return done("cuDevicePrimaryCtxRetain");
}
int cuCtxPushCurrent_v2(void* context) {
  const int status = context ? done("cuCtxPushCurrent_v2") : 1;
  state.contexts += status == 0;
  return status;
}
int cuCtxPopCurrent_v2(void** context) {
  *context = NULL;
  return state.contexts-- > 0 ? 0 : 201;
}
// Options 5 and 6 are the buffer of the compiler's errors and its size.
int cuModuleLoadDataEx(void** module, const char* image, unsigned count, const int* options,
                       void** values) {
  *module = (void*)image;
  int status = done_there("cuModuleLoadDataEx");
  if (status == 0) status = state.loaded(image);
  if (count != 2 || options[0] != 5 || options[1] != 6) return 1;
  if (status == 218) strncpy(values[0], "ptxas fatal:\n  no", (size_t)values[1]);
  return status;
}
int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = state.static_shared;
  return function && attribute == 1 ? done_there("cuFuncGetAttribute") : 1;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = module;
  return strcmp(name, "sample") ? 500 : done_there("cuModuleGetFunction");
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != 8 || value + state.static_shared > state.shared_per_block) return 1;
  state.most_dynamic_shared = value;
  return function ? done_there("cuFuncSetAttribute") : 1;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** arguments, void** extra) {
  const unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
  if (!function || extra || (int)shared > state.most_dynamic_shared) return 1;
  state.stream = stream;
  const int status = done_there("cuLaunchKernel");
  if (status == 0) state.launched(grid, block, shared, arguments[0]);
  return status;
}
