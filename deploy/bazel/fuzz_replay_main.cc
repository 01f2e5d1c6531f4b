// Runs a fuzz target without libFuzzer: the files named as arguments, then pseudo-random inputs
// and mutations of those files. Input number i depends on (seed, i) alone; after a crash the
// printed number repeats it alone:  <test> --seed=S --only=I [corpus files]
//
// Options: --seed=S (default 1), --runs=N (default 2000), --max_len=BYTES (default 4096),
// --only=I.

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

// What runs now, as text, so that the signal handler has nothing left to format.
char g_current[512] = "before the first input\n";

void SetCurrent(const std::string& what) {
  std::snprintf(g_current, sizeof(g_current), "fuzz replay stopped at %s\n", what.c_str());
}

extern "C" void ReportCurrentInput(int signal_number) {
  size_t length = 0;
  while (g_current[length] != '\0') ++length;
  ssize_t written = write(STDERR_FILENO, g_current, length);
  (void)written;
  std::signal(signal_number, SIG_DFL);
  std::raise(signal_number);
}

void Run(const Input& input) {
  // An exact copy: reading one byte too far is then visible to a sanitizer.
  Input exact(input.begin(), input.end());
  exact.shrink_to_fit();
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

Input RandomBytes(std::mt19937_64& random, size_t size) {
  Input input(size);
  for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
  return input;
}

// One small edit: the kinds that break parsers, not a clever search.
void Mutate(std::mt19937_64& random, size_t max_len, Input& input) {
  const size_t at = input.empty() ? 0 : random() % input.size();
  switch (random() % 6) {
    case 0:  // Flip one bit.
      if (!input.empty()) input[at] = static_cast<uint8_t>(input[at] ^ (1u << (random() % 8)));
      break;
    case 1: {  // Overwrite with a boundary value.
      static constexpr uint8_t kBoundary[] = {0x00, 0x01, 0x7f, 0x80, 0xfe, 0xff};
      const size_t end = std::min(input.size(), at + (size_t{1} << (random() % 4)));
      const uint8_t value = kBoundary[random() % sizeof(kBoundary)];
      for (size_t i = at; i < end; ++i) input[i] = value;
      break;
    }
    case 2:  // Cut the end off.
      input.resize(at);
      break;
    case 3: {  // Insert random bytes.
      const Input extra = RandomBytes(random, 1 + random() % 16);
      input.insert(input.begin() + static_cast<std::ptrdiff_t>(at), extra.begin(), extra.end());
      break;
    }
    case 4: {  // Remove a piece.
      const size_t end = std::min(input.size(), at + 1 + random() % 16);
      input.erase(input.begin() + static_cast<std::ptrdiff_t>(at),
                  input.begin() + static_cast<std::ptrdiff_t>(end));
      break;
    }
    default:  // Overwrite one byte.
      if (!input.empty()) input[at] = static_cast<uint8_t>(random());
  }
  if (input.size() > max_len) input.resize(max_len);
}

Input MakeInput(uint64_t seed, uint64_t index, size_t max_len, const std::vector<Input>& corpus) {
  std::seed_seq sequence{seed, seed >> 32, index, index >> 32};
  std::mt19937_64 random(sequence);
  if (corpus.empty() || random() % 4 == 0) {
    // Short inputs are where most length checks are: sizes are spread over powers of two.
    const size_t limit = std::min(max_len, size_t{1} << (random() % 13));
    return RandomBytes(random, random() % (limit + 1));
  }
  Input input = corpus[random() % corpus.size()];
  for (uint64_t edits = 1 + random() % 4; edits > 0; --edits) Mutate(random, max_len, input);
  return input;
}

bool Flag(const std::string& argument, const std::string& name, uint64_t& value) {
  const std::string prefix = "--" + name + "=";
  if (argument.compare(0, prefix.size(), prefix) != 0) return false;
  value = std::strtoull(argument.c_str() + prefix.size(), nullptr, 10);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  constexpr uint64_t kAll = UINT64_MAX;
  uint64_t seed = 1, runs = 2000, max_len = 4096, only = kAll;
  std::vector<Input> corpus;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (Flag(argument, "seed", seed) || Flag(argument, "runs", runs) ||
        Flag(argument, "max_len", max_len) || Flag(argument, "only", only)) {
      continue;
    }
    std::ifstream file(argument, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read corpus file %s\n", argument.c_str());
      return 2;
    }
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    names.push_back(argument);
  }
  for (int signal_number : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL}) {
    std::signal(signal_number, ReportCurrentInput);
  }
  std::printf("fuzz replay: seed=%llu, %zu corpus files, %llu generated inputs\n",
              static_cast<unsigned long long>(seed), corpus.size(),
              static_cast<unsigned long long>(only == kAll ? runs : 1));
  std::fflush(stdout);

  for (size_t i = 0; i < corpus.size() && only == kAll; ++i) {
    SetCurrent("corpus file " + names[i]);
    Run(corpus[i]);
  }
  const uint64_t begin = only == kAll ? 0 : only;
  const uint64_t end = only == kAll ? runs : only + 1;
  for (uint64_t index = begin; index < end; ++index) {
    SetCurrent("input --seed=" + std::to_string(seed) + " --only=" + std::to_string(index));
    Run(MakeInput(seed, index, max_len, corpus));
  }
  return 0;
}
