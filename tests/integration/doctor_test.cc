// `kvdepot doctor` on daemons that are misconfigured as they are in production: what it says, what
// it tells to do, and that it blames nothing else.
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "tests/integration/daemon_process.h"
#include "tests/server/certificates.h"
#include "tests/server/services/test_daemon.h"
#include "tests/server/token_file.h"

namespace kvdepot {
namespace {

struct Line {
  std::string check;
  std::string detail;
  std::string hint;
};

struct Report {
  int exit_code = -1;
  std::string text;
  std::vector<Line> failures;
  std::vector<std::string> notes;
};

std::string CheckOf(absl::string_view line) {
  return std::string(absl::StripAsciiWhitespace(line.substr(6, 14)));
}

Report ReportOf(int exit_code, const std::string& text) {
  Report report;
  report.exit_code = exit_code;
  report.text = text;
  Line* failure = nullptr;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StrContains(line, "hint: ")) {
      if (failure != nullptr) failure->hint = std::string(line);
      continue;
    }
    failure = nullptr;
    if (absl::StartsWith(line, "FAIL  ")) {
      failure =
          &report.failures.emplace_back(Line{CheckOf(line), std::string(line.substr(20)), ""});
    } else if (absl::StartsWith(line, "note  ")) {
      report.notes.push_back(CheckOf(line));
    }
  }
  return report;
}

// `prepare` runs in the new process. What it does is inherited by the program.
Report Doctor(
    std::vector<std::string> flags, void (*prepare)() = [] {}) {
  flags.insert(flags.begin(), {"client/cli/kvdepot", "doctor", "--timeout=10s"});
  std::vector<char*> arguments;
  arguments.reserve(flags.size() + 1);
  for (std::string& flag : flags) arguments.push_back(flag.data());
  arguments.push_back(nullptr);
  int output[2];
  EXPECT_EQ(pipe(output), 0);
  const pid_t process = fork();
  if (process == 0) {
    dup2(output[1], STDOUT_FILENO);
    prepare();
    execv(arguments[0], arguments.data());
    _exit(127);
  }
  close(output[1]);
  std::string text;
  char part[4096];
  for (ssize_t count; (count = read(output[0], part, sizeof(part))) > 0;) {
    text.append(part, static_cast<size_t>(count));
  }
  close(output[0]);
  int state = 0;
  EXPECT_EQ(waitpid(process, &state, 0), process);
  return ReportOf(WIFEXITED(state) ? WEXITSTATUS(state) : -1, text);
}

void ExpectHealthy(const Report& report) {
  EXPECT_EQ(report.exit_code, 0) << report.text;
  EXPECT_TRUE(report.failures.empty()) << report.text;
  // These daemons compute on the CPU: worth a note where there is a GPU.
  std::vector<std::string> notes;
  if (access("/dev/nvidia0", F_OK) == 0) notes.push_back("device");
  EXPECT_EQ(report.notes, notes) << report.text;
}

// That check fails, says this, and its hint tells that.
void ExpectFinding(const Report& report, const std::string& check, const std::string& detail,
                   const std::string& hint) {
  EXPECT_EQ(report.exit_code, 1) << report.text;
  for (const Line& failure : report.failures) {
    if (failure.check != check) continue;
    EXPECT_TRUE(absl::StrContains(failure.detail, detail)) << report.text;
    EXPECT_TRUE(absl::StrContains(failure.hint, hint)) << report.text;
    return;
  }
  ADD_FAILURE() << "no failure of " << check << ":\n" << report.text;
}

void ExpectOnlyFinding(const Report& report, const std::string& check, const std::string& detail,
                       const std::string& hint) {
  ExpectFinding(report, check, detail, hint);
  EXPECT_EQ(report.failures.size(), 1u) << report.text;
}

// Even root may then open no more than its user may.
void DropCapabilities() {
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability) >= 0; ++capability) {
    prctl(PR_CAPBSET_DROP, capability);
  }
}

