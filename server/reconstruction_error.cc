#include "server/reconstruction_error.h"

#include <cmath>
#include <vector>

#include "gpu/token_run.h"

namespace kvdepot {
namespace {

struct Values {
  explicit Values(size_t count) : k(count), v(count) {}
  std::vector<float> k;
  std::vector<float> v;
};

Values DecodeRun(Backend* backend, const SealBlocks& source, const LayerCalibration* calibration,
                 const TokenRun& run) {
  Values values(source.shape.row_values() * static_cast<size_t>(run.count));
  backend->Decode(source.shape, source.dtype, calibration, {&run, 1}, DType::kFp32,
                  MemorySpace::kHost, reinterpret_cast<std::byte*>(values.k.data()),
                  reinterpret_cast<std::byte*>(values.v.data()));
  return values;
}

double RelativeError(const std::vector<float>& exact, const std::vector<float>& decoded) {
  double difference = 0;
  double norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double step = static_cast<double>(decoded[i]) - exact[i];
    difference += step * step;
    norm += static_cast<double>(exact[i]) * exact[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

}  // namespace

ReconstructionError MeasureReconstruction(Backend* backend, const SealBlocks& source,
                                          const LayerCalibration* calibration,
                                          const std::byte* segment, int token) {
  const int tokens = static_cast<int>(source.blocks.size()) * kBlockTokens;
  const std::byte* const block = source.blocks[static_cast<size_t>(token / kBlockTokens)];
  const Values exact = DecodeRun(
      backend, source, nullptr,
      {TokenRun::Form::kExact, block, kBlockTokens, token % kBlockTokens, kErrorSampleTokens});
  const Values decoded =
      DecodeRun(backend, source, calibration,
                {TokenRun::Form::kPlanes, segment, tokens, token, kErrorSampleTokens});
  return {RelativeError(exact.k, decoded.k), RelativeError(exact.v, decoded.v)};
}

}  // namespace kvdepot
