#include "client/cli/json.h"

#include <cstdio>

#include "google/protobuf/util/json_util.h"

namespace kvdepot::cli {

using google::protobuf::Struct;

std::string JsonText(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.always_print_primitive_fields = true;
  options.preserve_proto_field_names = true;
  std::string text;
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  // Fails for invalid UTF-8 alone, which proto3 messages do not carry.
  return status.ok() ? text : "";
}

void PrintJson(const google::protobuf::Message& message) {
  std::fputs(JsonText(message).c_str(), stdout);
}

void SetNumber(absl::string_view name, double value, Struct* object) {
  (*object->mutable_fields())[std::string(name)].set_number_value(value);
}

void SetText(absl::string_view name, absl::string_view value, Struct* object) {
  (*object->mutable_fields())[std::string(name)].set_string_value(std::string(value));
}

void SetBool(absl::string_view name, bool value, Struct* object) {
  (*object->mutable_fields())[std::string(name)].set_bool_value(value);
}

google::protobuf::ListValue* SetList(absl::string_view name, Struct* object) {
  return (*object->mutable_fields())[std::string(name)].mutable_list_value();
}

}  // namespace kvdepot::cli
