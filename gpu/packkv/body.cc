#include "gpu/packkv/body.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "gpu/check.h"
#include "gpu/numeric.h"
#include "gpu/packkv/quantize.h"
#include "gpu/packkv/repack.h"
#include "gpu/scalar.h"

namespace kvdepot::packkv {
namespace {

// K or V of an exact extent as [token][kv_head][channel].
std::vector<float> ValuesOf(const SealBlocks& source, size_t block, Tensor tensor) {
  const size_t heads = static_cast<size_t>(source.shape.kv_heads);
  const size_t dim = static_cast<size_t>(source.shape.head_dim);
  const size_t value_bytes = DTypeBytes(source.dtype);
  std::vector<float> values(kBlockTokens * heads * dim);
  for (size_t h = 0; h < heads; ++h) {
    const size_t first = (2 * h + (tensor == Tensor::kValue ? 1 : 0)) * kBlockTokens * dim;
    const std::byte* from = source.blocks[block] + first * value_bytes;
    for (size_t t = 0; t < kBlockTokens; ++t) {
      for (size_t c = 0; c < dim; ++c) {
        values[(t * heads + h) * dim + c] =
            LoadScalar(from + (t * dim + c) * value_bytes, source.dtype);
      }
    }
  }
  return values;
}

struct Block {
  QuantizedBlock k;
  QuantizedBlock v;
  TokenOrder order;
};

int CodeBits(const std::vector<Block>& blocks, QuantizedBlock Block::*tensor) {
  unsigned most = 0;
  for (const Block& block : blocks) {
    const std::vector<uint8_t>& codes = (block.*tensor).codes;
    most = std::max<unsigned>(most, *std::max_element(codes.begin(), codes.end()));
  }
  return most == 0 ? 0 : 32 - __builtin_clz(most);
}

TokenTable TableOf(const Block& block) {
  TokenTable table;
  for (size_t place = 0; place < kBlockTokens; ++place) {
    const size_t token = block.order[place];
    table.k_scale[place] = block.k.scale[token];
    table.v_scale[place] = block.v.scale[token];
    table.k_zero[place] = block.k.zero[token];
    table.v_zero[place] = block.v.zero[token];
    table.order[place] = block.order[place];
  }
  return table;
}

// Appends one head's tile; the units of its rounds go to `units_at` and behind it.
void AppendTile(const RoundShape& shape, const QuantizedBlock& block, const TokenOrder& order,
                int head, std::vector<std::byte>* body, size_t units_at) {
  const size_t dim = static_cast<size_t>(shape.head_dim);
  std::vector<uint8_t> codes(shape.code_count());
  for (int place = 0; place < kBlockTokens; place += shape.pack_tokens) {
    for (int i = 0; i < shape.pack_tokens; ++i) {
      const uint8_t* const row =
          block.row(order[static_cast<size_t>(place) + static_cast<size_t>(i)]);
      std::copy_n(row + static_cast<size_t>(head) * dim, dim,
                  codes.begin() + static_cast<ptrdiff_t>(i) * shape.head_dim);
    }
    const size_t begin = body->size();
    AppendRound(shape, codes, body);
    const uint16_t units = static_cast<uint16_t>((body->size() - begin) / kUnitBytes);
    std::memcpy(body->data() + units_at, &units, sizeof(units));
    units_at += sizeof(units);
  }
}

absl::Status Damaged(absl::string_view field, uint64_t value, absl::string_view expected) {
  return absl::DataLossError(
      absl::StrCat("segment ", field, " is ", value, ", expected ", expected));
}

}  // namespace

size_t BodyBytesMax(const LayerShape& shape, const Options& options, int blocks) {
  const auto tile_bytes = [&](float relative_scale) {
    const RoundShape round{options.pack_tokens, shape.head_dim, CodeBitsMax(relative_scale)};
    return RoundBytesMax(round) * static_cast<size_t>(kBlockTokens / options.pack_tokens);
  };
  return TilesAt(shape.kv_heads, blocks, options.pack_tokens) +
         static_cast<size_t>(blocks) * static_cast<size_t>(shape.kv_heads) *
             (tile_bytes(options.k_relative_scale) + tile_bytes(options.v_relative_scale));
}

absl::optional<std::vector<std::byte>> EncodeBody(const SealBlocks& source,
                                                  const Options& options) {
  std::vector<Block> blocks;
  for (size_t b = 0; b < source.blocks.size(); ++b) {
    Block block;
    block.k = Quantize(ValuesOf(source, b, Tensor::kKey), options.k_relative_scale);
    block.v = Quantize(ValuesOf(source, b, Tensor::kValue), options.v_relative_scale);
    if (!block.k.in_range || !block.v.in_range) return absl::nullopt;
    block.order = OrderOf(options.repacking, options.pack_tokens, block.k, block.v);
    blocks.push_back(std::move(block));
  }
  BodyHeader header = {};
  header.k_relative_scale = options.k_relative_scale;
  header.v_relative_scale = options.v_relative_scale;
  header.pack_tokens = static_cast<uint8_t>(options.pack_tokens);
  header.repacking = static_cast<uint8_t>(options.repacking);
  header.k_bits = static_cast<uint8_t>(CodeBits(blocks, &Block::k));
  header.v_bits = static_cast<uint8_t>(CodeBits(blocks, &Block::v));

  const int block_count = static_cast<int>(blocks.size());
  std::vector<std::byte> body(TilesAt(source.shape.kv_heads, block_count, options.pack_tokens));
  std::memcpy(body.data(), &header, sizeof(header));
  const RoundShape k_shape{options.pack_tokens, source.shape.head_dim, header.k_bits};
  const RoundShape v_shape{options.pack_tokens, source.shape.head_dim, header.v_bits};
  size_t entry = DirectoryAt(block_count);
  for (size_t b = 0; b < blocks.size(); ++b) {
    const TokenTable table = TableOf(blocks[b]);
    std::memcpy(body.data() + sizeof(header) + b * sizeof(table), &table, sizeof(table));
    for (int head = 0; head < source.shape.kv_heads; ++head) {
      const size_t k_units = entry + 2 * sizeof(uint32_t);
      const size_t v_units =
          k_units + sizeof(uint16_t) * static_cast<size_t>(kBlockTokens / options.pack_tokens);
      uint32_t begins[2];
      begins[0] = static_cast<uint32_t>(body.size() / kUnitBytes);
      AppendTile(k_shape, blocks[b].k, blocks[b].order, head, &body, k_units);
      begins[1] = static_cast<uint32_t>(body.size() / kUnitBytes);
      AppendTile(v_shape, blocks[b].v, blocks[b].order, head, &body, v_units);
      std::memcpy(body.data() + entry, begins, sizeof(begins));
      entry += EntryBytes(options.pack_tokens);
    }
  }
  return body;
}

absl::StatusOr<BodyView> BodyView::Validate(absl::Span<const std::byte> body, int kv_heads,
                                            int head_dim, int blocks) {
  if (body.size() < DirectoryAt(blocks)) {
    return Damaged("length", body.size(), absl::StrCat("at least ", DirectoryAt(blocks)));
  }
  const BodyView view(body.data(), kv_heads, head_dim, blocks);
  absl::Status status = view.CheckHeader();
  if (!status.ok()) return status;
  // Tiles follow each other without gaps, so that no two share bytes.
  size_t at = TilesAt(kv_heads, blocks, view.header().pack_tokens);
  if (body.size() < at) return Damaged("length", body.size(), absl::StrCat("at least ", at));
  for (int block = 0; block < blocks && status.ok(); ++block) {
    status = view.CheckOrder(block);
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
  return absl::OkStatus();
}

absl::Status BodyView::CheckOrder(int block) const {
  uint64_t seen = 0;
  for (const uint8_t token : tokens(block).order) {
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

const TokenTable& BodyView::tokens(int block) const {
  return reinterpret_cast<const TokenTable*>(body_ + sizeof(BodyHeader))[block];
}

RoundShape BodyView::round_shape(Tensor tensor) const {
  return {header().pack_tokens, head_dim_,
          tensor == Tensor::kKey ? header().k_bits : header().v_bits};
}

const std::byte* BodyView::entry(int block, int head) const {
  const size_t index =
      static_cast<size_t>(block) * static_cast<size_t>(kv_heads_) + static_cast<size_t>(head);
  return body_ + DirectoryAt(blocks_) + index * EntryBytes(header().pack_tokens);
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
    const TokenTable& table = tokens(block);
    for (int place = 0; place < kBlockTokens; ++place) {
      const int in_round = place % shape.pack_tokens;
      if (in_round == 0) {
        ReadRound(shape, round(block, head, tensor, place / shape.pack_tokens).data(),
                  absl::MakeSpan(codes));
      }
      const int token = block * kBlockTokens + table.order[place] - first;
      if (token < 0 || token >= count) continue;
      const bool is_key = tensor == Tensor::kKey;
      const int zero = is_key ? table.k_zero[place] : table.v_zero[place];
      const float scale = Bf16ToFloat(is_key ? table.k_scale[place] : table.v_scale[place]);
      for (size_t c = 0; c < dim; ++c) {
        values[static_cast<size_t>(token) * dim + c] =
            static_cast<float>(codes[static_cast<size_t>(in_round) * dim + c] + zero) * scale;
      }
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
