// Which words make which command, and what is refused. The flags are those of the real program:
// --json, --timeout and
// --target of every command.
#include "client/cli/command_line.h"

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "client/cli/daemon_flags.h"
#include "gtest/gtest.h"

ABSL_FLAG(int, stranger, 0, "A flag of no command.");

namespace kvdepot::cli {
namespace {

absl::Status Nothing(const Arguments&) { return absl::OkStatus(); }

const std::vector<Command> kCommands = {{"list", {}, "Lists.", &Nothing},
                                        {"drop", {"THING"}, "Drops.", &Nothing},
                                        {"list all", {}, "Lists more.", &Nothing}};

absl::StatusOr<CommandLine> Parse(const std::vector<std::string>& words) {
  return ParseCommandLine(words, kCommands);
}

TEST(CommandLineTest, FindsCommandAndArguments) {
  const auto line = Parse({"drop", "it"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->command->name, "drop");
  EXPECT_EQ(line->arguments, Arguments{"it"});
}

TEST(CommandLineTest, FlagsStandAnywhereInEveryForm) {
  ASSERT_TRUE(Parse({"--json", "drop", "--timeout", "3s", "it", "--target=/socket"}).ok());
  EXPECT_TRUE(WantsJson());
  EXPECT_EQ(Target(), "unix:///socket");
  ASSERT_TRUE(Parse({"list", "--nojson", "--target=host:1"}).ok());
  EXPECT_FALSE(WantsJson());
  EXPECT_EQ(Target(), "host:1");
  ASSERT_TRUE(Parse({"list", "--token-file=a-b_c"}).ok());
  EXPECT_EQ(absl::FindCommandLineFlag("token_file")->CurrentValue(), "a-b_c");
  ASSERT_TRUE(Parse({"list", "--json=true"}).ok());
  EXPECT_TRUE(WantsJson());
}

TEST(CommandLineTest, ACommandOfTwoWordsGoesBeforeOneOfItsFirst) {
  EXPECT_EQ(Parse({"list"})->command->name, "list");
  const auto line = Parse({"list", "--timeout", "3s", "all"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->command->name, "list all");
  EXPECT_TRUE(line->arguments.empty());
  EXPECT_TRUE(IsUsageError(Parse({"list", "all", "more"}).status()));
  EXPECT_TRUE(IsUsageError(Parse({"all"}).status()));
}

TEST(CommandLineTest, DashesEndTheFlags) {
  const auto line = Parse({"drop", "--", "--json"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->arguments, Arguments{"--json"});
}

TEST(CommandLineTest, RefusesWhatIsNoCommandLine) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{},
                                             {"fly"},
                                             {"drop"},
                                             {"drop", "a", "b"},
                                             {"list", "a"},
                                             {"list", "--wings"},
                                             {"list", "--nowings"},
                                             {"list", "--timeout"},
                                             {"list", "--timeout=soon"},
                                             {"list", "--json=perhaps"},
                                             {"list", "--nojson=true"},
                                             {"list", "-j"},
                                             {"list", "--stranger=1"}}) {
    const auto line = Parse(words);
    EXPECT_TRUE(IsUsageError(line.status())) << line.status();
  }
}

TEST(CommandLineTest, HelpNeedsNoArguments) {
  EXPECT_TRUE(Parse({"--help"})->help);
  EXPECT_EQ(Parse({"--help"})->command, nullptr);
  const auto line = Parse({"drop", "--help"});
  ASSERT_TRUE(line.ok());
  EXPECT_TRUE(line->help);
  EXPECT_NE(HelpText(line->command, kCommands).find("kvdepot drop THING"), std::string::npos);
  EXPECT_NE(HelpText(nullptr, kCommands).find("drop THING"), std::string::npos);
  EXPECT_NE(HelpText(nullptr, kCommands).find("--timeout"), std::string::npos);
}

TEST(CommandLineTest, OtherErrorsAreNoUsageErrors) {
  EXPECT_FALSE(IsUsageError(absl::InvalidArgumentError("no")));
  EXPECT_FALSE(IsUsageError(absl::OkStatus()));
}

}  // namespace
}  // namespace kvdepot::cli
