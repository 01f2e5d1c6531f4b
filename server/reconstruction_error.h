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

// Decodes block `block` of the `planes` segment `segment`, which was made of `source`, and
// compares. On the worker; a block says enough, and a whole segment would take longer than encoding
// it.
ReconstructionError MeasureReconstruction(Backend* backend, const SealBlocks& source,
                                          const LayerCalibration* calibration,
                                          const std::byte* segment, size_t block);

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_RECONSTRUCTION_ERROR_H_
