// What an error is about. A domain message starts with the name of the field or limit that it is
// about, then ": ", the value and what is allowed: "chunk.k: 100 bytes, must be 128".
#ifndef KVDEPOT_SERVER_ERROR_SUBJECT_H_
#define KVDEPOT_SERVER_ERROR_SUBJECT_H_

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/string_view.h"

namespace kvdepot {

// "chunk.k" of the example above. Empty if the message does not start with a name.
inline absl::string_view ErrorSubject(absl::string_view message) {
  const auto is_name = [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '.' || c == '[' ||
           c == ']';
  };
  const auto end = std::find_if_not(message.begin(), message.end(), is_name);
  const auto length = static_cast<size_t>(end - message.begin());
  return message.substr(length, 2) == ": " ? message.substr(0, length) : absl::string_view();
}

}  // namespace kvdepot

#endif  // KVDEPOT_SERVER_ERROR_SUBJECT_H_
