#include "gpu/packkv/body.h"

#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "gpu/numeric.h"
#include "gpu/packkv/body_layout.h"
#include "gpu/packkv/quantize.h"

namespace kvdepot::packkv {
namespace {

// `channels` are `dim` centres and `dim` scales.
void Denormalize(const uint16_t* channels, size_t dim, float* row) {
  for (size_t c = 0; c < dim; ++c) {
    row[c] = row[c] * Bf16ToFloat(channels[dim + c]) + Bf16ToFloat(channels[c]);
  }
}

absl::Status Damaged(absl::string_view field, uint64_t value, absl::string_view expected) {
  return absl::DataLossError(
      absl::StrCat("segment ", field, " is ", value, ", expected ", expected));
}

constexpr uint16_t kBf16Infinity = 0x7F80;
constexpr absl::string_view kStepLimits = "a positive normal bf16";

// As encoders make them: 2^-126 at least, and finite.
bool IsStep(uint16_t bf16) { return bf16 >= 0x0080 && bf16 < kBf16Infinity; }

}  // namespace

size_t BodyBytesMax(const LayerShape& shape, const Options& options, int blocks) {
  const auto tile_bytes = [&](float relative_scale) {
    // A range is at most so many root mean squares.
    if (options.normalize) relative_scale /= std::sqrt(2 * static_cast<float>(shape.head_dim));
    const RoundShape round{options.pack_tokens, shape.head_dim, CodeBitsMax(relative_scale)};
    return RoundBytesMax(round) * static_cast<size_t>(kBlockTokens / options.pack_tokens);
  };
  const BodyLayout layout =
      BodyLayoutOf(shape.kv_heads, shape.head_dim, blocks, options.pack_tokens, options.normalize);
  return layout.tiles_at() +
         layout.blocks * layout.kv_heads *
             (tile_bytes(options.k_relative_scale) + tile_bytes(options.v_relative_scale));
}

absl::StatusOr<BodyView> BodyView::Validate(absl::Span<const std::byte> body, int kv_heads,
                                            int head_dim, int blocks) {
  if (body.size() < sizeof(BodyHeader)) {
    return Damaged("length", body.size(), absl::StrCat("at least ", sizeof(BodyHeader)));
  }
  const BodyView view(body.data(), kv_heads, head_dim, blocks);
  absl::Status status = view.CheckHeader();
  if (!status.ok()) return status;
  // Tiles follow each other without gaps, so that no two share bytes.
  size_t at =
      BodyLayoutOf(kv_heads, head_dim, blocks, view.header().pack_tokens, view.is_normalized())
          .tiles_at();
  if (body.size() < at) return Damaged("length", body.size(), absl::StrCat("at least ", at));
  status = view.CheckChannels();
  for (int block = 0; block < blocks && status.ok(); ++block) {
    status = view.CheckSteps(block);
    if (status.ok()) status = view.CheckOrder(block);
    for (int head = 0; head < kv_heads; ++head) {
      for (const Tensor tensor : {Tensor::kKey, Tensor::kValue}) {
        if (status.ok()) status = view.CheckTile(block, head, tensor, body.size(), &at);
      }
    }
  }
  if (status.ok() && at != body.size()) status = Damaged("length", body.size(), absl::StrCat(at));
  if (!status.ok()) return status;
  return view;
}

absl::Status BodyView::CheckHeader() const {
  const int pack = header().pack_tokens;
  if (pack != 4 && pack != 8 && pack != 16) {
    return Damaged("pack_tokens", static_cast<uint64_t>(pack), "4, 8 or 16");
  }
  if (header().k_bits > 8) return Damaged("k_bits", header().k_bits, "at most 8");
  if (header().v_bits > 8) return Damaged("v_bits", header().v_bits, "at most 8");
  if (header().form > static_cast<uint8_t>(Form::kNormalized)) {
    return Damaged("form", header().form, "0 (tokens) or 1 (normalized)");
  }
  if (header().repacking < 1 || header().repacking > 3)
    return Damaged("repacking", header().repacking, "1 (none), 2 (median) or 3 (greedy)");
  for (const uint8_t byte : header().zero)
    if (byte != 0) return Damaged("reserved byte", byte, "0");
  return absl::OkStatus();
}

absl::Status BodyView::CheckChannels() const {
  for (int head = 0; is_normalized() && head < kv_heads_; ++head) {
    for (const Tensor tensor : {Tensor::kKey, Tensor::kValue}) {
      const size_t dim = static_cast<size_t>(head_dim_);
      const absl::Span<const uint16_t> both = absl::MakeConstSpan(channels(head, tensor), 2 * dim);
      for (const uint16_t centre : both.first(dim)) {
        if ((centre & kBf16Infinity) == kBf16Infinity)
          return Damaged(absl::StrCat("centre of head ", head), centre, "finite");
      }
      for (const uint16_t scale : both.subspan(dim)) {
        if (!IsStep(scale))
          return Damaged(absl::StrCat("scale of head ", head), scale, kStepLimits);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status BodyView::CheckSteps(int block) const {
  for (int head = 0; head < (is_normalized() ? kv_heads_ : 1); ++head) {
    const StepTable& table = steps(block, head);
    for (const auto* const scales : {&table.k_scale, &table.v_scale}) {
      for (const uint16_t scale : *scales) {
        if (!IsStep(scale))
          return Damaged(absl::StrCat("step of block ", block), scale, kStepLimits);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status BodyView::CheckOrder(int block) const {
  uint64_t seen = 0;
  for (const uint8_t token : absl::MakeConstSpan(order(block), kBlockTokens)) {
    if (token >= kBlockTokens || (seen >> token & 1) != 0) {
      return Damaged(absl::StrCat("order of block ", block), token, "each of 0..63 once");
    }
    seen |= uint64_t{1} << token;
  }
  return absl::OkStatus();
}

absl::Status BodyView::CheckTile(int block, int head, Tensor tensor, size_t body_bytes,
                                 size_t* at) const {
  const absl::Span<const std::byte> first = round(block, head, tensor, 0);
  const size_t begin = static_cast<size_t>(first.data() - body_);
  const auto name = [&](absl::string_view what) {
    return absl::StrCat(what, " of block ", block, ", head ", head,
                        tensor == Tensor::kKey ? ", K" : ", V");
  };
  if (begin != *at) return Damaged(name("offset"), begin, absl::StrCat(*at));
  for (int r = 0; r < rounds(); ++r) {
    const size_t said = round(block, head, tensor, r).size();
    if (said > body_bytes - *at) {
      return Damaged(name("round length"), said, absl::StrCat("at most ", body_bytes - *at));
    }
    const absl::StatusOr<size_t> bytes =
        RoundBytes(round_shape(tensor), absl::MakeConstSpan(body_ + *at, said));
    if (!bytes.ok()) return bytes.status();
    if (*bytes != said) return Damaged(name("round length"), said, absl::StrCat(*bytes));
    *at += said;
  }
  return absl::OkStatus();
}

const std::byte* BodyView::table(int block) const {
  const BodyLayout layout =
      BodyLayoutOf(kv_heads_, head_dim_, blocks_, header().pack_tokens, is_normalized());
  return body_ + layout.tables_at() + static_cast<size_t>(block) * layout.table_bytes();
}

const TokenTable& BodyView::tokens(int block) const {
  return *reinterpret_cast<const TokenTable*>(table(block));
}

const StepTable& BodyView::steps(int block, int head) const {
  return reinterpret_cast<const StepTable*>(table(block))[is_normalized() ? head : 0];
}

const uint8_t* BodyView::order(int block) const {
  const size_t steps = is_normalized() ? static_cast<size_t>(kv_heads_) : 1;
  return reinterpret_cast<const uint8_t*>(table(block)) + steps * sizeof(StepTable);
}

const uint16_t* BodyView::channels(int head, Tensor tensor) const {
  const int part = 2 * head + (tensor == Tensor::kKey ? 0 : 1);
  return reinterpret_cast<const uint16_t*>(body_ + sizeof(BodyHeader)) +
         2 * static_cast<size_t>(part) * static_cast<size_t>(head_dim_);
}

RoundShape BodyView::round_shape(Tensor tensor) const {
  return {header().pack_tokens, head_dim_,
          tensor == Tensor::kKey ? header().k_bits : header().v_bits};
}

const std::byte* BodyView::entry(int block, int head) const {
  const size_t index =
      static_cast<size_t>(block) * static_cast<size_t>(kv_heads_) + static_cast<size_t>(head);
  const BodyLayout layout =
      BodyLayoutOf(kv_heads_, head_dim_, blocks_, header().pack_tokens, is_normalized());
  return body_ + layout.directory_at() + index * EntryBytes(header().pack_tokens);
}

absl::Span<const std::byte> BodyView::round(int block, int head, Tensor tensor, int round) const {
  const std::byte* const from = entry(block, head);
  uint32_t begins[2];
  std::memcpy(begins, from, sizeof(begins));
  const size_t which = tensor == Tensor::kKey ? 0 : 1;
  const std::byte* units =
      from + sizeof(begins) + which * sizeof(uint16_t) * static_cast<size_t>(rounds());
  size_t at = begins[which];
  uint16_t size = 0;
  for (int r = 0; r <= round; ++r) {
    at += size;
    std::memcpy(&size, units, sizeof(size));
    units += sizeof(size);
  }
  return {body_ + at * kUnitBytes, size * kUnitBytes};
}

void BodyView::Decode(int head, Tensor tensor, int first, absl::Span<float> values) const {
  const size_t dim = static_cast<size_t>(head_dim_);
  const int count = static_cast<int>(values.size() / dim);
  const RoundShape shape = round_shape(tensor);
  std::vector<uint8_t> codes(shape.code_count());
  for (int block = first / kBlockTokens; block * kBlockTokens < first + count; ++block) {
    const StepTable& table = steps(block, head);
    const uint8_t* const token_at = order(block);
    for (int place = 0; place < kBlockTokens; ++place) {
      const int in_round = place % shape.pack_tokens;
      if (in_round == 0) {
        ReadRound(shape, round(block, head, tensor, place / shape.pack_tokens).data(),
                  absl::MakeSpan(codes));
      }
      const int token = block * kBlockTokens + token_at[place] - first;
      if (token < 0 || token >= count) continue;
      const bool is_key = tensor == Tensor::kKey;
      const int zero = is_key ? table.k_zero[place] : table.v_zero[place];
      const float scale = Bf16ToFloat(is_key ? table.k_scale[place] : table.v_scale[place]);
      float* const row = &values[static_cast<size_t>(token) * dim];
      for (size_t c = 0; c < dim; ++c) {
        row[c] = static_cast<float>(codes[static_cast<size_t>(in_round) * dim + c] + zero) * scale;
      }
      if (is_normalized()) Denormalize(channels(head, tensor), dim, row);
    }
  }
}

double BodyView::PaperBits(Tensor tensor) const {
  const RoundShape shape = round_shape(tensor);
  uint64_t widths = 0;
  for (int block = 0; block < blocks_; ++block) {
    for (int head = 0; head < kv_heads_; ++head) {
      for (int r = 0; r < rounds(); ++r) {
        widths += static_cast<uint64_t>(*SumOfWidths(shape, round(block, head, tensor, r)));
      }
    }
  }
  const double packs = static_cast<double>(blocks_) * kv_heads_ * rounds() * head_dim_;
  return static_cast<double>(widths) / packs +
         static_cast<double>(shape.code_bits + WidthCodeBits(shape.code_bits)) / shape.pack_tokens;
}

}  // namespace kvdepot::packkv
