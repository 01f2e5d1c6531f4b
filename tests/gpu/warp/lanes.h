// The 32 lanes of a warp as fibers of one thread, so that device code runs without a GPU.
//
// A lane runs until it meets the others: an operation of the whole warp begins for none before all
// have come to it. Who runs next is drawn from a seed, so that what lanes say to each other through
// memory without a __syncwarp between fails under some seed. (Not all of it: here every operation
// of the warp orders memory, on a GPU only __syncwarp does.)
//
// Lanes that do not meet, because they are at different operations, or one has returned, or all
// wait for what never comes, end the process with a message.
#ifndef KVDEPOT_TESTS_GPU_WARP_LANES_H_
#define KVDEPOT_TESTS_GPU_WARP_LANES_H_

#include <cstddef>
#include <cstring>
#include <functional>
#include <type_traits>

namespace kvdepot::warp {

inline constexpr int kLanes = 32;

// Calls code(lane) in every lane, and returns when all have returned. Not from a lane.
void Run(unsigned seed, const std::function<void(int lane)>& code);

// From lanes only:
int Lane();
// Others that can go on do so first.
void Yield();

// Of all lanes' operands of an operation, `kOperandBytesMax` apart.
inline constexpr size_t kOperandBytesMax = 32;
// Meets the others at `operation` (a literal) with a copy of `operand`. What is returned stays
// until the caller meets the others again.
const std::byte* Meet(const char* operation, const void* operand, size_t bytes);

// Operands of all lanes.
template <class Value>
class Met {
 public:
  Met(const char* operation, const Value& own) : operands_(Meet(operation, &own, sizeof(own))) {
    static_assert(std::is_trivially_copyable_v<Value> && sizeof(Value) <= kOperandBytesMax);
  }
  Value operator[](int lane) const {
    Value value;
    std::memcpy(&value, operands_ + static_cast<size_t>(lane) * kOperandBytesMax, sizeof(value));
    return value;
  }

 private:
  const std::byte* operands_;
};

}  // namespace kvdepot::warp

#endif  // KVDEPOT_TESTS_GPU_WARP_LANES_H_
