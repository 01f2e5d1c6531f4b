#!/usr/bin/python3 -B
"""Goes the way of the README's section "From a clone to the first alert" as somebody new would: in a copy of the sources
without anything built, each command as it stands there, and looks at what each prints.

    tests/deploy/newcomer_path.py

Takes some ten minutes, mostly of building. Everything behind the first command runs in a network of its own, as it uses
the ports that the README names. Needs root, or a machine that lets users have namespaces. Exit code 1: a command failed,
or printed something else than it should.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECTION = "From a clone to the first alert"
COMMAND_SECONDS_MAX = 1800
NOT_SOURCES = (".git", ".tools", ".cache", ".bundle", "bazel-*")

# What a command that begins so prints; one that has no line here fails. Of daemons in the background nothing is waited for.
EXPECTED = {
    "deploy/demo": r"bits per value +2\.\d.*error against exact attention",
    "export PATH": r"^$",
    "kvdepotd &": r"^$",
    "kvdepot info --wait": r"backend +(cpu|cuda) .*metrics +http://127\.0\.0\.1:9464/metrics",
    "kvdepot doctor": r"ok +planes codec .*ok +mapping ",
    "kvdepot bench": r"attend +\d+ calls/s",
    "kvdepot demo": r"bits per value +2\.\d",
    "kvdepot sessions": r"\ndemo-\d+ +4,096 +1 +planes/compact ",
    "prometheus ": r"^$",
    "deploy/grafana/draw_previews.py": r"/tmp/kvdepot-panels/kvdepot-overview\.png",
    "kill -KILL": r"^$",
    "until promtool": r"KvdepotDown.*alertstate=\"firing\"",
    "kill $prometheus": r"^$",
}


def commands(readme: str) -> list[str]:
    """Lines of the section's code blocks, with those that end in a backslash joined to the next."""
    section = re.search(rf"^## {SECTION}$.*?(?=^## )", readme, re.MULTILINE | re.DOTALL).group()
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return "".join(blocks).replace("\\\n", "").splitlines()


class Shell:
    """A bash to which lines are typed one after the other."""

    END = "newcomer: exit code "

    def __init__(self, folder: Path, *, own_network: bool):
        words = ["bash"]
        if own_network:
            words = ["unshare", "--net", "--pid", "--fork", "--kill-child", *words]
        self._process = subprocess.Popen(words, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, text=True)
        if own_network:
            self.run("ip link set lo up")

    def run(self, line: str) -> str:
        """What it printed. RuntimeError if it failed."""
        # Whatever hangs ends the shell, and with it the loop below.
        timer = threading.Timer(COMMAND_SECONDS_MAX, self._process.kill)
        timer.start()
        try:
            return self._run(line)
        finally:
            timer.cancel()

    def _run(self, line: str) -> str:
        self._process.stdin.write(f"{line}\ncode=$?; echo; echo '{self.END}'$code\n")
        self._process.stdin.flush()
        printed = []
        for answer in self._process.stdout:
            if answer.startswith(self.END):
                if answer.strip() != f"{self.END}0":
                    raise RuntimeError(f"{line}: {answer.removeprefix('newcomer: ')}")
                return "".join(printed).strip()
            print(answer, end="", flush=True)
            # The daemon's own lines come when they come.
            if " event=" not in answer:
                printed.append(answer)
        raise RuntimeError(f"{line}: the shell has ended")

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def expected(line: str) -> str:
    beginnings = [begin for begin in EXPECTED if line.startswith(begin)]
    if len(beginnings) != 1:
        raise RuntimeError(f"{line}: tests/deploy/newcomer_path.py does not say what it prints")
    return EXPECTED[beginnings[0]]


def go(folder: Path) -> None:
    first, *rest = commands((folder / "README.md").read_text())
    for own_network, lines in ((False, [first]), (True, rest)):
        shell = Shell(folder, own_network=own_network)
        try:
            for line in lines:
                print(f"newcomer: {line}", flush=True)
                pattern = expected(line)
                printed = shell.run(line)
                if not re.search(pattern, printed, re.DOTALL):
                    raise RuntimeError(f"{line}: printed nothing like {pattern!r}")
        finally:
            shell.end()


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="kvdepot-newcomer-") as name:
        folder = Path(name) / "kvdepot"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_SOURCES), symlinks=True)
        try:
            go(folder)
        except RuntimeError as error:
            print(f"newcomer: {error}", file=sys.stderr)
            return 1
        finally:
            subprocess.run(["bazel", "clean", "--expunge"], cwd=folder, check=False, capture_output=True)
            shutil.rmtree("/tmp/kvdepot-panels", ignore_errors=True)
            shutil.rmtree("/tmp/kvdepot-prometheus", ignore_errors=True)
    print("newcomer: came to the first alert")
    return 0


if __name__ == "__main__":
    sys.exit(main())
