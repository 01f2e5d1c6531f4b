// Where consecutive tokens of one layer lie.
#ifndef KVDEPOT_GPU_TOKEN_RUN_H_
#define KVDEPOT_GPU_TOKEN_RUN_H_

#include <cstddef>

#include "gpu/shape.h"

namespace kvdepot {

// A view of tokens [first, first + count) of one extent. `data` is device memory of the backend in
// use, which the host may not be able to read: so the form says what lies there. It outlives every
// call that the run is passed to.
struct TokenRun {
  enum class Form : unsigned char {
    kExact,   // exact extent of `capacity` tokens (gpu/FORMAT.md, raw record without a header)
    kPlanes,  // `planes` segment, from its header on; `capacity` is its token count
    kRaw,     // likewise a `raw` segment
    kPackKv,  // likewise a `packkv` segment
  };
  Form form = Form::kExact;
  const std::byte* data = nullptr;
  int capacity = 0;
  int first = 0;
  int count = 0;
};

constexpr TokenRun::Form SegmentForm(Codec codec) {
  switch (codec) {
    case Codec::kPlanes:
      return TokenRun::Form::kPlanes;
    case Codec::kPackKv:
      return TokenRun::Form::kPackKv;
    case Codec::kRaw:
      break;
  }
  return TokenRun::Form::kRaw;
}

// Of a run that is no exact extent.
constexpr Codec FormCodec(TokenRun::Form form) {
  for (const Codec codec : kCodecs) {
    if (SegmentForm(codec) == form) return codec;
  }
  return Codec::kRaw;
}

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_TOKEN_RUN_H_
