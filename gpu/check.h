// KVDEPOT_CHECK: a broken invariant ends the process with its place. For bugs, never for outside
// input.
#ifndef KVDEPOT_GPU_CHECK_H_
#define KVDEPOT_GPU_CHECK_H_

#include <cstdio>
#include <cstdlib>

namespace kvdepot {

[[noreturn]] inline void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace kvdepot

#define KVDEPOT_CHECK(condition)                       \
  (static_cast<bool>(condition) ? static_cast<void>(0) \
                                : ::kvdepot::CheckFailed(__FILE__, __LINE__, #condition))

#endif  // KVDEPOT_GPU_CHECK_H_
