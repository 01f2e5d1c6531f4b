"""deploy/Dockerfile, built and run by Podman on a Debian 12 made by debootstrap; then deploy/compose.yaml with these images.

What bazel has built stands in for the stage that builds it, which image_build_test runs too."""

import json
import os
import re
import shutil
import unittest
from pathlib import Path

from tests.deploy.container_engine import DEBIAN, ContainerEngine, run
from tests.deploy.polling import wait_for

DOCKERFILE, COMPOSE = Path("deploy/Dockerfile"), Path("deploy/compose.yaml")
# What the daemon's image has beside Debian, measured when this was written and rounded up.
ADDED_BYTES_MAX = 50 << 20
SOCKET_FOLDER = "/run/kvdepot"
# As operators run it: what a container can be without, it is without.
HARDENED = ("--read-only", "--read-only-tmpfs=false", "--cap-drop=all", "--security-opt=no-new-privileges")
# Nothing is sealed before the window and what decoding seals at a time are full: until then tokens are exact.
EXACT_TOKENS_MAX = 319


def hardened() -> list[str]:
    return [*HARDENED, *engine.limit_options(core=0)]


def with_products(dockerfile: str) -> str:
    """The Dockerfile with a stage `build` that only takes what the context's folder `image` holds."""
    stages = re.split(r"^(?=FROM )", dockerfile, flags=re.MULTILINE)
    built = [number for number, stage in enumerate(stages) if re.match(r"FROM \S+ AS build$", stage, re.MULTILINE)]
    if len(built) != 1:
        raise RuntimeError("the Dockerfile has no stage `build`, or several")
    stages[built[0]] = "FROM scratch AS build\nCOPY image /image\n"
    return "".join(stages)


def setUpModule():
    global engine
    engine = ContainerEngine()
    unittest.addModuleCleanup(engine.close)
    engine.import_debian()
    context = engine.folder / "context"
    context.mkdir()
    run("deploy/image_root", ".", context / "image")
    dockerfile = with_products(DOCKERFILE.read_text())
    engine.build(dockerfile, context, "kvdepot", "--target=daemon")
    engine.build(dockerfile, context, "kvdepot-example", "--target=example")
    engine.leave_network()


class ImageTest(unittest.TestCase):
    """One daemon in a container, and what it may and may not."""

    @classmethod
    def setUpClass(cls):
        engine.podman("run", "--detach", "--name=daemon", *hardened(), "--network=none", f"--volume=socket:{SOCKET_FOLDER}",
                      "kvdepot", "--memory_budget=256MiB")
        engine.wait_until_healthy("daemon")

    def client(self, *arguments) -> str:
        """The kvdepot command in another container, which shares the socket's folder. On a kernel before Linux 6.9 a client
        that maps must be seen by the daemon; the page of metrics is on the daemon's loopback."""
        return engine.podman("run", "--rm", *hardened(), "--network=container:daemon", "--pid=container:daemon",
                             "--user=10002:10001", f"--volume=socket:{SOCKET_FOLDER}:ro", "--entrypoint=kvdepot",
                             "kvdepot", *arguments)

    def test_it_is_small(self):
        sizes = {name: engine.inspect("image", name)["Size"] for name in (DEBIAN, "kvdepot")}
        added = sizes["kvdepot"] - sizes[DEBIAN]
        print(f"image: {sizes['kvdepot'] / 1e6:.1f} MB, of which Debian {sizes[DEBIAN] / 1e6:.1f} MB")
        self.assertLess(added, ADDED_BYTES_MAX)

    def test_a_client_in_another_container_appends_and_attends(self):
        self.assertEqual(json.loads(self.client("info", "--json"))["backend"], "cpu")
        measured = json.loads(self.client("bench", "--tokens=4096", "--rounds=10", "--json"))
        self.assertGreater(measured["attends_per_second"], 0)
        self.assertLess(measured["bits_per_value"], 3)

    def test_the_doctor_finds_nothing_wrong(self):
        checks = {check["name"]: check for check in json.loads(self.client("doctor", "--json"))["checks"]}
        self.assertIn("tokens written and attended in this process", checks["mapping"]["detail"])
        self.assertEqual([check for check in checks.values() if not check["ok"]], [])

    def test_it_is_not_root_and_has_no_rights(self):
        for pid in 1, self.daemon_pid():
            status = engine.podman("exec", "daemon", "cat", f"/proc/{pid}/status")
            fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
            self.assertEqual(set(fields["Uid"].split() + fields["Gid"].split()), {"10001"})
            for right in "CapPrm", "CapEff", "CapBnd", "CapAmb":
                self.assertEqual(int(fields[right], 16), 0)
            self.assertEqual((fields["NoNewPrivs"], fields["Seccomp"]), ("1", "2"))

    def test_it_writes_nowhere_but_beside_its_socket(self):
        for folder in "/", "/etc/kvdepot", "/var/lib/kvdepot", "/tmp", "/usr/bin":
            self.assertFalse(engine.succeeds("exec", "daemon", "touch", f"{folder}/written"), folder)
        self.assertTrue(engine.succeeds("exec", "daemon", "touch", f"{SOCKET_FOLDER}/written"))

    def test_it_listens_on_loopback_alone(self):
        listening = "0A"
        tables = engine.podman("exec", "daemon", "cat", "/proc/net/tcp", "/proc/net/tcp6")
        rows = [line.split() for line in tables.splitlines() if not line.lstrip().startswith("sl")]
        self.assertEqual([row[1] for row in rows if row[3] == listening], [f"0100007F:{9464:04X}"])

    def test_the_settings_are_those_of_the_file(self):
        mode = engine.podman("exec", "daemon", "stat", "--format=%a %U %G", f"{SOCKET_FOLDER}/kvdepotd.sock")
        self.assertEqual(mode.strip(), "660 kvdepot kvdepot")

    def test_without_a_daemon_it_is_not_healthy(self):
        check = engine.inspect("image", "kvdepot")["Healthcheck"]["Test"]
        self.assertEqual(check[:2], ["CMD", "kvdepot"])
        self.assertFalse(engine.succeeds("run", "--rm", *hardened(), "--network=none", f"--entrypoint={check[1]}", "kvdepot", *check[2:]))

    def daemon_pid(self) -> int:
        return int(re.search(r" pid=(\d+) ", engine.logs("daemon")).group(1))


