"""The systemd unit: what systemd thinks of it, and whether its command lines are those of the daemon."""

import re
import shlex
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

DAEMON = Path("server/kvdepotd").absolute()
UNIT = Path("deploy/systemd/kvdepotd@.service")
# systemd's own measure, 0 to 10 (safe to exposed), in tenths: the GPU's device nodes cost 2.
EXPOSURE_MAX = "25"


class SystemdUnitTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        # An instance, of a daemon that exists.
        self.text = UNIT.read_text().replace("/usr/bin/kvdepotd", str(DAEMON))
        self.unit = self.folder / "kvdepotd@cpu.service"
        self.unit.write_text(self.text)

    def analyze(self, *arguments):
        done = subprocess.run(["systemd-analyze", *arguments, str(self.unit)], capture_output=True, text=True,
                              env={"PATH": "/usr/bin:/bin", "TMPDIR": str(self.folder)})
        return done.returncode, done.stdout + done.stderr

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze here")
    def test_systemd_finds_nothing_wrong(self):
        self.assertEqual(self.analyze("verify", "--man=no"), (0, ""))

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze here")
    def test_it_is_hardened(self):
        code, out = self.analyze("security", "--offline=true", f"--threshold={EXPOSURE_MAX}")
        self.assertEqual(code, 0, out)

    def test_the_daemon_takes_its_command_line(self):
        (self.folder / "kvdepotd.conf").write_text("drain_timeout = 20s\n")
        line = re.search(r"^ExecStart=(.*?)$", self.text.replace("\\\n", ""), re.MULTILINE).group(1)
        line = line.replace("%i", "cpu").replace("/etc/kvdepot", str(self.folder))
        words = [word for word in shlex.split(line) if word != "$KVDEPOTD_FLAGS"]
        done = subprocess.run([*words, "--check_config"], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""), line)

    def test_wrong_settings_end_it_once_and_for_all(self):
        # systemd looks at the code of ExecStart alone, not at that of ExecStartPre.
        self.assertNotIn("ExecStartPre", self.text)
        code = int(re.search(r"^RestartPreventExitStatus=(\d+)$", self.text, re.MULTILINE).group(1))
        self.assertEqual(subprocess.run([DAEMON, "--nonsense"], capture_output=True).returncode, code)

    def test_it_waits_longer_than_the_daemon_drains(self):
        stop = int(re.search(r"^TimeoutStopSec=(\d+)$", self.text, re.MULTILINE).group(1))
        usage = subprocess.run([DAEMON, "--help"], capture_output=True, text=True).stdout
        drain = int(re.search(r"--drain_timeout .*?default: (\d+)s;", usage, re.DOTALL).group(1))
        self.assertGreater(stop, drain)


if __name__ == "__main__":
    unittest.main()
