// What CUDA C++ adds to C++, as far as device code under test uses it, for lanes.h: to be included
// behind the standard library and before that code.
#ifndef KVDEPOT_TESTS_GPU_WARP_CUDA_LANGUAGE_H_
#define KVDEPOT_TESTS_GPU_WARP_CUDA_LANGUAGE_H_

#include <cmath>
#include <cstdint>
#include <cstring>

#include "gpu/numeric.h"
#include "tests/gpu/warp/lanes.h"

#define __host__
#define __device__
#define __forceinline__ inline

struct uchar4 {
  unsigned char x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// A block of one warp.
struct ThreadIndex {
  struct Lane {
    operator unsigned() const { return static_cast<unsigned>(kvdepot::warp::Lane()); }
  } x;
};
inline constexpr ThreadIndex threadIdx = {};

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }

inline unsigned __float_as_uint(float value) { return kvdepot::FloatBits(value); }
inline float __uint_as_float(unsigned bits) { return kvdepot::FloatFromBits(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return std::fabs(b) > 0x1p126f ? 0 : a / b; }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
// Byte i of the result is byte `nibble i of selector` of high:low.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t{high} << 32 | low;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned from = selector >> (4 * i) & 7;
    result |= static_cast<unsigned>(bytes >> (8 * from) & 0xFF) << (8 * i);
  }
  return result;
}
template <class Choose>
unsigned EachByte(unsigned a, unsigned b, const Choose& choose) {
  unsigned result = 0;
  for (int shift = 0; shift < 32; shift += 8)
    result |= choose(a >> shift & 0xFF, b >> shift & 0xFF) << shift;
  return result;
}
inline unsigned __vminu4(unsigned a, unsigned b) {
  return EachByte(a, b, [](unsigned x, unsigned y) { return min(x, y); });
}
inline unsigned __vmaxu4(unsigned a, unsigned b) {
  return EachByte(a, b, [](unsigned x, unsigned y) { return max(x, y); });
}

// Between its load and its store others go on, but with no other of these: a plain store to the
// same word is lost under some seed.
inline unsigned atomicOr(unsigned* word, unsigned bits) {
  static thread_local bool under_way = false;
  while (under_way) kvdepot::warp::Yield();
  under_way = true;
  const unsigned before = *word;
  kvdepot::warp::Yield();
  *word = before | bits;
  under_way = false;
  return before;
}

// Of all lanes: nothing under test asks less of them.
inline void __syncwarp() { kvdepot::warp::Meet("__syncwarp", nullptr, 0); }
template <class Value>
Value __shfl_sync(unsigned, Value value, int lane, int width = 32) {
  const kvdepot::warp::Met<Value> values("__shfl_sync", value);
  const int own = kvdepot::warp::Lane();
  return values[own / width * width + lane % width];
}
template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
  const kvdepot::warp::Met<Value> values("__shfl_xor_sync", value);
  return values[kvdepot::warp::Lane() ^ mask];
}
inline unsigned __reduce_add_sync(unsigned, unsigned value) {
  const kvdepot::warp::Met<unsigned> values("__reduce_add_sync", value);
  unsigned sum = 0;
  for (int lane = 0; lane < kvdepot::warp::kLanes; ++lane) sum += values[lane];
  return sum;
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const kvdepot::warp::Met<bool> values("__ballot_sync", value);
  unsigned ballot = 0;
  for (int lane = 0; lane < kvdepot::warp::kLanes; ++lane)
    ballot |= (values[lane] ? 1u : 0u) << lane;
  return ballot;
}
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }

#endif  // KVDEPOT_TESTS_GPU_WARP_CUDA_LANGUAGE_H_
