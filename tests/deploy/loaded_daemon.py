"""A kvdepotd on the CPU with fifty tenants, and work of every kind for it."""

import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

# Where Bazel's tests find programs; BAZEL_BIN names the folder for those who run without it.
PROGRAMS = Path(os.environ.setdefault("BAZEL_BIN", "."))
DATA = Path("tests/data/qwen2.5-coder-1.5b_l23")

TENANTS = [f"tenant-{number:02}" for number in range(50)]
MAPPER = TENANTS[0]
OPERATOR = "ops"
SESSIONS_PER_TENANT_MAX = 8
BUDGET = "96MiB"
# More than what is kept, less than what TOO_MUCH stores.
SHORT_BUDGET = "24MiB"
TOO_MUCH = ("bench", "--profile=exact", "--tokens=8192")
CALL_SECONDS = 120


class LoadedDaemon:
    def __init__(self, folder: Path):
        self.folder = folder
        self.socket = folder / "socket"
        self._tokens()
        self._process = subprocess.Popen(
            [PROGRAMS / "server/kvdepotd", f"--listen=unix://{self.socket}", "--metrics_address=127.0.0.1:0",
             "--device=cpu", f"--memory_budget={BUDGET}", "--slab_bytes=2097152", f"--tokens_file={folder}/tokens",
             f"--mapping_tenants={MAPPER}", f"--sessions_per_tenant_max={SESSIONS_PER_TENANT_MAX}",
             # So that the short sessions of a test have a sample.
             "--error_sample_interval=1"],
            stderr=subprocess.PIPE, text=True)
        started = self._process.stderr.readline()
        self.pages = re.search(r"metrics=(\S+)", started).group(1)
        self._mapped = None

    def _tokens(self) -> None:
        lines = []
        for tenant in [*TENANTS, OPERATOR]:
            token = f"token of {tenant}"
            (self.folder / tenant).write_text(token)
            role = "operator" if tenant == OPERATOR else "client"
            lines.append(f"{tenant} {hashlib.sha256(token.encode()).hexdigest()} {role}\n")
        (self.folder / "tokens").write_text("".join(lines))

    def kvdepot(self, *arguments: str, tenant: str | None = MAPPER, succeeds: bool = True) -> str:
        token = [f"--token_file={self.folder / tenant}"] if tenant else []
        done = subprocess.run([PROGRAMS / "client/cli/kvdepot", *arguments, f"--target={self.socket}", *token],
                              capture_output=True, text=True, timeout=CALL_SECONDS)
        if (done.returncode == 0) != succeeds:
            raise RuntimeError(f"kvdepot {arguments}: exit code {done.returncode}: {done.stderr}")
        return done.stdout

    def load(self) -> None:
        """Work of every tenant, codec and way to fail. What is kept and mapped stays until the end."""
        for tenant in TENANTS:
            self.kvdepot("bench", "--tokens=128", "--rounds=2", tenant=tenant)
        self._keep_a_session()
        self.map_a_session()
        self.attend_and_append()
        self._be_refused()

    def attend_and_append(self) -> None:
        for codec in ("planes", "raw", "packkv"):
            self.kvdepot("bench", f"--codec={codec}", "--clients=2", "--layers=2", "--tokens=1024", "--rounds=20")

    def _keep_a_session(self) -> None:
        kept = json.loads(self.kvdepot("demo", f"--kv={DATA}_4096.safetensors",
                                       f"--calibration={DATA}.calibration.binpb", "--keep", "--json"))
        self.kvdepot("seal", kept["session"])

    def map_a_session(self) -> None:
        self._mapped = subprocess.Popen(
            [sys.executable, "-B", "-m", "tests.deploy.mapped_process", self.socket, self.folder / MAPPER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([".", "tests/bench"])})
        if self._mapped.stdout.readline() != "mapped\n":
            raise RuntimeError("the process that maps a session has failed")

    def _be_refused(self) -> None:
        self.kvdepot("show", "no such session", succeeds=False)
        self.kvdepot("info", tenant=None, succeeds=False)
        self.kvdepot("bench", f"--clients={SESSIONS_PER_TENANT_MAX + 1}", succeeds=False)
        self.kvdepot("budget", SHORT_BUDGET, tenant=OPERATOR)
        self.kvdepot(*TOO_MUCH, succeeds=False)
        self.kvdepot("budget", BUDGET, tenant=OPERATOR)

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://{self.pages}/metrics", timeout=30) as answer:
            return answer.read().decode()

    def stop(self) -> int:
        """Its exit code."""
        if self._mapped:
            self._mapped.communicate(timeout=30)
        self._process.terminate()
        self._process.communicate(timeout=60)
        return self._process.returncode
