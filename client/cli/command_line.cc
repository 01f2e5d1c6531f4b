#include "client/cli/command_line.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/types/optional.h"
#include "client/table.h"

namespace kvdepot::cli {
namespace {

constexpr char kUsagePayload[] = "kvdepot/usage";
constexpr char kFolder[] = "client/cli/";

// The source file of a command, without its extension: "bench_codec" of `bench codec`.
std::string StemOf(const Command& command) {
  return absl::StrReplaceAll(command.name, {{" ", "_"}});
}

bool IsDefinedIn(const absl::CommandLineFlag& flag, absl::string_view stem) {
  return absl::EndsWith(flag.Filename(), absl::StrCat(kFolder, stem, ".cc"));
}

// As it is written on the command line.
absl::string_view WrittenName(const absl::CommandLineFlag& flag, absl::string_view stem) {
  absl::string_view name = flag.Name();
  if (IsDefinedIn(flag, stem)) absl::ConsumePrefix(&name, absl::StrCat(stem, "_"));
  return name;
}

bool IsGlobal(const absl::CommandLineFlag& flag) { return IsDefinedIn(flag, "daemon_flags"); }

struct FlagWord {
  std::string written;  // With its dashes.
  std::string name;
  absl::optional<std::string> value;
};

FlagWord SplitFlag(absl::string_view word) {
  FlagWord flag;
  flag.written = std::string(word);
  absl::ConsumePrefix(&word, "--");
  const size_t equals = word.find('=');
  flag.name = absl::StrReplaceAll(word.substr(0, equals), {{"-", "_"}});
  if (equals != absl::string_view::npos) flag.value = std::string(word.substr(equals + 1));
  return flag;
}

// A command's own flag goes before one of the same name elsewhere.
absl::CommandLineFlag* FindByName(absl::string_view name, absl::string_view stem) {
  absl::CommandLineFlag* own = absl::FindCommandLineFlag(absl::StrCat(stem, "_", name));
  if (own != nullptr && IsDefinedIn(*own, stem)) return own;
  return absl::FindCommandLineFlag(name);
}

// Finds --name, and --noname of a boolean, whose value it then fills in.
absl::CommandLineFlag* FindFlag(absl::string_view stem, FlagWord* word) {
  absl::CommandLineFlag* flag = FindByName(word->name, stem);
  if (flag != nullptr) {
    if (flag->IsOfType<bool>() && !word->value) word->value = "true";
    return flag;
  }
  absl::string_view name = word->name;
  if (word->value || !absl::ConsumePrefix(&name, "no")) return nullptr;
  flag = FindByName(name, stem);
  if (flag == nullptr || !flag->IsOfType<bool>()) return nullptr;
  word->value = "false";
  return flag;
}

// The words of a command line, before it is known what they mean.
struct Words {
  std::vector<FlagWord> flags;
  Arguments positional;
  bool help = false;
};

// Whether a flag's value is the next word is the same for all commands that have such a flag.
bool TakesNextWord(FlagWord word, absl::Span<const Command> commands) {
  if (word.value) return false;
  for (const Command& command : commands) {
    if (FindFlag(StemOf(command), &word) != nullptr) return !word.value;
  }
  return false;
}

absl::StatusOr<Words> SplitWords(absl::Span<const std::string> words,
                                 absl::Span<const Command> commands) {
  Words result;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--") {
      result.positional.insert(result.positional.end(), words.begin() + i + 1, words.end());
      break;
    }
    if (words[i] == "--help" || words[i] == "-h") {
      result.help = true;
      continue;
    }
    if (!absl::StartsWith(words[i], "-")) {
      result.positional.push_back(words[i]);
      continue;
    }
    FlagWord flag = SplitFlag(words[i]);
    if (TakesNextWord(flag, commands)) {
      if (i + 1 == words.size()) return UsageError(absl::StrCat(words[i], " lacks its value"));
      flag.value = words[++i];
    }
    result.flags.push_back(std::move(flag));
  }
  return result;
}

// Of `bench` and `bench codec` the one that has more words in common. Null: none is there.
const Command* FindCommand(const Arguments& positional, absl::Span<const Command> commands) {
  const Command* found = nullptr;
  for (const Command& command : commands) {
    const std::vector<std::string> name = absl::StrSplit(command.name, ' ');
    if (name.size() <= positional.size() &&
        std::equal(name.begin(), name.end(), positional.begin()) &&
        (found == nullptr || command.name.size() > found->name.size())) {
      found = &command;
    }
  }
  return found;
}

