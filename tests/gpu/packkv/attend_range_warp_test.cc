// attend_range.cuh in the lanes of a warp against double precision over what the CPU decodes.
#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu/scalar.h"
#include "gtest/gtest.h"
#include "tests/gpu/attend_reference.h"
#include "tests/gpu/packkv/aligned_bytes.h"
#include "tests/gpu/packkv/device_code.h"
#include "tests/gpu/packkv/encoded_segment.h"

namespace kvdepot::packkv {
namespace {

// As of every backend with a GPU: relative, worst row.
constexpr double kErrorMax = 5e-4;

struct Case {
  LayerShape shape;
  DType q_dtype = DType::kFp32;
  Options options;
  int query_tokens = 1;
  // Of the last query, from the last token on; negative: it does not see some of them.
  int last_query_after = 0;
  int runs = 1;
  int blocks_max = 4;      // of a run's segment
  bool cut = false;        // runs begin and end inside of blocks
  float logit_jump = 0;    // by which blocks' logits differ from each other
  float value_spread = 0;  // natural logarithm of V's magnitudes, by token
  bool flat_k = false;     // a token's values are the same: codes have no bits
  bool flat_v = false;
};

std::string Describe(const Case& of) {
  return testing::PrintToString(of.shape.head_dim) + " channels, heads " +
         testing::PrintToString(of.shape.kv_heads) + "/" +
         testing::PrintToString(of.shape.query_heads) + ", window " +
         testing::PrintToString(of.shape.sliding_window) + ", cap " +
         testing::PrintToString(of.shape.soft_cap) + ", queries " +
         testing::PrintToString(of.query_tokens) + ", scales " +
         testing::PrintToString(of.options.k_relative_scale) + " " +
         testing::PrintToString(of.options.v_relative_scale) + ", jump " +
         testing::PrintToString(of.logit_jump) + ", spread " +
         testing::PrintToString(of.value_spread);
}

// State of one query row as attend_state.cuh has it.
struct State {
  double reference = kNoReference;
  double sum = 0;
  std::vector<double> output;
};

// Segments of one layer, queries, and what a launch would say of them.
class Layer {
 public:
  Layer(const Case& of, std::mt19937& random) : of_(of), random_(random) {
    std::normal_distribution<float> normal;
    q_.resize(static_cast<size_t>(of.query_tokens * of.shape.query_heads * of.shape.head_dim));
    q_bytes_ = std::make_unique<AlignedBytes>(q_.size() * DTypeBytes(of.q_dtype));
    for (size_t i = 0; i < q_.size(); ++i) {
      std::byte* const at = q_bytes_->data() + i * DTypeBytes(of.q_dtype);
      StoreScalar(normal(random), of.q_dtype, at);
      q_[i] = LoadScalar(at, of.q_dtype);
    }
    centre_.resize(of.shape.row_values());
    scale_.resize(of.shape.row_values());
    for (float& c : centre_) c = 2 * normal(random);
    for (float& s : scale_) s = std::exp(0.7f * normal(random));
    first_position_ = random() % 200;
    uint32_t position = first_position_;
    for (int run = 0; run < of.runs; ++run) AddRun(&position);
    const int last_query = static_cast<int>(position) - 1 + of.last_query_after;
    cell_.query_position = static_cast<uint32_t>(std::max(0, last_query + 1 - of.query_tokens));
    cell_.coded = runs_.data();
    cell_.coded_runs = static_cast<uint32_t>(runs_.size());
    cell_.coded_units = units_;
    cell_.q = q_bytes_->data();
    cell_.query_tokens = static_cast<uint32_t>(of.query_tokens);
    // As attend_cuda.cc says it.
    cell_.scale = of.shape.soft_cap > 0 ? scale() / of.shape.soft_cap : scale() * kLog2E;
  }

