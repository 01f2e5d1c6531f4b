#include "tests/gpu/warp/ptx.h"

#include <cstring>
#include <limits>
#include <map>
#include <vector>

#include "gpu/check.h"

namespace kvdepot {

uint32_t Uniform(uint32_t value) {
  const warp::Met<uint32_t> values("Uniform", value);
  KVDEPOT_CHECK(values[0] == value);
  return value;
}

float MaxOfWarp(float value) {
  for (int distance = 1; distance < 32; distance *= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

float SumOfWarp(float value) {
  for (int distance = 1; distance < 32; distance *= 2)
    value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

float MaxOverG(float value) {
  for (int mask = 4; mask < 32; mask *= 2)
    value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, mask));
  return value;
}

}  // namespace kvdepot

namespace kvdepot::ptx {
namespace {

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
};

struct Phase {
  uint32_t bytes;  // of copies that are still to be asked for
  std::vector<Copy> copies;
};

// By barrier.
std::map<uint64_t*, Phase>& Phases() {
  static auto& phases = *new std::map<uint64_t*, Phase>;
  return phases;
}

// Registers of a lane, 4 g + t. Of A, 16x32: rows g and g + 8 of columns 4 t .. 4 t + 3, then of
// columns 16 + 4 t .. 16 + 4 t + 3. Of B, 32x8: column g of rows 4 t .., then 16 + 4 t ...
struct MmaOperands {
  uint32_t a[4];
  uint32_t b[2];
};

int ByteOf(uint32_t word, int i, bool is_signed) {
  const uint32_t byte = word >> (8 * i) & 0xFF;
  return is_signed ? static_cast<int8_t>(byte) : static_cast<int>(byte);
}

// Of D, 16x8, a lane has row g of columns 2 t and 2 t + 1, then the same of row g + 8.
void Mma(const char* name, bool b_is_signed, int32_t (&d)[4], const MmaOperands& own) {
  const warp::Met<MmaOperands> operands(name, own);
  const int g = warp::Lane() / 4;
  const int t = warp::Lane() % 4;
  // Sums wrap.
  uint32_t sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = static_cast<uint32_t>(d[i]);
  for (int four = 0; four < 8; ++four) {
    const int half = four / 4;
    const MmaOperands a = operands[4 * g + four % 4];
    for (int i = 0; i < 4; ++i) {
      const uint32_t b = operands[4 * (2 * t + i % 2) + four % 4].b[half];
      for (int byte = 0; byte < 4; ++byte) {
        sums[i] += static_cast<uint32_t>(ByteOf(a.a[2 * half + i / 2], byte, false) *
                                         ByteOf(b, byte, b_is_signed));
      }
    }
  }
  for (int i = 0; i < 4; ++i) d[i] = static_cast<int32_t>(sums[i]);
}

float Flushed(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

}  // namespace

void BarrierInit(uint64_t* barrier) { *barrier = 0; }

void BarrierWait(uint64_t* barrier, uint32_t parity) {
  while ((*barrier & 1) == parity) {
    const auto phase = Phases().find(barrier);
    if (phase == Phases().end() || phase->second.bytes > 0) {
      warp::Yield();
      continue;
    }
    for (const Copy& copy : phase->second.copies) std::memcpy(copy.to, copy.from, copy.bytes);
    Phases().erase(phase);
    ++*barrier;
  }
}

void ExpectBytes(uint64_t* barrier, uint32_t bytes) {
  const bool is_only = Phases().insert({barrier, {bytes, {}}}).second;
  KVDEPOT_CHECK(is_only);
}

void BulkCopy(void* shared, const void* global, uint32_t bytes, uint64_t* barrier, uint64_t) {
  KVDEPOT_CHECK(bytes % 16 == 0 && bytes > 0);
  KVDEPOT_CHECK(reinterpret_cast<uintptr_t>(shared) % 16 == 0);
  KVDEPOT_CHECK(reinterpret_cast<uintptr_t>(global) % 16 == 0);
  std::memset(shared, 0xA5, bytes);
  const auto phase = Phases().find(barrier);
  KVDEPOT_CHECK(phase != Phases().end() && phase->second.bytes >= bytes);
  phase->second.bytes -= bytes;
  phase->second.copies.push_back({shared, global, bytes});
}

int PhasesUnderWay() { return static_cast<int>(Phases().size()); }

void MmaSigned(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
               uint32_t b1) {
  Mma("MmaSigned", true, d, {{a0, a1, a2, a3}, {b0, b1}});
}

void MmaUnsigned(int32_t (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                 uint32_t b1) {
  Mma("MmaUnsigned", false, d, {{a0, a1, a2, a3}, {b0, b1}});
}

// Lane 4 r + c has elements 2 c and 2 c + 1 of row r, before and after.
uint32_t Transpose8x8(uint32_t rows) {
  const warp::Met<uint32_t> words("Transpose8x8", rows);
  const int r = warp::Lane() / 4;
  const int c = warp::Lane() % 4;
  const auto element = [&](int row, int column) {
    return words[4 * row + column / 2] >> (16 * (column % 2)) & 0xFFFF;
  };
  return element(2 * c, r) | element(2 * c + 1, r) << 16;
}

void AddFromLanesBefore(uint32_t& sum, int distance, int width) {
  const warp::Met<uint32_t> sums("AddFromLanesBefore", sum);
  if (warp::Lane() % width >= distance) sum += sums[warp::Lane() - distance];
}

float Exp2(float x) { return Flushed(std::exp2(Flushed(x))); }

}  // namespace kvdepot::ptx
