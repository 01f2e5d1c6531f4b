#include <algorithm>
#include <cstring>
#include <utility>

#include "gpu/packkv/body.h"
#include "gpu/packkv/body_layout.h"
#include "gpu/packkv/normalize.h"
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

// A block's table: steps of every set, then the order.
void WriteTable(const Block& block, std::byte* to) {
  for (size_t set = 0; set < block.k.steps.size(); ++set) {
    const Steps& k = block.k.steps[set];
    const Steps& v = block.v.steps[set];
    StepTable table;
    for (size_t place = 0; place < kBlockTokens; ++place) {
      const size_t token = block.order[place];
      table.k_scale[place] = k.scale[token];
      table.v_scale[place] = v.scale[token];
      table.k_zero[place] = k.zero[token];
      table.v_zero[place] = v.zero[token];
    }
    std::memcpy(to, &table, sizeof(table));
    to += sizeof(table);
  }
  std::memcpy(to, block.order.data(), block.order.size());
}

// [kv_head][K, V][centre, scale][channel].
void WriteChannels(const ChannelTable& k, const ChannelTable& v, size_t head_dim, std::byte* to) {
  for (size_t at = 0; at < k.centre.size(); at += head_dim) {
    for (const std::vector<uint16_t>* part : {&k.centre, &k.scale, &v.centre, &v.scale}) {
      std::memcpy(to, part->data() + at, head_dim * sizeof(uint16_t));
      to += head_dim * sizeof(uint16_t);
    }
  }
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

// All tiles, and the directory's entries from `entry` on.
void AppendTiles(const std::vector<Block>& blocks, const LayerShape& shape,
                 const BodyHeader& header, size_t entry, std::vector<std::byte>* body) {
  const RoundShape k_shape{header.pack_tokens, shape.head_dim, header.k_bits};
  const RoundShape v_shape{header.pack_tokens, shape.head_dim, header.v_bits};
  const size_t rounds = static_cast<size_t>(kBlockTokens / header.pack_tokens);
  for (const Block& block : blocks) {
    for (int head = 0; head < shape.kv_heads; ++head) {
      const size_t k_units = entry + 2 * sizeof(uint32_t);
      uint32_t begins[2];
      begins[0] = static_cast<uint32_t>(body->size() / kUnitBytes);
      AppendTile(k_shape, block.k, block.order, head, body, k_units);
      begins[1] = static_cast<uint32_t>(body->size() / kUnitBytes);
      AppendTile(v_shape, block.v, block.order, head, body, k_units + rounds * sizeof(uint16_t));
      std::memcpy(body->data() + entry, begins, sizeof(begins));
      entry += EntryBytes(header.pack_tokens);
    }
  }
}

}  // namespace

absl::optional<std::vector<std::byte>> EncodeBody(const SealBlocks& source, const Options& options,
                                                  absl::Span<const float> k_weights) {
  const size_t head_dim = static_cast<size_t>(source.shape.head_dim);
  BlockValues k;
  BlockValues v;
  for (size_t b = 0; b < source.blocks.size(); ++b) {
    k.push_back(ValuesOf(source, b, Tensor::kKey));
    v.push_back(ValuesOf(source, b, Tensor::kValue));
  }
  absl::optional<ChannelTable> k_channels;
  absl::optional<ChannelTable> v_channels;
  if (options.normalize) {
    k_channels = MeasureChannels(k, head_dim, k_weights);
    v_channels = MeasureChannels(v, head_dim, {});
    if (!k_channels.has_value() || !v_channels.has_value()) return absl::nullopt;
    Normalize(*k_channels, &k);
    Normalize(*v_channels, &v);
  }
  const auto quantize = [&](const std::vector<float>& values, float relative_scale) {
    return options.normalize ? QuantizeNormalized(values, head_dim, relative_scale)
                             : Quantize(values, relative_scale);
  };
  std::vector<Block> blocks;
  for (size_t b = 0; b < source.blocks.size(); ++b) {
    Block block;
    block.k = quantize(k[b], options.k_relative_scale);
    block.v = quantize(v[b], options.v_relative_scale);
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
  header.form = static_cast<uint8_t>(options.normalize ? Form::kNormalized : Form::kTokens);

  const BodyLayout layout =
      BodyLayoutOf(source.shape.kv_heads, source.shape.head_dim, static_cast<int>(blocks.size()),
                   options.pack_tokens, options.normalize);
  std::vector<std::byte> body(layout.tiles_at());
  std::memcpy(body.data(), &header, sizeof(header));
  if (options.normalize) {
    WriteChannels(*k_channels, *v_channels, head_dim, body.data() + sizeof(header));
  }
  for (size_t b = 0; b < blocks.size(); ++b) {
    WriteTable(blocks[b], body.data() + layout.tables_at() + b * layout.table_bytes());
  }
  AppendTiles(blocks, source.shape, header, layout.directory_at(), &body);
  return body;
}

}  // namespace kvdepot::packkv