  float scale() const { return 1 / std::sqrt(static_cast<float>(of_.shape.head_dim)); }
  uint32_t units() const { return units_; }
  ReferenceOutput Expected() const {
    return ReferenceAttention(of_.shape, k_, v_, first_position_, q_, cell_.query_position,
                              static_cast<double>(scale()));
  }
  RowView View(int kv_head, int first_row) const {
    RowView view;
    view.cell = &cell_;
    view.first_row = static_cast<uint32_t>(first_row);
    view.ratio = Divider::By(static_cast<uint32_t>(of_.shape.queries_per_kv_head()));
    view.kv_head = static_cast<uint32_t>(kv_head);
    view.query_heads = static_cast<uint32_t>(of_.shape.query_heads);
    return view;
  }
  // Adds to `states`, one a row of the tile, what a warp makes of units [begin, end).
  template <int kHeadDim>
  void AddRange(const RowView& view, uint32_t begin, uint32_t end,
                std::vector<State>* states) const;

 private:
  void AddRun(uint32_t* position);

  const Case of_;
  std::mt19937& random_;
  std::vector<float> centre_, scale_;
  std::vector<float> q_;
  std::unique_ptr<AlignedBytes> q_bytes_;
  std::vector<std::unique_ptr<EncodedSegment>> segments_;
  std::vector<CodedRun> runs_;
  uint32_t units_ = 0;
  uint32_t first_position_ = 0;
  // Of all visible tokens, as the CPU decodes them.
  std::vector<float> k_, v_;
  AttendCell cell_ = {};
};

void Layer::AddRun(uint32_t* position) {
  std::normal_distribution<float> normal;
  const int blocks = 1 + static_cast<int>(random_() % static_cast<unsigned>(of_.blocks_max));
  const size_t width = of_.shape.row_values();
  const size_t dim = static_cast<size_t>(of_.shape.head_dim);
  const size_t ratio = static_cast<size_t>(of_.shape.queries_per_kv_head());
  std::vector<float> k(static_cast<size_t>(blocks * kBlockTokens) * width), v(k.size());
  float jump = 0;
  float magnitude = 1;
  for (size_t i = 0; i < k.size(); ++i) {
    const size_t c = i % width;
    if (i % (kBlockTokens * width) == 0) jump = of_.logit_jump * normal(random_);
    if (c == 0) magnitude = std::exp(of_.value_spread * normal(random_));
    k[i] = centre_[c] + scale_[c] * normal(random_);
    // Along the first query of the head, whose logit it changes by `jump`.
    const float* const q = &q_[c / dim * ratio * dim];
    float square = 0;
    for (size_t j = 0; j < dim; ++j) square += q[j] * q[j];
    k[i] += jump * q[c % dim] / (square * scale());
    v[i] = magnitude * normal(random_);
    if (of_.flat_k && c > 0) k[i] = k[i - 1];
    // Not about zero, which their sum would come near to.
    if (of_.flat_v) v[i] = c > 0 ? v[i - 1] : v[i] + 3;
  }
  segments_.push_back(std::make_unique<EncodedSegment>(of_.shape, of_.options, k, v));
  const EncodedSegment& segment = *segments_.back();
  int first = 0;
  int end = segment.tokens();
  if (of_.cut) {
    first = static_cast<int>(random_() % static_cast<unsigned>(end));
    end = first + 1 + static_cast<int>(random_() % static_cast<unsigned>(end - first));
  }
  CodedRun run = {};
  run.segment = segment.data();
  run.position = *position - static_cast<uint32_t>(first);
  run.unit_begin = units_;
  run.first = static_cast<uint16_t>(first);
  run.count = static_cast<uint16_t>(end - first);
  run.first_block = static_cast<uint16_t>(first / kBlockTokens);
  run.blocks = static_cast<uint16_t>(blocks);
  runs_.push_back(run);
  units_ += CodedSteps(run.first, run.count);
  *position += run.count;
  const auto append = [&](const std::vector<float>& from, std::vector<float>* to) {
    to->insert(to->end(), from.begin() + static_cast<ptrdiff_t>(width) * first,
               from.begin() + static_cast<ptrdiff_t>(width) * end);
  };
  append(segment.k(), &k_);
  append(segment.v(), &v_);
}

// As AttendUnits in attend_kernel.cuh does it.
template <int kHeadDim>
void Layer::AddRange(const RowView& view, uint32_t begin, uint32_t end,
                     std::vector<State>* states) const {
  constexpr uint32_t kRingBytes = kPieceSlots * SlotBytes(kHeadDim);
  const WarpMemoryLayout<kHeadDim, 1, Codec::kPackKv> layout(kRingBytes);
  // What nobody wrote is not a number.
  const AlignedBytes shared(layout.bytes(), 0xFF);
  const WarpMemory<kHeadDim> memory = layout.Of(shared.data(), 0);
  const RowState<kHeadDim> state{memory.state};
  for (int i = 0; i < kWarpBarriers; ++i) ptx::BarrierInit(&memory.barriers[i]);
  const uint32_t header_bytes = static_cast<uint32_t>(SegmentHeaderBytes(of_.shape.kv_heads));
  warp::Run(random_(), [&](int lane) {
    Ring<kHeadDim> ring(memory, kRingBytes, lane);
    QueryLoad<kHeadDim, kProductRows> queries;
    queries.Begin(view, of_.q_dtype, lane);
    const auto prepare = [&] {
      state.Clear(kProductRows, lane);
      queries.End(cell_.scale, of_.q_dtype, lane, memory.q);
      return RowLimits::Of(view, kProductRows, static_cast<uint32_t>(of_.shape.sliding_window));
    };
    AttendRange<kHeadDim>(cell_, view.kv_head, static_cast<uint32_t>(of_.shape.kv_heads),
                          header_bytes, begin, end, of_.shape.soft_cap, memory, ring, state, lane,
                          prepare);
  });
  EXPECT_EQ(ptx::PhasesUnderWay(), 0);
  for (int row = 0; row < kProductRows; ++row) {
    State& sum = (*states)[static_cast<size_t>(row)];
    const double reference = std::max<double>(sum.reference, state.reference(row));
    const double before = std::exp2(sum.reference - reference);
    const double added = std::exp2(static_cast<double>(state.reference(row)) - reference);
    sum.reference = reference;
    sum.sum = sum.sum * before + static_cast<double>(state.sum(row)) * added;
    sum.output.resize(kHeadDim);
    for (int c = 0; c < kHeadDim; ++c) {
      double& output = sum.output[static_cast<size_t>(c)];
      output = output * before + static_cast<double>(state.output(row, c)) * added;
    }
  }
}

// Worst relative error of the case's rows.
template <int kHeadDim>
void ExpectAsInDoublePrecision(const Case& of, std::mt19937& random, double* worst) {
  const Layer layer(of, random);
  const ReferenceOutput expected = layer.Expected();
  const int rows = of.query_tokens * of.shape.queries_per_kv_head();
  for (int kv_head = 0; kv_head < of.shape.kv_heads; ++kv_head) {
    for (int first_row = 0; first_row < rows; first_row += kProductRows) {
      const RowView view = layer.View(kv_head, first_row);
      // Where another warp goes on.
      const uint32_t cut = random() % 3 == 0 ? random() % layer.units() : 0;
      std::vector<State> states(kProductRows);
      if (cut > 0) layer.AddRange<kHeadDim>(view, 0, cut, &states);
      layer.AddRange<kHeadDim>(view, cut, layer.units(), &states);
      for (int row = 0; row < std::min(rows - first_row, kProductRows); ++row) {
        const State& state = states[static_cast<size_t>(row)];
        const size_t index = view.Index(row);
        const double log_sum_exp = expected.log_sum_exp[index];
        double difference = 0;
        double norm = 0;
        for (int c = 0; c < kHeadDim; ++c) {
          const double e = expected.output[index * kHeadDim + static_cast<size_t>(c)];
          const double output = state.output[static_cast<size_t>(c)];
          difference += std::pow(e - (state.sum > 0 ? output / state.sum : output), 2);
          norm += e * e;
        }
        SCOPED_TRACE(testing::Message() << "head " << kv_head << ", row " << first_row + row);
        if (!std::isfinite(log_sum_exp)) {
          EXPECT_EQ(state.sum, 0);
          EXPECT_EQ(difference, 0);
          continue;
        }
        const double error = std::sqrt(difference / norm);
        EXPECT_LE(error, kErrorMax);
        EXPECT_NEAR(std::log(state.sum) + state.reference * std::log(2.0), log_sum_exp, 2e-3);
        *worst = std::isfinite(error) ? std::max(*worst, error) : INFINITY;
      }
    }
  }
}

void ExpectAsInDoublePrecision(const Case& of, unsigned seed, double* worst) {
  SCOPED_TRACE(testing::Message() << "seed " << seed << ", " << Describe(of));
  std::mt19937 random(seed);
  if (of.shape.head_dim == 64) {
    ExpectAsInDoublePrecision<64>(of, random, worst);
  } else {
    ExpectAsInDoublePrecision<128>(of, random, worst);
  }
}

Case RandomCase(std::mt19937& random) {
  Case of;
  const int kv_heads = 1 + static_cast<int>(random() % 3);
  of.shape = {kv_heads, kv_heads * (1 + static_cast<int>(random() % 6)),
              random() % 2 == 0 ? 64 : 128, 0, 0};
  of.q_dtype = static_cast<DType>(1 + random() % 3);
  // All that the kernels take (cuda_support.cc): 0.0777 to 1.
  of.options.k_relative_scale = std::exp(-0.1f * static_cast<float>(random() % 26));
  of.options.v_relative_scale = std::exp(-0.1f * static_cast<float>(random() % 26));
  of.options.repacking = random() % 2 == 0 ? Repacking::kNone : Repacking::kMedian;
  of.query_tokens = random() % 3 == 0 ? 1 + static_cast<int>(random() % 4) : 1;
  of.runs = 1 + static_cast<int>(random() % 4);
  of.cut = random() % 2 == 0;
  return of;
}

class PackKvAttendRangeWarp : public testing::Test {
 protected:
  void TearDown() override { RecordProperty("worst_relative_error", std::to_string(worst_)); }
  double worst_ = 0;
};

TEST_F(PackKvAttendRangeWarp, AsInDoublePrecision) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::mt19937 random(1000 + seed);
    ExpectAsInDoublePrecision(RandomCase(random), seed, &worst_);
  }
}