class StopTest(unittest.TestCase):
    def test_it_drains_and_ends_with_0(self):
        # With tokens, of which its health check has none.
        tokens = engine.folder / "tokens"
        tokens.write_text(f"alice {'0' * 64}\n")
        engine.podman("run", "--detach", "--name=stopped", *hardened(), "--network=none", f"--volume={tokens}:/tokens:ro",
                      "kvdepot", "--memory_budget=64MiB", "--tokens_file=/tokens")
        engine.wait_until_healthy("stopped")
        self.assertFalse(engine.succeeds("exec", "stopped", "kvdepot", "info"))
        self.assertEqual(engine.podman("exec", "stopped", "cat", "/proc/1/comm").strip(), "tini")
        engine.podman("stop", "--time=30", "stopped")
        self.assertEqual(engine.inspect("container", "stopped")["State"]["ExitCode"], 0)
        self.assertIn("event=drained", engine.logs("stopped"))
        changed = engine.podman("diff", "stopped").split()
        self.assertEqual([path for path in changed if "core" in os.path.basename(path)], [])


class ComposeTest(unittest.TestCase):
    """The services of deploy/compose.yaml as they are there, but for Grafana, whose image is not to be had. Prometheus' image is
    made of Debian's Prometheus and has upstream's name and entry point."""

    @classmethod
    def setUpClass(cls):
        context = engine.folder / "prometheus"
        context.mkdir()
        for name in "prometheus", "promtool":
            shutil.copy(f"/usr/bin/{name}", context)
        image = re.search(r"image: (\S*prom/prometheus:\S+)", COMPOSE.read_text()).group(1)
        engine.build(
            f"FROM {DEBIAN}\nCOPY prometheus promtool /bin/\nRUN install -d -o nobody /prometheus\nUSER nobody\nVOLUME /prometheus\n"
            'ENTRYPOINT ["/bin/prometheus"]\n'
            'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]\n', context, image)
        cls.up("kvdepotd")
        engine.wait_until_healthy("kvdepot_kvdepotd_1")
        cls.up("reader", "writer", "load", "prometheus")
        cls.addClassCleanup(engine.compose, COMPOSE, "down", "--volumes", "--timeout=30")

    @staticmethod
    def up(*services):
        engine.compose(COMPOSE, "up", "--detach", "--no-build", *services)

    @staticmethod
    def lines(service: str, verb: str) -> dict[int, str]:
        """What a client printed, by the number of tokens."""
        log = engine.logs(f"kvdepot_{service}_1")
        return {int(count): seen for count, seen in re.findall(rf"^{verb} (\d+) tokens: (.*)$", log, re.MULTILINE)}

    def test_a_reader_sees_what_the_writer_writes(self):
        sealed = EXACT_TOKENS_MAX + 100
        wait_for("the reader sees sealed tokens", lambda: max(self.lines("reader", "read"), default=0) > sealed)
        wrote, read = self.lines("writer", "wrote"), self.lines("reader", "read")
        exact = [count for count in read if count <= EXACT_TOKENS_MAX and count in wrote]
        self.assertGreater(len(exact), 5)
        self.assertEqual([read[count] for count in exact], [wrote[count] for count in exact])
        for seen in read.values():
            self.assertRegex(seen, r"^output -?\d\.\d{4}, log-sum-exp -?\d+\.\d{4}$")

    def test_each_container_has_a_pid_namespace_of_its_own(self):
        pids = {name: engine.inspect("container", f"kvdepot_{name}_1")["State"]["Pid"] for name in ("kvdepotd", "writer", "reader")}
        namespaces = {name: os.readlink(f"/proc/{pid}/ns/pid") for name, pid in pids.items()}
        self.assertEqual(len(set(namespaces.values())), 3, namespaces)
        self.assertEqual(namespaces["kvdepotd"], os.readlink("/proc/self/ns/pid"))

    def test_there_is_load(self):
        def sessions():
            listed = json.loads(engine.podman("exec", "kvdepot_kvdepotd_1", "kvdepot", "sessions", "--json"))
            return {session["name"] for session in listed.get("sessions", [])}
        wait_for("two sessions of the load generator", lambda: sum(name.startswith("bench-") for name in sessions()) == 2)
        self.assertIn("shared session", sessions())

    def test_prometheus_scrapes_the_daemon_and_evaluates_its_rules(self):
        def value(expression: str) -> str:
            done = run("podman", "exec", "kvdepot_prometheus_1", "promtool", "query", "instant", "http://127.0.0.1:9090", expression, check=False)
            return done.stdout
        wait_for("the daemon is scraped", lambda: "=> 1 @" in value('up{job="kvdepot", instance="kvdepotd:9464"}'))
        wait_for("rules are evaluated", lambda: "=> " in value('count({__name__=~".+:.+:.+"})'))


if __name__ == "__main__":
    unittest.main()