// As seccomp profiles of containers do that are older than the call.
void ForbidPidfdOpen() {
  sock_filter rules[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {sizeof(rules) / sizeof(rules[0]), rules};
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

class DoctorTest : public ::testing::Test {
 protected:
  void Serve(const TestDaemon::Change& change = [](Options&, const std::string&) {}) {
    daemon_ = std::make_unique<TestDaemon>([&](Options& options, const std::string& folder) {
      InHostMemory(options, folder);
      folder_ = folder;
      change(options, folder);
      options_ = options;
    });
  }
  // With alice's token, "abc", on the Unix socket.
  void ServeWithTokens(const std::string& mapping_tenants) {
    Serve([&](Options& options, const std::string& folder) {
      options.tokens_file = folder + "/tokens";
      options.mapping_tenants = mapping_tenants;
      ReplaceFile(options.tokens_file, kAliceLine);
      ReplaceFile(folder + "/token", "abc\n");
    });
  }
  // By TCP as well.
  void ServeTls(const Certificate& certificate, const std::string& client_authorities = "") {
    Serve([&](Options& options, const std::string& folder) {
      options.tokens_file = folder + "/tokens";
      ReplaceFile(options.tokens_file, kAliceLine);
      ReplaceFile(folder + "/token", "abc\n");
      ReplaceFile(folder + "/ca.pem", authority_.certificate());
      options.tls_cert_file = folder + "/cert.pem";
      options.tls_key_file = folder + "/key.pem";
      ReplaceFile(options.tls_cert_file, certificate.certificate);
      ReplaceFile(options.tls_key_file, certificate.key);
      if (!client_authorities.empty()) {
        options.tls_client_ca_file = folder + "/clients.pem";
        ReplaceFile(options.tls_client_ca_file, client_authorities);
      }
      options.metrics_address = "127.0.0.1:0";
      options.listen += ",127.0.0.1:0";
    });
  }
  std::string UnixTarget() const { return absl::StrCat("--target=", folder_, "/socket"); }
  std::string TcpTarget() const {
    const std::string& address = daemon_->server().addresses()[1];
    return absl::StrCat("--target=localhost", address.substr(address.rfind(':')));
  }
  std::string Flag(const std::string& flag, const std::string& file) const {
    return absl::StrCat("--", flag, "=", folder_, "/", file);
  }
  Report DoctorByTls(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> flags = {TcpTarget(), Flag("token_file", "token"),
                                      Flag("ca_file", "ca.pem")};
    flags.insert(flags.end(), more.begin(), more.end());
    return Doctor(flags);
  }
  // Until nothing more fits.
  void Fill() {
    const v1::Session session = daemon_->CreateSession("large");
    int tokens = 0;
    while (daemon_->AppendTokens(session, tokens, 16).ok()) tokens += 16;
    ASSERT_GT(tokens, 0);
  }

  const Authority authority_;
  std::string folder_;
  Options options_;
  std::unique_ptr<TestDaemon> daemon_;
};

TEST_F(DoctorTest, NothingIsWrongWithAHealthyDaemon) {
  Serve();
  ExpectHealthy(Doctor({UnixTarget()}));
  ServeWithTokens("alice");
  ExpectHealthy(Doctor({UnixTarget(), Flag("token_file", "token")}));
  ServeTls(authority_.Issue("localhost"));
  ExpectHealthy(DoctorByTls());
  const Authority clients;
  const Certificate own = clients.Issue("worker");
  ServeTls(authority_.Issue("localhost"), clients.certificate());
  ReplaceFile(folder_ + "/own.pem", own.certificate);
  ReplaceFile(folder_ + "/own.key", own.key);
  ExpectHealthy(DoctorByTls({Flag("cert_file", "own.pem"), Flag("key_file", "own.key")}));
}

// 1. The socket.

TEST_F(DoctorTest, ASocketThatNobodyMade) {
  ExpectOnlyFinding(Doctor({"--target=/tmp/kvdepot-nobody/socket"}), "socket",
                    "/tmp/kvdepot-nobody/socket does not exist here", "start the daemon");
}

TEST_F(DoctorTest, ASocketThatADeadDaemonLeft) {
  DaemonProcess daemon({"--device=cpu"});
  ASSERT_NE(daemon.OpenLease(), nullptr);
  daemon.Kill();
  ExpectOnlyFinding(Doctor({absl::StrCat("--target=", daemon.target())}), "socket",
                    "the daemon that made it has ended", "start it again");
}

// Its mode keeps this user out, as that of a socket of another user would.
TEST_F(DoctorTest, ASocketThatThisUserMayNotOpen) {
  Serve();
  const std::string path = folder_ + "/socket";
  ASSERT_EQ(chmod(path.c_str(), 0), 0);
  ExpectOnlyFinding(
      Doctor({UnixTarget()}, &DropCapabilities), "socket",
      absl::StrCat("mode 0000, and this process is user ", geteuid()),
      absl::StrCat("run it as user ", geteuid(), " (runAsUser), or start the daemon"));
  ASSERT_EQ(chmod(path.c_str(), 0060), 0);
  ExpectOnlyFinding(Doctor({UnixTarget()}, &DropCapabilities), "socket", "mode 0060",
                    absl::StrCat("into group ", getegid(), " (supplementalGroups)"));
}

// 2. The token.

TEST_F(DoctorTest, ATokenThatIsMissing) {
  ServeWithTokens("alice");
  ExpectOnlyFinding(Doctor({UnixTarget()}), "connection",
                    "the daemon wants a token, and none was sent", "--token_file=FILE");
}

TEST_F(DoctorTest, ATokenThatWasTakenBack) {
  ServeWithTokens("alice");
  ReplaceFile(options_.tokens_file, kBobLine);
  ASSERT_TRUE(daemon_->server().ReloadTokens().ok());
  ExpectOnlyFinding(Doctor({UnixTarget(), Flag("token_file", "token")}), "connection",
                    absl::StrCat("does not know the token in ", folder_, "/token"),
                    "| sha256sum; the daemon reads it again by itself");
}

TEST_F(DoctorTest, ATokenFileThatIsNotThere) {
  ServeWithTokens("alice");
  ExpectOnlyFinding(Doctor({UnixTarget(), Flag("token_file", "none")}), "connection",
                    absl::StrCat("cannot open ", folder_, "/none"), "");
  const std::string name(NAME_MAX + 1, 'x');
  ExpectOnlyFinding(Doctor({UnixTarget(), Flag("token_file", name)}), "connection",
                    absl::StrCat("cannot open ", folder_, "/", name), "");
}

// 3. TLS.

TEST_F(DoctorTest, NoAuthorityIsNamed) {
  ServeTls(authority_.Issue("localhost"));
  ExpectOnlyFinding(Doctor({TcpTarget(), Flag("token_file", "token")}), "connection", "speaks TLS",
                    "--ca_file=FILE");
}

TEST_F(DoctorTest, AnotherAuthorityIsNamed) {
  ServeTls(authority_.Issue("localhost"));
  ReplaceFile(folder_ + "/ca.pem", Authority().certificate());
  ExpectOnlyFinding(DoctorByTls(), "connection",
                    absl::StrCat("is not by an authority in ", folder_, "/ca.pem"),
                    "the authority that issued the daemon's tls_cert_file");
}

TEST_F(DoctorTest, ACertificateOfAnotherHost) {
  ServeTls(authority_.Issue("elsewhere.example"));
  ExpectOnlyFinding(DoctorByTls(), "connection", "is for DNS:elsewhere.example",
                    "name one of those in --target");
}

TEST_F(DoctorTest, ACertificateThatHasExpired) {
  // Good when the daemon starts, and not renewed. It ends maybe between two checks of one run.
  ServeTls(authority_.Issue("localhost", absl::Seconds(15)));
  const absl::Time deadline = absl::Now() + absl::Seconds(45);
  Report report = DoctorByTls();
  while (absl::StrContains(report.text, "ok    connection") && absl::Now() < deadline)
    report = DoctorByTls();
  ExpectOnlyFinding(report, "connection", "has expired (DNS:localhost)", "renew the daemon's");
}

TEST_F(DoctorTest, ClientsWantACertificate) {
  const Authority clients;
  ServeTls(authority_.Issue("localhost"), clients.certificate());
  ExpectOnlyFinding(DoctorByTls(), "connection",
                    "the daemon wants a certificate of its clients, and none was shown",
                    "--cert_file=FILE --key_file=FILE");
  const Certificate foreign = authority_.Issue("worker");
  ReplaceFile(folder_ + "/own.pem", foreign.certificate);
  ReplaceFile(folder_ + "/own.key", foreign.key);
  ExpectOnlyFinding(DoctorByTls({Flag("cert_file", "own.pem"), Flag("key_file", "own.key")}),
                    "connection", absl::StrCat("refuses the certificate in ", folder_, "/own.pem"),
                    "tls_client_ca_file");
}

TEST_F(DoctorTest, ThePortOfMetricsAndOneOfNobody) {
  ServeTls(authority_.Issue("localhost"));
  const std::string metrics = absl::StrCat("--target=", daemon_->server().metrics_address());
  ExpectOnlyFinding(Doctor({metrics, Flag("ca_file", "ca.pem")}), "connection",
                    "does not speak TLS", "the port of the daemon's --listen");
  const std::string target = TcpTarget();
  daemon_.reset();
  ExpectOnlyFinding(Doctor({target}), "connection", "Connection refused", "--listen of the daemon");
}

// 4. What keeps a container, or a tenant, from mapping.

TEST_F(DoctorTest, AContainerThatMayNotProveWhoItIs) {
  Serve();
  const Report report = Doctor({UnixTarget()}, &ForbidPidfdOpen);
  ExpectFinding(report, "process", "the container's seccomp profile must allow pidfd_open", "");
  ExpectFinding(report, "mapping", "pidfd: Operation not permitted",
                "let its seccomp profile allow pidfd_open");
  EXPECT_EQ(report.failures.size(), 2u) << report.text;
}

TEST_F(DoctorTest, AContainerThatHasTheSocketWithoutItsFolder) {
  Serve();
  ASSERT_EQ(std::rename((folder_ + "/socket.life").c_str(), (folder_ + "/hidden").c_str()), 0);
  ExpectOnlyFinding(Doctor({UnixTarget()}), "mapping",
                    "life_socket: ", "share the whole folder of the daemon's socket");
  ASSERT_EQ(std::rename((folder_ + "/hidden").c_str(), (folder_ + "/socket.life").c_str()), 0);
}

TEST_F(DoctorTest, ATenantThatMayNotMap) {
  ServeWithTokens("bob");
  ExpectOnlyFinding(Doctor({UnixTarget(), Flag("token_file", "token")}), "mapping",
                    "tenant: alice, is none of the daemon's mapping_tenants",
                    "with this tenant in --mapping_tenants");
}

// 5. Memory.

TEST_F(DoctorTest, ABudgetThatIsFull) {
  Serve([](Options& options, const std::string&) { options.memory_budget.bytes = 4 << 20; });
  Fill();
  const Report report = Doctor({UnixTarget()});
  ExpectFinding(report, "memory", "refused with RESOURCE_EXHAUSTED, budget_bytes",
                "(kvdepot budget AMOUNT)");
  ExpectFinding(report, "planes codec", "budget_bytes", "make room");
  EXPECT_FALSE(absl::StrContains(report.text, "bug")) << report.text;
}

TEST_F(DoctorTest, AQuotaThatIsUsedUp) {
  Serve([](Options& options, const std::string&) {
    options.engine.tenant_quota_bytes = uint64_t{4} << 20;
  });
  Fill();
  const Report report = Doctor({UnixTarget()});
  ExpectFinding(report, "memory", "refused with RESOURCE_EXHAUSTED, tenant_quota_bytes",
                "--tenant_quota_bytes");
  EXPECT_FALSE(absl::StrContains(report.text, "bug")) << report.text;
}

}  // namespace
}  // namespace kvdepot