TEST_F(PackKvAttendRangeWarp, LimitsOfRows) {
  for (unsigned seed = 0; seed < 30; ++seed) {
    std::mt19937 random(2000 + seed);
    Case of = RandomCase(random);
    of.query_tokens = 1 + static_cast<int>(random() % 5);
    of.last_query_after = static_cast<int>(random() % 300) - 200;
    if (random() % 3 != 0) of.shape.sliding_window = 1 + static_cast<int>(random() % 300);
    ExpectAsInDoublePrecision(of, seed, &worst_);
  }
}

TEST_F(PackKvAttendRangeWarp, SoftCap) {
  for (unsigned seed = 0; seed < 15; ++seed) {
    std::mt19937 random(3000 + seed);
    Case of = RandomCase(random);
    of.shape.soft_cap = 5 + static_cast<float>(random() % 50);
    ExpectAsInDoublePrecision(of, seed, &worst_);
  }
}

// References rise and units grow from block to block, and start anew.
TEST_F(PackKvAttendRangeWarp, BlocksOfOtherMagnitudes) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    std::mt19937 random(4000 + seed);
    Case of = RandomCase(random);
    of.blocks_max = 6;
    of.logit_jump = seed % 3 == 0 ? 0 : static_cast<float>(random() % 12);
    of.value_spread = seed % 3 == 1 ? 0 : static_cast<float>(random() % 4);
    ExpectAsInDoublePrecision(of, seed, &worst_);
  }
}

TEST_F(PackKvAttendRangeWarp, CodesWithoutBits) {
  for (unsigned seed = 0; seed < 8; ++seed) {
    std::mt19937 random(5000 + seed);
    Case of = RandomCase(random);
    of.flat_k = seed % 4 != 0;
    of.flat_v = seed % 4 != 1;
    ExpectAsInDoublePrecision(of, seed, &worst_);
  }
}

// More than a warp looks at in one go, of ranges that begin anywhere.
TEST_F(PackKvAttendRangeWarp, ManyRuns) {
  for (unsigned seed = 0; seed < 8; ++seed) {
    std::mt19937 random(6000 + seed);
    Case of = RandomCase(random);
    of.shape.kv_heads = 1;
    of.shape.query_heads = 6;
    of.query_tokens = 1;
    of.runs = 30 + static_cast<int>(random() % 50);
    of.blocks_max = 2;
    ExpectAsInDoublePrecision(of, seed, &worst_);
  }
}

}  // namespace
}  // namespace kvdepot::packkv
