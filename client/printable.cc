#include "client/printable.h"

#include "absl/strings/str_cat.h"

namespace kvdepot {

std::string Printable(absl::string_view text) {
  std::string printable;
  bool second_byte = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    // U+0080..U+009F are two bytes of UTF-8, the first of them 0xC2.
    const bool first_byte = byte == 0xC2 && i + 1 < text.size() &&
                            (static_cast<unsigned char>(text[i + 1]) & 0xE0) == 0x80;
    if (byte < 0x20 || byte == 0x7F || first_byte || second_byte) {
      absl::StrAppend(&printable, "\\x", absl::Hex(byte, absl::kZeroPad2));
    } else {
      printable.push_back(text[i]);
    }
    second_byte = first_byte;
  }
  return printable;
}

}  // namespace kvdepot
