#include "server/command_line.h"

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "gpu/regular_file.h"
#include "server/version.h"

ABSL_FLAG(bool, check_config, false,
          "say whether the settings and the files that they name are right, and end: with 0 or 2");
ABSL_FLAG(
    std::string, config, "",
    "file of settings, a line 'name = value' a flag; what is on the command line counts more. "
    "Empty: none");

namespace kvdepot {
namespace {

constexpr uint64_t kConfigBytesMax = uint64_t{1} << 20;

// Flags that are settings; libraries and Abseil have others.
bool IsSetting(const absl::CommandLineFlag& flag) {
  return absl::EndsWith(flag.Filename(), "server/options.cc");
}

absl::Status Set(absl::CommandLineFlag& flag, absl::string_view value) {
  std::string error;
  if (flag.ParseFrom(value, &error)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(flag.Name(), "=", value, ": ", error));
}

// Abseil ends the process with code 1 where a flag is wrong; this daemon promises 2, so that a
// supervisor need not try again. Hence all of them are set here.
absl::Status SetArgument(absl::string_view argument) {
  if (!absl::ConsumePrefix(&argument, "--") && !absl::ConsumePrefix(&argument, "-")) {
    return absl::InvalidArgumentError(absl::StrCat("unexpected argument: ", argument));
  }
  const size_t equals = argument.find('=');
  const absl::string_view name = argument.substr(0, equals);
  // Abseil treats these by name, they are no flags.
  if (name == "version" || absl::StartsWith(name, "help")) return absl::OkStatus();
  absl::CommandLineFlag* const flag = absl::FindCommandLineFlag(name);
  if (flag == nullptr) return absl::InvalidArgumentError(absl::StrCat("unknown flag: --", name));
  if (equals != absl::string_view::npos) {
    const absl::Status status = Set(*flag, argument.substr(equals + 1));
    return status.ok() ? status : absl::InvalidArgumentError(absl::StrCat("--", status.message()));
  }
  if (flag->IsOfType<bool>()) return Set(*flag, "true");
  return absl::InvalidArgumentError(absl::StrCat("--", name, " needs a value: --", name, "=..."));
}

absl::Status SetLine(absl::string_view line, std::set<std::string>* seen) {
  const size_t equals = line.find('=');
  if (equals == absl::string_view::npos)
    return absl::InvalidArgumentError("expected: name = value");
  const absl::string_view name = absl::StripAsciiWhitespace(line.substr(0, equals));
  absl::CommandLineFlag* const flag = absl::FindCommandLineFlag(name);
  if (flag == nullptr || !IsSetting(*flag))
    return absl::InvalidArgumentError(absl::StrCat("unknown setting: ", name));
  if (!seen->insert(std::string(name)).second)
    return absl::InvalidArgumentError(absl::StrCat(name, ": stands on an earlier line already"));
  return Set(*flag, absl::StripAsciiWhitespace(line.substr(equals + 1)));
}

absl::Status SetFile(const std::string& path) {
  const absl::StatusOr<std::string> content = ReadRegularFile(path, kConfigBytesMax);
  if (!content.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("config: ", content.status().message()));
  }
  std::set<std::string> seen;
  int line_number = 0;
  for (absl::string_view line : absl::StrSplit(*content, '\n')) {
    ++line_number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (line.empty()) continue;
    const absl::Status status = SetLine(line, &seen);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("config: ", path, ":", line_number, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

// The program's name and its arguments, --check-config as --check_config: `kvdepot` takes both,
// too.
std::vector<std::string> Words(int argc, char** argv) {
  std::vector<std::string> words(argv, argv + argc);
  for (size_t i = 1; i < words.size(); ++i) {
    std::string& word = words[i];
    for (size_t at = word.find_first_not_of('-'); at < word.size() && word[at] != '='; ++at) {
      if (word[at] == '-') word[at] = '_';
    }
  }
  return words;
}

absl::Status SetArguments(const std::vector<std::string>& words) {
  for (size_t i = 1; i < words.size(); ++i) {
    if (absl::Status status = SetArgument(words[i]); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// Arguments twice, as only they say which file it is.
absl::Status SetAll(const std::vector<std::string>& words) {
  absl::Status status = SetArguments(words);
  const std::string path = absl::GetFlag(FLAGS_config);
  if (!status.ok() || path.empty()) return status;
  status = SetFile(path);
  return status.ok() ? SetArguments(words) : status;
}

}  // namespace

absl::Status ParseCommandLine(int argc, char** argv) {
  absl::SetProgramUsageMessage("keeps attention keys and values compressed and attends over them");
  absl::FlagsUsageConfig config;
  config.contains_helpshort_flags = [](absl::string_view file) {
    return absl::EndsWith(file, "server/options.cc") ||
           absl::EndsWith(file, "server/command_line.cc");
  };
  config.contains_help_flags = config.contains_helpshort_flags;
  config.version_string = [] { return absl::StrCat("kvdepotd ", kVersion, "\n"); };
  absl::SetFlagsUsageConfig(config);
  std::vector<std::string> words = Words(argc, argv);
  absl::Status status = SetAll(words);
  if (!status.ok()) return status;
  // For --help and --version.
  std::vector<char*> pointers;
  pointers.reserve(words.size());
  for (std::string& word : words) pointers.push_back(word.data());
  absl::ParseCommandLine(argc, pointers.data());
  return absl::OkStatus();
}

bool OnlyChecksConfig() { return absl::GetFlag(FLAGS_check_config); }

SettingValues CurrentSettings() {
  SettingValues values;
  for (const auto& named : absl::GetAllFlags()) {
    if (IsSetting(*named.second)) values[std::string(named.first)] = named.second->CurrentValue();
  }
  return values;
}

absl::Status ReparseCommandLine(int argc, char** argv) {
  for (const auto& named : absl::GetAllFlags()) {
    std::string error;
    if (IsSetting(*named.second)) named.second->ParseFrom(named.second->DefaultValue(), &error);
  }
  return SetAll(Words(argc, argv));
}

}  // namespace kvdepot