std::string UsageLine(const Command& command) {
  return absl::StrCat("kvdepot ", command.name, command.arguments.empty() ? "" : " ",
                      absl::StrJoin(command.arguments, " "), " [flags]");
}

// Sorted by name.
std::string FlagsText(absl::string_view stem) {
  std::map<absl::string_view, absl::CommandLineFlag*> flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (IsDefinedIn(*flag, stem)) flags[name] = flag;
  }
  Table table({{""}, {""}});
  for (const auto& [name, flag] : flags) {
    const std::string initial = flag->DefaultValue();
    table.AddRow({absl::StrCat("  --", WrittenName(*flag, stem)),
                  absl::StrCat(flag->Help(), initial.empty() ? "" : " Default: ", initial)});
  }
  return table.ToString();
}

absl::Status CheckArguments(const CommandLine& line,
                            absl::Span<absl::CommandLineFlag* const> flags) {
  const Command& command = *line.command;
  for (const absl::CommandLineFlag* flag : flags) {
    if (!IsGlobal(*flag) && !IsDefinedIn(*flag, StemOf(command))) {
      return UsageError(absl::StrCat("--", flag->Name(), " is no flag of `", command.name, "`"));
    }
  }
  if (!line.help && line.arguments.size() != command.arguments.size()) {
    return UsageError(absl::StrCat("usage: ", UsageLine(command)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status UsageError(absl::string_view message) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kUsagePayload, absl::Cord());
  return status;
}

bool IsUsageError(const absl::Status& status) {
  return status.GetPayload(kUsagePayload).has_value();
}

absl::StatusOr<CommandLine> ParseCommandLine(absl::Span<const std::string> words,
                                             absl::Span<const Command> commands) {
  absl::StatusOr<Words> split = SplitWords(words, commands);
  if (!split.ok()) return split.status();
  CommandLine line;
  line.help = split->help;
  line.command = FindCommand(split->positional, commands);
  const std::string stem = line.command == nullptr ? "" : StemOf(*line.command);

  std::vector<absl::CommandLineFlag*> flags;
  for (FlagWord& word : split->flags) {
    absl::CommandLineFlag* flag = FindFlag(stem, &word);
    if (flag == nullptr) return UsageError(absl::StrCat("unknown flag ", word.written));
    if (!word.value) return UsageError(absl::StrCat(word.written, " lacks its value"));
    std::string problem;
    if (!flag->ParseFrom(*word.value, &problem)) return UsageError(problem);
    flags.push_back(flag);
  }

  const Arguments& positional = split->positional;
  if (positional.empty()) {
    if (line.help) return line;
    return UsageError("no command; `kvdepot --help` lists them");
  }
  if (line.command == nullptr) {
    return UsageError(
        absl::StrCat("unknown command `", positional.front(), "`; `kvdepot --help` lists all"));
  }
  const auto name_words = 1 + std::count(line.command->name.begin(), line.command->name.end(), ' ');
  line.arguments.assign(positional.begin() + name_words, positional.end());
  const absl::Status status = CheckArguments(line, flags);
  if (!status.ok()) return status;
  return line;
}

std::string HelpText(const Command* command, absl::Span<const Command> commands) {
  const std::string global = absl::StrCat("\nflags of every command:\n", FlagsText("daemon_flags"),
                                          "\nexit codes: 0 ok, 1 failed, 2 usage\n");
  if (command != nullptr) {
    const std::string own = FlagsText(StemOf(*command));
    return absl::StrCat("usage: ", UsageLine(*command), "\n\n", command->summary, "\n",
                        own.empty() ? "" : "\nflags:\n", own, global);
  }
  Table table({{""}, {""}});
  for (const Command& each : commands) {
    table.AddRow({absl::StrCat("  ", each.name, " ", absl::StrJoin(each.arguments, " ")),
                  std::string(each.summary)});
  }
  return absl::StrCat("usage: kvdepot COMMAND [flags]\n\ncommands:\n", table.ToString(),
                      "\n`kvdepot COMMAND --help` explains one.\n", global);
}

}  // namespace kvdepot::cli
