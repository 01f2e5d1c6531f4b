// A quantiser in the manner of KIVI (arXiv 2402.02750), the opponent that `kvdepot demo` and
// `kvdepot bench codec` measure against.
//
// Keys are quantised per channel in groups of 32 tokens, values per token in groups of 32 channels,
// each group by its minimum and maximum with an fp16 scale and an fp16 zero.
#ifndef KVDEPOT_CLIENT_KIVI_REFERENCE_H_
#define KVDEPOT_CLIENT_KIVI_REFERENCE_H_

#include "client/kv_arrays.h"

namespace kvdepot {

inline constexpr int kKiviGroup = 32;

// All in: 3.0 of 2 bits, 5.0 of 4.
constexpr double KiviBitsPerValue(int bits) { return bits + 32.0 / kKiviGroup; }

// Replaces tokens [first, last) by what they decode to from codes of `bits` (1..8); the others stay
// exact. A last group may be shorter.
void QuantizeLikeKivi(int first, int last, int bits, KvArrays* kv);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_KIVI_REFERENCE_H_
