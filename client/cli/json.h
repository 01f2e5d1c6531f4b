// What --json prints: protobuf messages of the contract as they are, and google.protobuf.Struct for
// everything else.
#ifndef KVDEPOT_CLIENT_CLI_JSON_H_
#define KVDEPOT_CLIENT_CLI_JSON_H_

#include <string>

#include "absl/strings/string_view.h"
#include "google/protobuf/message.h"
#include "google/protobuf/struct.pb.h"

namespace kvdepot::cli {

// One object on standard output, field names as in the .proto files, 64-bit integers of messages as
// strings (the JSON mapping of protobuf).
void PrintJson(const google::protobuf::Message& message);
// The same as text.
std::string JsonText(const google::protobuf::Message& message);

void SetNumber(absl::string_view name, double value, google::protobuf::Struct* object);
void SetText(absl::string_view name, absl::string_view value, google::protobuf::Struct* object);
void SetBool(absl::string_view name, bool value, google::protobuf::Struct* object);
// An empty list, to be filled.
google::protobuf::ListValue* SetList(absl::string_view name, google::protobuf::Struct* object);

}  // namespace kvdepot::cli

#endif  // KVDEPOT_CLIENT_CLI_JSON_H_
