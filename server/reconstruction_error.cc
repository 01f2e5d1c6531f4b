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

Values DecodeRuns(Backend* backend, const SealBlocks& source, const LayerCalibration* calibration,
                  const std::vector<TokenRun>& runs) {
  Values values(source.shape.row_values() * source.blocks.size() * kBlockTokens);
  backend->Decode(source.shape, source.dtype, calibration, runs, DType::kFp32,
                  reinterpret_cast<std::byte*>(values.k.data()),
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
                                          const std::byte* segment) {
  std::vector<TokenRun> blocks;
  for (const std::byte* block : source.blocks) {
    blocks.push_back({TokenRun::Form::kExact, block, kBlockTokens, 0, kBlockTokens});
  }
  const int tokens = static_cast<int>(source.blocks.size()) * kBlockTokens;
  const Values exact = DecodeRuns(backend, source, nullptr, blocks);
  const Values decoded = DecodeRuns(backend, source, calibration,
                                    {{TokenRun::Form::kPlanes, segment, tokens, 0, tokens}});
  return {RelativeError(exact.k, decoded.k), RelativeError(exact.v, decoded.v)};
}

}  // namespace kvdepot
