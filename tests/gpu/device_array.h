// Arrays in device memory for tests of kernels, and whether there is a device at all.
#ifndef KVDEPOT_TESTS_GPU_DEVICE_ARRAY_H_
#define KVDEPOT_TESTS_GPU_DEVICE_ARRAY_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

#include "gpu/check.h"

namespace kvdepot {

inline bool HasCudaDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// Skips the test, visibly, where there is no GPU.
#define KVDEPOT_REQUIRE_CUDA_DEVICE() \
  if (!::kvdepot::HasCudaDevice()) GTEST_SKIP() << "no CUDA device"

// Owns `size` elements in device memory.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t size) : size_(size) {
    void* memory = nullptr;
    KVDEPOT_CHECK(cudaMalloc(&memory, (size == 0 ? 1 : size) * sizeof(T)) == cudaSuccess);
    data_ = static_cast<T*>(memory);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { Set(values); }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }

  void Set(const std::vector<T>& values) {
    KVDEPOT_CHECK(values.size() == size_);
    KVDEPOT_CHECK(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice) ==
                  cudaSuccess);
  }
  // Every byte becomes `byte`.
  void Fill(int byte) { KVDEPOT_CHECK(cudaMemset(data_, byte, size_ * sizeof(T)) == cudaSuccess); }
  // Waits for all work of the device.
  std::vector<T> Get() const {
    std::vector<T> values(size_);
    KVDEPOT_CHECK(cudaDeviceSynchronize() == cudaSuccess);
    KVDEPOT_CHECK(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost) ==
                  cudaSuccess);
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t size_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_GPU_DEVICE_ARRAY_H_
