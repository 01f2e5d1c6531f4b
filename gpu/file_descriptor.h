// Owner of a file descriptor.
#ifndef KVDEPOT_GPU_FILE_DESCRIPTOR_H_
#define KVDEPOT_GPU_FILE_DESCRIPTOR_H_

#include <unistd.h>

#include <utility>

namespace kvdepot {

// Move-only; closes it when destroyed. -1: none.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

}  // namespace kvdepot

#endif  // KVDEPOT_GPU_FILE_DESCRIPTOR_H_
