// Stored values as vectors of fp32, exactly. Highway: included once a target.
#if defined(KVDEPOT_GPU_LOAD_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVDEPOT_GPU_LOAD_VALUES_INL_H_
#undef KVDEPOT_GPU_LOAD_VALUES_INL_H_
#else
#define KVDEPOT_GPU_LOAD_VALUES_INL_H_
#endif

#include <cstring>

#include "gpu/numeric.h"
#include "gpu/shape.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvdepot {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Values [index, index + Lanes(d)) of an array of kDType elements; `values` is aligned to its
// element.
template <DType kDType, class D>
hn::Vec<D> LoadValues(D d, const std::byte* values, size_t index) {
  if constexpr (kDType == DType::kFp32) {
    return hn::LoadU(d, reinterpret_cast<const float*>(values) + index);
  } else if constexpr (kDType == DType::kBf16) {
    const hn::Rebind<uint32_t, D> d32;
    const hn::Rebind<uint16_t, D> d16;
    const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(values) + index);
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
  } else {
    const hn::Rebind<hwy::float16_t, D> d16;
    const hn::Rebind<uint16_t, D> bits16;
    const auto bits = hn::LoadU(bits16, reinterpret_cast<const uint16_t*>(values) + index);
    return hn::PromoteTo(d, hn::BitCast(d16, bits));
  }
}

// Converts `count` values, a multiple of the vector length.
template <DType kDType>
void ConvertToFloat(const std::byte* values, size_t count, float* to) {
  const hn::ScalableTag<float> d;
  for (size_t i = 0; i < count; i += hn::Lanes(d))
    hn::StoreU(LoadValues<kDType>(d, values, i), d, to + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvdepot
HWY_AFTER_NAMESPACE();

#endif  // include guard
