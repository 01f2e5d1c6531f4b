// The body of a `packkv` segment: all of it behind the segment's header (gpu/FORMAT.md, "packkv").
//
// Its length is known once it is encoded; BodyBytesMax bounds it before.
#ifndef KVDEPOT_GPU_PACKKV_BODY_H_
#define KVDEPOT_GPU_PACKKV_BODY_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"
#include "gpu/packkv/format.h"
#include "gpu/packkv/options.h"
#include "gpu/packkv/round.h"
#include "gpu/seal_blocks.h"

namespace kvdepot::packkv {

enum class Tensor { kKey, kValue };

size_t BodyBytesMax(const LayerShape& shape, const Options& options, int blocks);

// None: the values leave the codec's range, and the segment is to be raw. `options` are valid.
// `k_weights`, [kv_head][channel] or empty: how much an error in a channel of K costs; with
// `normalize` alone.
absl::optional<std::vector<std::byte>> EncodeBody(const SealBlocks& source, const Options& options,
                                                  absl::Span<const float> k_weights = {});

// A body and the geometry that its segment's header says. Owns nothing.
class BodyView {
 public:
  // DATA_LOSS naming what is wrong: then no reader may see it. `body` is 4-byte aligned.
  static absl::StatusOr<BodyView> Validate(absl::Span<const std::byte> body, int kv_heads,
                                           int head_dim, int blocks);
  // Requires such a body, one that was validated or that this process encoded.
  static BodyView Of(const std::byte* body, int kv_heads, int head_dim, int blocks) {
    return BodyView(body, kv_heads, head_dim, blocks);
  }

  const BodyHeader& header() const { return *reinterpret_cast<const BodyHeader*>(body_); }
  bool is_normalized() const { return header().form == static_cast<uint8_t>(Form::kNormalized); }
  // kTokens only.
  const TokenTable& tokens(int block) const;
  // With kTokens the same for all heads.
  const StepTable& steps(int block, int head) const;
  // The token at each of a block's kBlockTokens places.
  const uint8_t* order(int block) const;
  // kNormalized only, in bf16: head_dim centres, then head_dim scales.
  const uint16_t* channels(int head, Tensor tensor) const;
  RoundShape round_shape(Tensor tensor) const;
  int rounds() const { return kBlockTokens / header().pack_tokens; }
  // Of tokens at places round * pack_tokens and following.
  absl::Span<const std::byte> round(int block, int head, Tensor tensor, int round) const;

  // Values of token `first` of the segment and those behind it, in their true order:
  // [token][channel] of one head.
  void Decode(int head, Tensor tensor, int first, absl::Span<float> values) const;

  // Bits a value of K or of V as the paper counts them: widths, and for each pack a minimum and a
  // width, without scales, orders, directory and padding.
  double PaperBits(Tensor tensor) const;

 private:
  BodyView(const std::byte* body, int kv_heads, int head_dim, int blocks)
      : body_(body), kv_heads_(kv_heads), head_dim_(head_dim), blocks_(blocks) {}

  absl::Status CheckHeader() const;
  absl::Status CheckChannels() const;
  absl::Status CheckSteps(int block) const;
  absl::Status CheckOrder(int block) const;
  absl::Status CheckTile(int block, int head, Tensor tensor, size_t body_bytes, size_t* at) const;
  const std::byte* table(int block) const;
  const std::byte* entry(int block, int head) const;

  const std::byte* body_;
  int kv_heads_;
  int head_dim_;
  int blocks_;
};

}  // namespace kvdepot::packkv

#endif  // KVDEPOT_GPU_PACKKV_BODY_H_
