#include "gpu/packkv/repack.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gpu/check.h"

namespace kvdepot::packkv {
namespace {

TokenOrder InOrder() {
  TokenOrder order;
  std::iota(order.begin(), order.end(), uint8_t{0});
  return order;
}

// By the median of the codes of V, largest first. Of an even number the lower one of the two.
TokenOrder ByMedian(const QuantizedBlock& v) {
  std::array<uint8_t, kBlockTokens> medians = {};
  std::vector<uint8_t> codes(v.row_values);
  for (int token = 0; token < kBlockTokens; ++token) {
    std::copy_n(v.row(token), v.row_values, codes.begin());
    const auto middle = codes.begin() + static_cast<ptrdiff_t>((v.row_values - 1) / 2);
    std::nth_element(codes.begin(), middle, codes.end());
    medians[static_cast<size_t>(token)] = *middle;
  }
  TokenOrder order = InOrder();
  std::stable_sort(order.begin(), order.end(),
                   [&](uint8_t a, uint8_t b) { return medians[a] > medians[b]; });
  return order;
}

int BitWidth(int value) {
  return value == 0 ? 0 : 32 - __builtin_clz(static_cast<unsigned>(value));
}

// A token's codes of K, then of V.
using Row = std::vector<uint8_t>;

// A pack that grows: the range of its tokens in every channel.
class Pack {
 public:
  explicit Pack(const Row& seed) : least_(seed), most_(seed) {}

  // Bits a token of all channels if `row` came in.
  int BitsWith(const Row& row) const {
    int bits = 0;
    for (size_t i = 0; i < row.size(); ++i) {
      bits += BitWidth(std::max(most_[i], row[i]) - std::min(least_[i], row[i]));
    }
    return bits;
  }
  void Add(const Row& row) {
    for (size_t i = 0; i < row.size(); ++i) {
      least_[i] = std::min(least_[i], row[i]);
      most_[i] = std::max(most_[i], row[i]);
    }
  }

 private:
  Row least_;
  Row most_;
};

// Which of `left` has the highest cosine similarity to their rounded mean. Exact, so that every
// machine chooses the same.
size_t SeedAmong(const std::vector<Row>& rows, const std::vector<uint8_t>& left) {
  const size_t width = rows[0].size();
  std::vector<uint32_t> sums(width);
  for (const uint8_t token : left) {
    for (size_t i = 0; i < width; ++i) sums[i] += rows[token][i];
  }
  const uint32_t count = static_cast<uint32_t>(left.size());
  __extension__ using Wide = unsigned __int128;
  size_t best = 0;
  Wide best_dot2 = 0;
  uint64_t best_norm2 = 1;
  for (size_t candidate = 0; candidate < left.size(); ++candidate) {
    uint64_t dot = 0;
    uint64_t norm2 = 0;
    const Row& row = rows[left[candidate]];
    for (size_t i = 0; i < width; ++i) {
      dot += row[i] * ((2 * sums[i] + count) / (2 * count));
      norm2 += static_cast<uint64_t>(row[i]) * row[i];
    }
    // dot / norm, squared, as codes are not negative. A row of zeros has none.
    const Wide dot2 = static_cast<Wide>(dot) * dot;
    if (norm2 == 0 || dot2 * best_norm2 <= best_dot2 * norm2) continue;
    best = candidate;
    best_dot2 = dot2;
    best_norm2 = norm2;
  }
  return best;
}

TokenOrder Greedy(int pack_tokens, const QuantizedBlock& k, const QuantizedBlock& v) {
  std::vector<Row> rows;
  for (int token = 0; token < kBlockTokens; ++token) {
    Row row(k.row(token), k.row(token) + k.row_values);
    row.insert(row.end(), v.row(token), v.row(token) + v.row_values);
    rows.push_back(std::move(row));
  }
  const TokenOrder all = InOrder();
  std::vector<uint8_t> left(all.begin(), all.end());
  TokenOrder order;
  size_t place = 0;
  const auto take = [&](size_t candidate) -> const Row& {
    const uint8_t token = left[candidate];
    left.erase(left.begin() + static_cast<ptrdiff_t>(candidate));
    order[place++] = token;
    return rows[token];
  };
  while (!left.empty()) {
    Pack pack(take(SeedAmong(rows, left)));
    for (int added = 1; added < pack_tokens; ++added) {
      size_t best = 0;
      int best_bits = pack.BitsWith(rows[left[0]]);
      for (size_t candidate = 1; candidate < left.size(); ++candidate) {
        const int bits = pack.BitsWith(rows[left[candidate]]);
        if (bits >= best_bits) continue;
        best = candidate;
        best_bits = bits;
      }
      pack.Add(take(best));
    }
  }
  return order;
}

}  // namespace

TokenOrder OrderOf(Repacking repacking, int pack_tokens, const QuantizedBlock& k,
                   const QuantizedBlock& v) {
  KVDEPOT_CHECK(kBlockTokens % pack_tokens == 0);
  switch (repacking) {
    case Repacking::kNone:
      return InOrder();
    case Repacking::kMedian:
      return ByMedian(v);
    case Repacking::kGreedy:
      return Greedy(pack_tokens, k, v);
  }
  KVDEPOT_CHECK(false);
  return InOrder();
}

}  // namespace kvdepot::packkv
