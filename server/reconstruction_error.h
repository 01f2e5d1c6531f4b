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

// Decodes the `planes` segment `segment`, which was made of `source`, and compares. On the worker;
// takes a few megabytes of host memory for a segment of 1024 tokens and 8 heads.
ReconstructionError MeasureReconstruction(Backend* backend, const SealBlocks& source,
                                          const LayerCalibration* calibration,
                                          const std::byte* segment);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_RECONSTRUCTION_ERROR_H_
