#include "server/options.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/flags/reflection.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace kvdepot {
namespace {

MemoryAmount Parse(const std::string& text) {
  MemoryAmount amount;
  std::string error;
  EXPECT_TRUE(AbslParseFlag(text, &amount, &error)) << text << ": " << error;
  return amount;
}

// Every flag keeps the value that it had before the test.
class OptionsTest : public testing::Test {
 protected:
  void Set(const std::string& flag, const std::string& value) {
    std::string error;
    ASSERT_TRUE(absl::FindCommandLineFlag(flag)->ParseFrom(value, &error)) << error;
  }

 private:
  const absl::FlagSaver saver_;
};

TEST_F(OptionsTest, DefaultsAreValid) {
  const Options options = OptionsFromFlags();
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  EXPECT_GE(options.threads, 1);
  EXPECT_EQ(options.listen.substr(0, 7), "unix://");
  EXPECT_EQ(options.metrics_address, "127.0.0.1:9464");
  EXPECT_EQ(options.engine.window_tokens, 64);
}

TEST_F(OptionsTest, FlagsSetTheirFields) {
  Set("threads", "3");
  Set("memory_budget", "2GiB");
  Set("drain_timeout", "5s");
  Set("window_tokens", "128");
  Set("device", "cuda:1");
  Set("slab_bytes", "4194304");
  const Options options = OptionsFromFlags();
  EXPECT_EQ(options.threads, 3);
  EXPECT_EQ(options.memory_budget.Of(1), uint64_t{2} << 30);
  EXPECT_EQ(options.drain_timeout, absl::Seconds(5));
  EXPECT_EQ(options.engine.window_tokens, 128);
  EXPECT_EQ(options.device, "cuda:1");
  EXPECT_EQ(options.slab_bytes, uint64_t{4} << 20);
  EXPECT_TRUE(options.Validate().ok());
}

TEST_F(OptionsTest, ADeviceIsNamedByNumberOrUuid) {
  Options options = OptionsFromFlags();
  for (const char* device : {"auto", "cpu", "cuda:0", "GPU-4a1b"}) {
    options.device = device;
    EXPECT_TRUE(options.Validate().ok()) << device;
  }
  for (const char* device : {"", "cuda", "cuda:", "cuda:-1", "cuda:x", "gpu", "0"}) {
    options.device = device;
    EXPECT_EQ(options.Validate(),
              absl::InvalidArgumentError(
                  absl::StrCat("device: ", device, ", must be auto, cpu, cuda:N or a GPU's UUID")));
  }
}

TEST_F(OptionsTest, AnAmountOfMemoryIsBytesOrAPart) {
  EXPECT_EQ(Parse("4096").Of(1), 4096u);
  EXPECT_EQ(Parse("3KiB").Of(1), 3072u);
  EXPECT_EQ(Parse("512MiB").Of(1), uint64_t{512} << 20);
  EXPECT_EQ(Parse("1TiB").Of(1), uint64_t{1} << 40);
  EXPECT_EQ(Parse("25%").Of(1000), 250u);
  for (const char* text : {"25%", "4096"}) EXPECT_EQ(AbslUnparseFlag(Parse(text)), text);
  for (const char* text :
       {"", "0", "-1", "1.5GiB", "0%", "101%", "nan%", "GiB", "17179869184GiB"}) {
    MemoryAmount amount;
    std::string error;
    EXPECT_FALSE(AbslParseFlag(text, &amount, &error)) << text;
    EXPECT_FALSE(error.empty());
  }
}

TEST_F(OptionsTest, EveryProblemIsReportedAtOnce) {
  Options options = OptionsFromFlags();
  options.device = "tpu";
  options.log_level = "loud";
  options.listen = "0.0.0.0:7000,unix:///run/x.sock";
  options.engine.window_tokens = 65;
  options.engine.layers_max = -1;
  const absl::Status status = options.Validate();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "layers_max: -1, must be 1..4096\n"
            "window_tokens: 65, must be 64..1048576, a multiple of 64\n"
            "listen: 0.0.0.0:7000, must be a Unix socket unless tokens_file and "
            "tls_cert_file are set\n"
            "device: tpu, must be auto, cpu, cuda:N or a GPU's UUID\n"
            "log_level: loud, must be trace, debug, info, warn, error");
}

TEST_F(OptionsTest, WithTokensAndTlsTheDaemonMayListenOnTheNetwork) {
  Options options = OptionsFromFlags();
  options.listen = "0.0.0.0:7000";
  options.tokens_file = "/etc/kvdepot/tokens";
  EXPECT_FALSE(options.Validate().ok());
  options.tls_cert_file = "/etc/kvdepot/cert.pem";
  EXPECT_EQ(options.Validate().message(),
            "tls_key_file: , must be set if and only if tls_cert_file is");
  options.tls_key_file = "/etc/kvdepot/key.pem";
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  options.tls_client_ca_file = "/etc/kvdepot/clients.pem";
  EXPECT_TRUE(options.Validate().ok()) << options.Validate();
  options.listen = "unix:///run/x.sock";
  options.tls_cert_file = options.tls_key_file = "";
  EXPECT_EQ(
      options.Validate().message(),
      "tls_client_ca_file: /etc/kvdepot/clients.pem, must be empty unless tls_cert_file is set");
}

TEST_F(OptionsTest, AnAddressIsNamedOnce) {
  Options options = OptionsFromFlags();
  options.tokens_file = "/etc/kvdepot/tokens";
  options.tls_cert_file = "/etc/kvdepot/cert.pem";
  options.tls_key_file = "/etc/kvdepot/key.pem";
  options.listen = "0.0.0.0:7000,unix:///run/x.sock,0.0.0.0:7000,unix:/run/x.sock";
  EXPECT_EQ(options.Validate().message(),
            "listen: 0.0.0.0:7000, must be named once\n"
            "listen: unix:/run/x.sock, must be named once");
}

TEST_F(OptionsTest, AMessageHoldsWhatTheEngineMaySend) {
  Options options = OptionsFromFlags();
  options.engine.fetch_bytes_max = options.message_bytes_max;
  EXPECT_EQ(options.Validate().message(),
            "message_bytes_max: 33554432, must be 64 KiB more than fetch_bytes_max and than "
            "calibration_bytes_max");
  options = OptionsFromFlags();
  options.message_bytes_max = uint64_t{1} << 31;
  options.rpc_memory_bytes_max = uint64_t{1} << 33;
  EXPECT_EQ(options.Validate().message(),
            "message_bytes_max: 2147483648, must be at most 2147483647");
  options = OptionsFromFlags();
  options.rpc_memory_bytes_max = 4 * options.message_bytes_max - 1;
  EXPECT_EQ(options.Validate().message(),
            "rpc_memory_bytes_max: 134217727, must be at least four times message_bytes_max");
}

}  // namespace
}  // namespace kvdepot
