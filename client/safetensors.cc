#include "client/safetensors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/types/optional.h"
#include "google/protobuf/struct.pb.h"
#include "google/protobuf/util/json_util.h"
#include "gpu/regular_file.h"

namespace kvdepot {
namespace {

using google::protobuf::ListValue;
using google::protobuf::Struct;
using google::protobuf::Value;

constexpr size_t kLengthBytes = 8;
// Header numbers are read as doubles; from here on they would not be exact.
constexpr double kIntegerMax = 9007199254740991;  // 2^53 - 1

absl::Status Malformed(absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("not a safetensors file: ", what));
}

absl::optional<uint64_t> BytesPerElement(absl::string_view dtype) {
  if (dtype == "BOOL" || dtype == "U8" || dtype == "I8") return 1;
  if (dtype == "BF16" || dtype == "F16" || dtype == "U16" || dtype == "I16") return 2;
  if (dtype == "F32" || dtype == "U32" || dtype == "I32") return 4;
  if (dtype == "F64" || dtype == "U64" || dtype == "I64") return 8;
  return absl::nullopt;
}

absl::StatusOr<std::vector<uint64_t>> Integers(const Struct& entry, const std::string& field) {
  const auto found = entry.fields().find(field);
  if (found == entry.fields().end() || !found->second.has_list_value()) {
    return Malformed(absl::StrCat(field, " is missing or no list"));
  }
  std::vector<uint64_t> integers;
  for (const Value& value : found->second.list_value().values()) {
    const double number = value.number_value();
    if (value.kind_case() != Value::kNumberValue || !(number >= 0 && number <= kIntegerMax) ||
        number != std::floor(number)) {
      return Malformed(absl::StrCat(field, " holds something else than a size"));
    }
    integers.push_back(static_cast<uint64_t>(number));
  }
  return integers;
}

// Whether `shape` of this element size takes exactly `size_bytes`, however large the factors are.
bool ShapeTakes(const std::vector<uint64_t>& shape, uint64_t element_bytes, uint64_t size_bytes) {
  uint64_t product = element_bytes;
  for (const uint64_t dimension : shape) {
    if (__builtin_mul_overflow(product, dimension, &product)) return false;
  }
  return product == size_bytes;
}

absl::StatusOr<Tensor> ParseTensor(const Struct& entry, absl::string_view data) {
  Tensor tensor;
  const auto dtype = entry.fields().find("dtype");
  if (dtype != entry.fields().end()) tensor.dtype = dtype->second.string_value();
  const absl::optional<uint64_t> element_bytes = BytesPerElement(tensor.dtype);
  if (!element_bytes) return Malformed(absl::StrCat("unknown dtype '", tensor.dtype, "'"));

  absl::StatusOr<std::vector<uint64_t>> shape = Integers(entry, "shape");
  if (!shape.ok()) return shape.status();
  tensor.shape = *std::move(shape);

  const absl::StatusOr<std::vector<uint64_t>> offsets = Integers(entry, "data_offsets");
  if (!offsets.ok()) return offsets.status();
  if (offsets->size() != 2) return Malformed("data_offsets is no pair");
  const uint64_t begin = (*offsets)[0];
  const uint64_t end = (*offsets)[1];
  if (begin > end || end > data.size()) {
    return Malformed(absl::StrCat("bytes ", begin, " to ", end, " are not within the ", data.size(),
                                  " bytes of data"));
  }
  if (!ShapeTakes(tensor.shape, *element_bytes, end - begin)) {
    return Malformed(absl::StrCat("its shape does not take ", end - begin, " bytes"));
  }
  tensor.data = data.substr(begin, end - begin);
  return tensor;
}

absl::Status CheckTiling(const std::map<std::string, Tensor>& tensors, absl::string_view data) {
  std::vector<std::pair<size_t, size_t>> ranges;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = static_cast<size_t>(tensor.data.data() - data.data());
    ranges.emplace_back(begin, begin + tensor.data.size());
  }
  std::sort(ranges.begin(), ranges.end());
  size_t covered = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != covered) return Malformed("tensors overlap or leave a gap");
    covered = end;
  }
  if (covered != data.size()) return Malformed("bytes after the last tensor");
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Safetensors> Safetensors::Parse(std::string file) {
  Safetensors result;
  result.file_ = std::make_unique<const std::string>(std::move(file));
  const absl::string_view bytes = *result.file_;
  if (bytes.size() < kLengthBytes) return Malformed("shorter than its length field");
  uint64_t header_bytes = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    header_bytes |= uint64_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  }
  if (header_bytes > std::min<uint64_t>(bytes.size() - kLengthBytes, kSafetensorsHeaderBytesMax)) {
    return Malformed(absl::StrCat("a header of ", header_bytes, " bytes in a file of ",
                                  bytes.size(), "; the limit is ", kSafetensorsHeaderBytesMax));
  }
  const absl::string_view header_text = bytes.substr(kLengthBytes, header_bytes);
  const absl::string_view data = bytes.substr(kLengthBytes + header_bytes);

  Struct header;
  const auto parsed = google::protobuf::util::JsonStringToMessage(
      {header_text.data(), header_text.size()}, &header);
  if (!parsed.ok()) return Malformed(absl::StrCat("header: ", parsed.ToString()));
  for (const auto& [name, value] : header.fields()) {
    if (name == "__metadata__") {
      for (const auto& [key, text] : value.struct_value().fields()) {
        result.metadata_[key] = text.string_value();
      }
      continue;
    }
    absl::StatusOr<Tensor> tensor = ParseTensor(value.struct_value(), data);
    if (!tensor.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor '", name, "': ", tensor.status().message()));
    }
    result.tensors_[name] = *std::move(tensor);
  }
  const absl::Status tiling = CheckTiling(result.tensors_, data);
  if (!tiling.ok()) return tiling;
  return result;
}

absl::StatusOr<Safetensors> Safetensors::Load(const std::string& path) {
  absl::StatusOr<std::string> file = ReadRegularFile(path, std::numeric_limits<uint64_t>::max());
  if (!file.ok()) return file.status();
  absl::StatusOr<Safetensors> result = Parse(*std::move(file));
  if (!result.ok()) {
    return absl::Status(result.status().code(),
                        absl::StrCat(path, ": ", result.status().message()));
  }
  return result;
}

absl::StatusOr<Tensor> Safetensors::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    return absl::NotFoundError(absl::StrCat("the file has no tensor '", name, "'"));
  }
  return found->second;
}

}  // namespace kvdepot
