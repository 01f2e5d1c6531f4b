"""The program itself: exit codes, messages, log lines, signals, pages."""

import grp
import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import unittest
import unittest.mock
import urllib.error
import urllib.request

DAEMON = "server/kvdepotd"
# The same tests run on a GPU where this names one.
DEVICE = os.environ.get("KVDEPOT_TEST_DEVICE", "cpu")


def run(*flags):
    """Runs the daemon to its end: (exit code, stdout, stderr)."""
    done = subprocess.run([DAEMON, *flags], capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


class Daemon:
    """A running daemon; `events` holds the log lines before the one that says it serves."""

    def __init__(self, folder, *flags, first_events=0):
        self.process = subprocess.Popen(
            [DAEMON, f"--listen=unix://{folder}/new/socket", "--metrics_address=127.0.0.1:0",
             "--memory_budget=16MiB", f"--device={DEVICE}", *flags],
            stderr=subprocess.PIPE, text=True)
        self.events = [self.process.stderr.readline() for _ in range(first_events)]
        self.started = self.process.stderr.readline()
        self.pages = "http://" + re.search(r"metrics=(\S+)", self.started).group(1)

    def page(self, path):
        try:
            with urllib.request.urlopen(self.pages + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def stop(self, number=signal.SIGTERM):
        """Exit code and what was logged since the start."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        return self.process.returncode, rest


class KvdepotdTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="kvdepotd-", dir="/tmp")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def test_version(self):
        code, out, _ = run("--version")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"kvdepotd \d+\.\d+\.\d+")

    def test_help_lists_flags(self):
        _, out, _ = run("--help")
        self.assertIn("--memory_budget", out)

    def pipe(self) -> str:
        path = f"{self.folder}/pipe"
        os.mkfifo(path)
        return path

    def test_wrong_options_exit_with_2_and_say_which(self):
        for flag, words in {
            "--nonsense=1": "--nonsense",
            "--threads=many": "--threads=many",
            "--threads": "--threads",
            "word": "word",
            "--listen=127.0.0.1:0": "listen: 127.0.0.1:0",
            "--device=tpu": "device: tpu",
            "--memory_budget=lots": "--memory_budget=lots",
            "--metrics_address=127.0.0.1:0,0.0.0.0:0": "metrics_address: 127.0.0.1:0,0.0.0.0:0",
            "--metrics_address=:9464": "metrics_address: :9464",
            "--metrics_address=127.0.0.1:99999": "metrics_address: 127.0.0.1:99999",
            "--metrics_address=127.0.0.1:9464r": "metrics_address: 127.0.0.1:9464r",
            "--config=/tmp": "config: /tmp: is no regular file",
            f"--config={self.pipe()}": "is no regular file",
        }.items():
            code, _, err = run(flag)
            self.assertEqual(code, 2, flag)
            self.assertIn(words, err)
            self.assertEqual(len(err.splitlines()), 1, err)

    def test_failing_to_start_exits_with_1(self):
        code, _, err = run("--listen=unix:///nonexistent/a/socket", "--metrics_address=",
                           "--device=cpu")
        self.assertEqual(code, 1)
        self.assertRegex(err, r"^kvdepotd: listen: /nonexistent/a: ")
        self.assertEqual(len(err.splitlines()), 1, err)

    def test_a_gpu_that_does_not_work_is_an_error(self):
        code, _, err = run(f"--listen=unix://{self.folder}/socket", "--metrics_address=",
                           "--device=cuda:99")
        self.assertEqual(code, 1)
        self.assertRegex(err, r"^kvdepotd: device: cuda:99, ")
        self.assertEqual(len(err.splitlines()), 1, err)

    def test_a_bad_calibration_file_is_named(self):
        with open(f"{self.folder}/bad.binpb", "wb") as file:
            file.write(b"\xff")
        code, _, err = run(f"--listen=unix://{self.folder}/socket", "--metrics_address=",
                           f"--calibrations_dir={self.folder}")
        self.assertEqual(code, 1)
        self.assertIn("bad.binpb: file: 1 bytes", err)

    def test_life(self):
        daemon = Daemon(self.folder)
        backend = "backend=cpu" if DEVICE == "cpu" else "backend=cuda"
        for field in ("event=started", "version=", "pid=", backend, "device=",
                      "budget_bytes=16777216", "epoch="):
            self.assertIn(field, daemon.started)
        self.assertEqual(os.stat(f"{self.folder}/new").st_mode & 0o777, 0o700)
        self.assertEqual(os.stat(f"{self.folder}/new/socket").st_mode & 0o777, 0o600)
        self.assertEqual(daemon.page("/healthz"), (200, "ok\n"))
        self.assertEqual(daemon.page("/readyz"), (200, "ready\n"))
        code, text = daemon.page("/metrics")
        self.assertEqual(code, 200)
        self.assertIn("kvdepot_memory_budget_bytes 16777216", text)
        self.assertIn('kvdepot_rpc_handled_total{code="OK",method="Attend"} 0', text)
        code, rest = daemon.stop()
        self.assertEqual(code, 0)
        self.assertIn("event=draining", rest)
        self.assertRegex(rest, r"event=drained seconds=\S+ calls_cut=0 sessions_not_durable=0 tokens_not_durable=0 "
                               r"bytes_not_durable=0\n")
        self.assertFalse(os.path.exists(f"{self.folder}/new/socket"))

    def test_tells_systemd_what_it_does(self):
        for name in (f"{self.folder}/notify", f"@kvdepot-test-{os.getpid()}"):
            manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self.addCleanup(manager.close)
            manager.bind(name.replace("@", "\0", 1))
            manager.settimeout(30)
            with unittest.mock.patch.dict(os.environ, NOTIFY_SOCKET=name):
                daemon = Daemon(self.folder)
            self.assertEqual(manager.recv(1000).decode(),
                             f"READY=1\nSTATUS=serves on unix://{self.folder}/new/socket")
            daemon.process.send_signal(signal.SIGHUP)
            self.assertRegex(manager.recv(1000).decode(), r"^RELOADING=1\nMONOTONIC_USEC=\d+$")
            self.assertIn("READY=1", manager.recv(1000).decode())
            self.assertEqual(daemon.stop()[0], 0)
            self.assertIn("STOPPING=1", manager.recv(1000).decode())

    def test_leaves_no_core_dump_unless_asked_to(self):
        now, most = resource.getrlimit(resource.RLIMIT_CORE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_CORE, (now, most))
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        # A sanitizer's own part of the daemon would forbid them too.
        options = os.environ.get("ASAN_OPTIONS", "") + ":disable_coredump=0"
        self.enterContext(unittest.mock.patch.dict(os.environ, ASAN_OPTIONS=options))
        name = "unlimited" if most == resource.RLIM_INFINITY else most
        for flag, limit in {"--core_dumps=false": 0, "--core_dumps=true": name}.items():
            daemon = Daemon(self.folder, flag)
            with open(f"/proc/{daemon.process.pid}/limits") as limits:
                self.assertRegex(limits.read(), f"Max core file size +{limit} ")
            self.assertEqual(daemon.stop()[0], 0)

    def test_uses_as_many_descriptors_as_it_may(self):
        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (now, most))
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
        daemon = Daemon(self.folder)
        with open(f"/proc/{daemon.process.pid}/limits") as limits:
            self.assertRegex(limits.read(), f"Max open files +{most} ")
        self.assertEqual(daemon.stop()[0], 0)

    def test_sockets_may_be_shared(self):
        daemon = Daemon(self.folder, "--socket_mode=0660", f"--socket_group={grp.getgrgid(os.getgid()).gr_name}")
        for name, mode in {"": 0o750, "/socket": 0o660, "/socket.life": 0o660}.items():
            self.assertEqual(os.stat(f"{self.folder}/new{name}").st_mode & 0o777, mode, name)
        self.assertEqual(daemon.stop()[0], 0)
        code, _, err = run("--socket_mode=0999")
        self.assertEqual((code, err), (2, "kvdepotd: socket_mode: 0999, must be octal digits, at most 0777\n"))
        code, _, err = run(f"--listen=unix://{self.folder}/other/socket", "--socket_group=no-such-group",
                           "--metrics_address=", f"--device={DEVICE}", "--memory_budget=16MiB")
        self.assertEqual(code, 1)
        self.assertIn("socket_group: no-such-group, is no group of this machine", err)

    def test_a_budget_that_is_not_free(self):
        short = "--memory_budget=1000000TiB"
        daemon = Daemon(self.folder, short, first_events=2)
        self.assertRegex(daemon.events[0], r"event=memory_short wanted_bytes=\d{19} free_bytes=")
        self.assertIn("event=memory_found", daemon.events[1])
        self.assertEqual(daemon.stop()[0], 0)
        code, _, err = run(f"--listen=unix://{self.folder}/socket", "--metrics_address=",
                           f"--device={DEVICE}", short, f"--memory_budget_bytes_min={1 << 59}")
        self.assertEqual(code, 1)
        self.assertIn("kvdepotd: memory_budget_bytes_min: 576460752303423488 needed", err)

    def write(self, name, text):
        path = f"{self.folder}/{name}"
        with open(path, "w") as file:
            file.write(text)
        return path

    def test_a_file_of_settings(self):
        path = self.write("conf", "# a comment\n\nwindow_tokens = 128  # more\nlog_level=info\n")
        daemon = Daemon(self.folder, f"--config={path}", "--message_bytes_max=16777216")
        self.assertIn("message_bytes_max=16777216", daemon.started)
        self.assertEqual(daemon.stop()[0], 0)
        for text, words in {
            "window_tokens = 100\n": "window_tokens: 100",
            "window_tokens = many\n": "conf:1: window_tokens=many",
            "\nnonsense = 1\n": "conf:2: unknown setting: nonsense",
            "config = /etc/other\n": "conf:1: unknown setting: config",
            "window_tokens\n": "conf:1: expected: name = value",
            "threads = 1\nthreads = 1\n": "conf:2: threads: stands on an earlier line already",
        }.items():
            self.write("conf", text)
            code, _, err = run(f"--config={path}", "--check_config")
            self.assertEqual(code, 2, text)
            self.assertIn(words, err)
        # The command line counts more.
        self.write("conf", "window_tokens = 100\n")
        self.assertEqual(run(f"--config={path}", "--window_tokens=64", "--check_config")[0], 0)
        code, _, err = run(f"--config={self.folder}/none", "--check_config")
        self.assertEqual(code, 2)
        self.assertIn("/none: No such file", err)

    def test_check_config_reads_what_the_settings_name(self):
        tokens = self.write("tokens", f"alice {'0' * 64}\n")
        self.assertEqual(run("--check_config", f"--tokens_file={tokens}"), (0, "", ""))
        self.assertEqual(run("--check-config", f"--tokens-file={tokens}"), (0, "", ""))
        self.write("tokens", "alice secret\n")
        code, _, err = run("--check_config", f"--tokens_file={tokens}")
        self.assertEqual(code, 2)
        self.assertIn("tokens:1: a token's SHA-256 has 64 hexadecimal digits", err)
        self.assertNotIn("secret", err)

    def test_sighup_reads_tokens_and_log_level_again(self):
        tokens = self.write("tokens", f"alice {'0' * 64}\n")
        conf = self.write("conf", "log_level = info\n")
        daemon = Daemon(self.folder, f"--tokens_file={tokens}", f"--config={conf}")
        self.assertIn("tokens=1", daemon.started)

        def reload():
            daemon.process.send_signal(signal.SIGHUP)
            # A change may be seen before the signal, which has a line of its own.
            return next(line for line in daemon.process.stderr if "event=reload" in line)

        self.write("tokens", f"alice {'0' * 64}\nbob {'1' * 64}\n")
        self.assertIn('event=reloaded tokens=2 log_level=info needs_restart=""', reload())
        self.write("conf", "threads = 1\nlog_level = info\n")
        for _ in range(2):  # It goes on to need one.
            self.assertIn("tokens=2 log_level=info needs_restart=threads", reload())
        self.write("tokens", "bob\n")
        self.assertRegex(reload(), r'event=reload_failed reason="tokens_file: .*:1: expected.* tokens=2$')
        # A setting that is wrong keeps no token that has to go.
        self.write("conf", "log_level = loud\n")
        self.write("tokens", f"bob {'1' * 64}\n")
        self.assertRegex(reload(), r'event=reload_failed reason="log_level: loud.* tokens=1$')
        self.write("conf", "log_level = info\n")
        self.assertIn('tokens=1 log_level=info needs_restart=""', reload())
        self.write("conf", "log_level = error\n")
        self.write("tokens", f"bob {'1' * 64}\n")
        daemon.process.send_signal(signal.SIGHUP)
        # Nothing below an error is told any more.
        self.assertEqual(daemon.stop(), (0, ""))

    def test_says_what_became_of_a_token_file_that_changed(self):
        tokens = self.write("tokens", f"alice {'0' * 64}\n")
        daemon = Daemon(self.folder, f"--tokens_file={tokens}")
        self.write("tokens", "alice\n")
        self.assertRegex(daemon.process.stderr.readline(),
                         r'event=tokens_refused reason="tokens_file: .*:1: expected.* tokens=1$')
        self.write("tokens", f"alice {'0' * 64}\nbob {'1' * 64}\n")
        self.assertRegex(daemon.process.stderr.readline(), "event=tokens_changed tokens=2$")
        self.assertEqual(daemon.stop()[0], 0)

    def test_ends_while_it_waits_for_memory(self):
        process = subprocess.Popen(
            [DAEMON, f"--listen=unix://{self.folder}/socket", "--metrics_address=",
             f"--device={DEVICE}", "--memory_budget=1000000TiB", "--memory_wait_timeout=1h"],
            stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.kill)
        self.assertIn("event=memory_short", process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
        self.assertEqual((process.returncode, rest), (0, ""))

    def test_starts_over_the_socket_of_a_killed_daemon(self):
        daemon = Daemon(self.folder)
        daemon.process.kill()
        daemon.process.communicate(timeout=30)
        self.assertTrue(os.path.exists(f"{self.folder}/new/socket"))
        self.assertEqual(Daemon(self.folder).stop(signal.SIGINT)[0], 0)


if __name__ == "__main__":
    unittest.main()
