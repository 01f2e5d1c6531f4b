// A two-bit quantiser in the manner of KIVI (arXiv 2402.02750), the opponent that `kvdepot demo`
// measures against.
//
// Keys are quantised per channel in groups of 32 tokens, values per token in groups of 32 channels,
// each group by its minimum and maximum with an fp16 scale and an fp16 zero: 2 + 32 / 32 = 3.0 bits
// a value.
#ifndef KVDEPOT_CLIENT_KIVI_REFERENCE_H_
#define KVDEPOT_CLIENT_KIVI_REFERENCE_H_

#include "client/kv_arrays.h"

namespace kvdepot {

inline constexpr int kKiviGroup = 32;
inline constexpr double kKiviBitsPerValue = 3.0;

// Replaces tokens [first, last) by what they decode to; the others stay exact. A last group may be
// shorter.
void QuantizeLikeKivi(int first, int last, KvArrays* kv);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_KIVI_REFERENCE_H_
