// A folder of a test's own.
#ifndef KVDEPOT_TESTS_SERVER_TEMPORARY_FOLDER_H_
#define KVDEPOT_TESTS_SERVER_TEMPORARY_FOLDER_H_

#include <cstdlib>
#include <filesystem>
#include <string>

namespace kvdepot {

// Goes with all that is in it. Not in Bazel's TEST_TMPDIR, which is longer than a socket's path may
// be.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    if (mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  // mkdtemp fills in the end.
  std::string path_ = "/tmp/kvdepot-XXXXXX";
};

}  // namespace kvdepot

#endif  // KVDEPOT_TESTS_SERVER_TEMPORARY_FOLDER_H_
