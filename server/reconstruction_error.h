// How far a sealed segment is from the tokens that it was made of.
#ifndef KVDEPOT_SERVER_RECONSTRUCTION_ERROR_H_
#define KVDEPOT_SERVER_RECONSTRUCTION_ERROR_H_

#include <cstddef>

#include "gpu/backend.h"
#include "gpu/calibration.h"

namespace kvdepot {

// Relative L2: |decoded - exact| / |exact| over all values, 0 where exact and decoded are all 0.
struct ReconstructionError {
  double k = 0;
  double v = 0;
};

// Tokens of one sample: thousands of values, and few enough that comparing them takes less than
// encoding their segment.
inline constexpr int kErrorSampleTokens = 16;

// Decodes the sample that begins at `token`, a multiple of kErrorSampleTokens, of the `planes`
// segment `segment`, which was made of `source`, and compares. On the worker.
ReconstructionError MeasureReconstruction(Backend* backend, const SealBlocks& source,
                                          const LayerCalibration* calibration,
                                          const std::byte* segment, int token);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_RECONSTRUCTION_ERROR_H_
