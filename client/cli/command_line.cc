#include "client/cli/command_line.h"

#include <algorithm>
#include <map>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/types/optional.h"
#include "client/table.h"

namespace kvdepot::cli {
namespace {

constexpr char kUsagePayload[] = "kvdepot/usage";
constexpr char kFolder[] = "client/cli/";

bool IsDefinedIn(const absl::CommandLineFlag& flag, absl::string_view stem) {
  return absl::EndsWith(flag.Filename(), absl::StrCat(kFolder, stem, ".cc"));
}

bool IsGlobal(const absl::CommandLineFlag& flag) { return IsDefinedIn(flag, "daemon_flags"); }

struct FlagWord {
  std::string name;
  absl::optional<std::string> value;
};

FlagWord SplitFlag(absl::string_view word) {
  absl::ConsumePrefix(&word, "--");
  const size_t equals = word.find('=');
  if (equals == absl::string_view::npos) return {std::string(word), absl::nullopt};
  return {std::string(word.substr(0, equals)), std::string(word.substr(equals + 1))};
}

// Finds --name, and --noname of a boolean, whose value it then fills in.
absl::CommandLineFlag* FindFlag(FlagWord* word) {
  absl::CommandLineFlag* flag = absl::FindCommandLineFlag(word->name);
  if (flag != nullptr) {
    if (flag->IsOfType<bool>() && !word->value) word->value = "true";
    return flag;
  }
  absl::string_view name = word->name;
  if (word->value || !absl::ConsumePrefix(&name, "no")) return nullptr;
  flag = absl::FindCommandLineFlag(name);
  if (flag == nullptr || !flag->IsOfType<bool>()) return nullptr;
  word->value = "false";
  return flag;
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
    table.AddRow({absl::StrCat("  --", name),
                  absl::StrCat(flag->Help(), initial.empty() ? "" : " Default: ", initial)});
  }
  return table.ToString();
}

absl::Status CheckArguments(const CommandLine& line,
                            absl::Span<absl::CommandLineFlag* const> flags) {
  const Command& command = *line.command;
  for (const absl::CommandLineFlag* flag : flags) {
    if (!IsGlobal(*flag) && !IsDefinedIn(*flag, command.name)) {
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
  CommandLine line;
  std::vector<absl::CommandLineFlag*> flags;
  Arguments positional;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--") {
      positional.insert(positional.end(), words.begin() + i + 1, words.end());
      break;
    }
    if (words[i] == "--help" || words[i] == "-h") {
      line.help = true;
      continue;
    }
    if (!absl::StartsWith(words[i], "-")) {
      positional.push_back(words[i]);
      continue;
    }
    FlagWord word = SplitFlag(words[i]);
    absl::CommandLineFlag* flag = FindFlag(&word);
    if (flag == nullptr) return UsageError(absl::StrCat("unknown flag ", words[i]));
    if (!word.value) {
      if (i + 1 == words.size()) return UsageError(absl::StrCat(words[i], " lacks its value"));
      word.value = words[++i];
    }
    std::string problem;
    if (!flag->ParseFrom(*word.value, &problem)) return UsageError(problem);
    flags.push_back(flag);
  }

  if (positional.empty()) {
    if (line.help) return line;
    return UsageError("no command; `kvdepot --help` lists them");
  }
  const auto command = std::find_if(commands.begin(), commands.end(),
                                    [&](const Command& c) { return c.name == positional.front(); });
  if (command == commands.end()) {
    return UsageError(
        absl::StrCat("unknown command `", positional.front(), "`; `kvdepot --help` lists all"));
  }
  line.command = &*command;
  line.arguments.assign(positional.begin() + 1, positional.end());
  const absl::Status status = CheckArguments(line, flags);
  if (!status.ok()) return status;
  return line;
}

std::string HelpText(const Command* command, absl::Span<const Command> commands) {
  const std::string global = absl::StrCat("\nflags of every command:\n", FlagsText("daemon_flags"),
                                          "\nexit codes: 0 ok, 1 failed, 2 usage\n");
  if (command != nullptr) {
    const std::string own = FlagsText(command->name);
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
