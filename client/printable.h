// Text that others chose, made fit for a terminal.
#ifndef KVDEPOT_CLIENT_PRINTABLE_H_
#define KVDEPOT_CLIENT_PRINTABLE_H_

#include <string>

#include "absl/strings/string_view.h"

namespace kvdepot {

// `text` with each byte of a control character (U+0000..U+001F, U+007F..U+009F) as \xHH: such
// characters could move the cursor, or write what nobody sent. Whatever a daemon says is printed
// through this.
std::string Printable(absl::string_view text);

}  // namespace kvdepot

#endif  // KVDEPOT_CLIENT_PRINTABLE_H_
