// Marks functions that plain C++ and nvcc compile from the same text.
#ifndef KVDEPOT_GPU_HOST_DEVICE_H_
#define KVDEPOT_GPU_HOST_DEVICE_H_

#if defined(__CUDACC__)
#define KVDEPOT_HOST_DEVICE __host__ __device__
#else
#define KVDEPOT_HOST_DEVICE
#endif

#endif  // KVDEPOT_GPU_HOST_DEVICE_H_
