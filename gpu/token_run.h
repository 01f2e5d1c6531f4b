// Where consecutive tokens of one layer lie.
#ifndef KVDEPOT_GPU_TOKEN_RUN_H_
#define KVDEPOT_GPU_TOKEN_RUN_H_

#include <cstddef>

namespace kvdepot {

// A view of tokens [first, first + count) of one extent. `data` is device memory of the backend in
// use and outlives every call that the run is passed to.
struct TokenRun {
  enum class Form : unsigned char {
    kExact,    // exact extent of `capacity` tokens (gpu/FORMAT.md, raw record without a header)
    kSegment,  // segment, from its header on; `capacity` is its token count
  };
  Form form = Form::kExact;
  const std::byte* data = nullptr;
  int capacity = 0;
  int first = 0;
  int count = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_TOKEN_RUN_H_
