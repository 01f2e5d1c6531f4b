#include "client/printable.h"

#include <gtest/gtest.h>

#include "client/table.h"

namespace kvdepot {
namespace {

TEST(Printable, KeepsTextAndEscapesControlCharacters) {
  EXPECT_EQ(Printable("f\xC3\xBCr 3 \xE2\x82\xAC \xC2\xA0"), "f\xC3\xBCr 3 \xE2\x82\xAC \xC2\xA0");
  EXPECT_EQ(Printable("a\x1b[2J\n\x7f"), "a\\x1b[2J\\x0a\\x7f");
  EXPECT_EQ(Printable(absl::string_view("\0b", 2)), "\\x00b");
  EXPECT_EQ(Printable("\xC2\x9B"
                      "2J"),
            "\\xc2\\x9b2J");
  EXPECT_EQ(Printable("\xC2"), "\xC2");
}

TEST(Printable, TablesPrintNothingElse) {
  Table table({{"NAME"}, {"N"}});
  table.AddRow({"a\x1b[2J", "1"});
  EXPECT_EQ(table.ToString(), "NAME      N\na\\x1b[2J  1\n");
}

}  // namespace
}  // namespace kvdepot
