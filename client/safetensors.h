// Reads safetensors files: an 8-byte little-endian length, a JSON header of that length, then the
// tensors' bytes.
//
// Files come from anywhere, so nothing in the header is believed: every offset, shape and size is
// checked against the file before a tensor is handed out, and tensors may neither overlap nor leave
// gaps (a gap could hide data).
#ifndef KVDEPOT_CLIENT_SAFETENSORS_H_
#define KVDEPOT_CLIENT_SAFETENSORS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace kvdepot {

// The format's own limit for the header is 100 MB; a header of this project is a few hundred bytes.
inline constexpr uint64_t kSafetensorsHeaderBytesMax = uint64_t{16} << 20;

struct Tensor {
  std::string dtype;  // As in the file: "BF16", "F32", ...
  std::vector<uint64_t> shape;
  absl::string_view data;  // Into the file's bytes, which the Safetensors object owns.
};

class Safetensors {
 public:
  // INVALID_ARGUMENT for bytes that are no such file, saying why.
  static absl::StatusOr<Safetensors> Parse(std::string file);
  static absl::StatusOr<Safetensors> Load(const std::string& path);

  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  // Free text of the file's maker.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // NOT_FOUND naming the tensor.
  absl::StatusOr<Tensor> Find(const std::string& name) const;

 private:
  Safetensors() = default;

  // On the heap, so that Tensor::data stays right when this object moves.
  std::unique_ptr<const std::string> file_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_SAFETENSORS_H_
