// One layer's tokens laid out as a session lays them out, made straight on a backend: sinks,
// segments, tail.
#ifndef KVDEPOT_TESTS_GPU_STORED_LAYER_H_
#define KVDEPOT_TESTS_GPU_STORED_LAYER_H_

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "gpu/backend.h"
#include "gpu/check.h"
#include "gpu/numeric.h"
#include "gpu/planes/pattern.h"

namespace kvdepot {

inline std::vector<std::byte> ToBytes(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * DTypeBytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kFp32) {
      memcpy(bytes.data() + 4 * i, &values[i], 4);
    } else {
      const uint16_t bits = dtype == DType::kBf16 ? FloatToBf16(values[i]) : FloatToFp16(values[i]);
      memcpy(bytes.data() + 2 * i, &bits, 2);
    }
  }
  return bytes;
}

inline std::vector<float> ToFloats(const std::vector<std::byte>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / DTypeBytes(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kFp32) {
      memcpy(&values[i], bytes.data() + 4 * i, 4);
    } else {
      uint16_t bits;
      memcpy(&bits, bytes.data() + 2 * i, 2);
      values[i] = dtype == DType::kBf16 ? Bf16ToFloat(bits) : Fp16ToFloat(bits);
    }
  }
  return values;
}

// Shuffled channel orders and random patterns for every head.
inline LayerCalibration RandomCalibration(const LayerShape& shape, std::mt19937& random) {
  LayerCalibration calibration;
  for (int head = 0; head < shape.kv_heads; ++head) {
    HeadLayout layout;
    for (TensorLayout* tensor : {&layout.k, &layout.v}) {
      tensor->order.resize(static_cast<size_t>(shape.head_dim));
      std::iota(tensor->order.begin(), tensor->order.end(), static_cast<uint8_t>(0));
      std::shuffle(tensor->order.begin(), tensor->order.end(), random);
      tensor->pattern = static_cast<uint8_t>(
          random() % static_cast<unsigned>(planes::PatternCount(shape.head_dim)));
    }
    calibration.heads.push_back(layout);
  }
  return calibration;
}

// Encode of a single job. False: the values leave the codec's range.
inline bool EncodeOne(Backend& backend, const SealBlocks& source, Codec codec,
                      const LayerCalibration* calibration, std::byte* segment,
                      const packkv::Options& packkv = {}) {
  EncodeJob job;
  job.source = source;
  job.codec = codec;
  job.calibration = codec == Codec::kRaw ? nullptr : calibration;
  job.packkv = packkv;
  job.segment = segment;
  backend.Encode({&job, 1});
  return job.in_range;
}

class StoredLayer {
 public:
  StoredLayer(Backend& backend, const LayerShape& shape, DType dtype, Codec codec,
              const LayerCalibration* calibration, const packkv::Options& packkv = {})
      : backend_(backend),
        shape_(shape),
        dtype_(dtype),
        codec_(codec),
        calibration_(calibration),
        packkv_(packkv) {}

  // Stores `tokens`, the first at position 0: 16 exact ones, segments of at most `segment_tokens`
  // as long as `tail_min` tokens remain behind them, and the rest exact.
  void Store(const DenseTokens& tokens, int segment_tokens, int tail_min) {
    int position = 0;
    AddExact(tokens, position, std::min(kSinkTokens, tokens.count), kSinkTokens);
    position = std::min(kSinkTokens, tokens.count);
    while (tokens.count - position - tail_min >= kBlockTokens) {
      const int whole = (tokens.count - position - tail_min) / kBlockTokens * kBlockTokens;
      const int count = std::min(whole, segment_tokens);
      AddSegment(tokens, position, count);
      position += count;
    }
    for (; position < tokens.count; position += kBlockTokens) {
      AddExact(tokens, position, std::min(kBlockTokens, tokens.count - position), kBlockTokens);
    }
  }

  const std::vector<TokenRun>& runs() const { return runs_; }
  int raw_fallbacks() const { return raw_fallbacks_; }

  // What is stored, decoded to fp32: [token][kv_head][channel].
  void Values(std::vector<float>& k, std::vector<float>& v) const {
    size_t tokens = 0;
    for (const TokenRun& run : runs_) tokens += static_cast<size_t>(run.count);
    k.resize(tokens * shape_.row_values());
    v.resize(tokens * shape_.row_values());
    backend_.Decode(shape_, dtype_, calibration_, runs_, DType::kFp32, MemorySpace::kHost,
                    reinterpret_cast<std::byte*>(k.data()), reinterpret_cast<std::byte*>(v.data()));
  }

 private:
  std::byte* Allocate(size_t bytes) {
    auto extent = backend_.Allocate("tenant", ExtentUse::kTail, bytes);
    KVDEPOT_CHECK(extent.ok());
    extents_.push_back(*std::move(extent));
    return extents_.back()->data();
  }

  void AddExact(const DenseTokens& tokens, int from, int count, int capacity) {
    std::byte* extent = Allocate(ExactExtentBytes(shape_, dtype_, capacity));
    backend_.WriteTokens(shape_, dtype_, tokens, from, count, extent, capacity, 0);
    runs_.push_back({TokenRun::Form::kExact, extent, capacity, 0, count});
  }

  void AddSegment(const DenseTokens& tokens, int from, int count) {
    std::vector<const std::byte*> blocks;
    for (int token = from; token < from + count; token += kBlockTokens) {
      std::byte* extent = Allocate(ExactExtentBytes(shape_, dtype_, kBlockTokens));
      backend_.WriteTokens(shape_, dtype_, tokens, token, kBlockTokens, extent, kBlockTokens, 0);
      blocks.push_back(extent);
    }
    const SealBlocks source{shape_, dtype_, blocks};
    Codec codec = codec_;
    std::byte* segment =
        Allocate(SegmentBytes(shape_, dtype_, codec, calibration_, count, packkv_));
    if (!EncodeOne(backend_, source, codec, calibration_, segment, packkv_)) {
      ++raw_fallbacks_;
      codec = Codec::kRaw;
      segment = Allocate(SegmentBytes(shape_, dtype_, Codec::kRaw, nullptr, count));
      KVDEPOT_CHECK(EncodeOne(backend_, source, Codec::kRaw, nullptr, segment));
    }
    runs_.push_back({SegmentForm(codec), segment, count, 0, count});
  }

  Backend& backend_;
  LayerShape shape_;
  DType dtype_;
  Codec codec_;
  const LayerCalibration* calibration_;
  const packkv::Options packkv_;
  std::vector<std::unique_ptr<Extent>> extents_;
  std::vector<TokenRun> runs_;
  int raw_fallbacks_ = 0;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_STORED_LAYER_H_
