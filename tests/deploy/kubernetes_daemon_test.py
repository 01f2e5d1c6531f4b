"""The daemon and the client do with the manifests what these say: settings, probes, sockets, users and namespaces,
with the Secrets that the README's commands make."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import unittest
import urllib.request
from pathlib import Path

from tests.deploy.kubernetes_node import IS_ROOT, Node, confined, loopback_address
from tests.deploy.kubernetes_readme import NO_CLUSTER, commands, make_secrets, run
from tests.deploy.rendered_manifests import SOURCES, pods, render_all

# Where Bazel's tests find programs; BAZEL_BIN names the folder for those who run without it.
PROGRAMS = Path(os.environ.get("BAZEL_BIN", ".")).absolute()
# Of `kvdepot doctor`.
CHECK_COUNT = 13
SECONDS_MAX = 60


class KubernetesDaemonTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # A socket's path is short.
        folder = tempfile.TemporaryDirectory(prefix="kvdepot-", dir="/tmp")
        cls.addClassCleanup(folder.cleanup)
        cls.folder = Path(folder.name)
        # The users of pods may go in, and not to where programs are built.
        cls.folder.chmod(0o755)
        cls.kvdepotd = shutil.copy(PROGRAMS / "server/kvdepotd", cls.folder)
        cls.kvdepot = shutil.copy(PROGRAMS / "client/cli/kvdepot", cls.folder)
        cls.things = render_all()
        cls.secrets = make_secrets(cls.folder)

    def test_the_readme_creates_the_secrets_that_are_mounted(self):
        mounted = {volume["secret"]["secretName"] for things in self.things.values() for pod in pods(things)
                   for volume in pod["spec"]["volumes"] if "secret" in volume}
        self.assertEqual(mounted, set(self.secrets))

    def test_kubectl_takes_the_commands_of_the_readme_up_to_asking_a_cluster(self):
        # It follows no link that leads out of a folder, and Bazel's files are such links.
        shutil.copytree(SOURCES, self.folder / SOURCES)
        for command in commands():
            if command.startswith("kubectl"):
                done = run(f"{command} {NO_CLUSTER}", self.folder)
                self.assertIn(" refused", done.stderr, command)

    def test_the_daemon_takes_the_settings_of_every_overlay(self):
        for overlay in ("overlays/cpu", "overlays/gpu"):
            node = Node(self.folder / overlay, self.things[overlay], self.secrets)
            for pod in pods(self.things[overlay]):
                with self.subTest(pod["metadata"]["labels"]["kvdepot-device"]):
                    arguments = node.words(pod, pod["spec"]["containers"][0])
                    done = subprocess.run([*confined(pod), self.kvdepotd, *arguments, "--check_config"],
                                          capture_output=True, text=True, timeout=SECONDS_MAX)
                    self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))

    def test_the_image_is_that_of_this_release(self):
        done = subprocess.run([self.kvdepotd, "--version"], capture_output=True, text=True, check=True)
        images = {container["image"] for things in self.things.values() for pod in pods(things)
                  for container in pod["spec"]["containers"]}
        self.assertEqual(images, {f"kvdepot/{done.stdout.strip().replace(' ', ':')}"})

    def start(self, node):
        [pod] = pods(self.things["overlays/cpu"])
        if IS_ROOT:
            [folder_maker] = pod["spec"]["initContainers"]
            subprocess.run(node.words(pod, folder_maker), check=True)
        arguments = node.words(pod, pod["spec"]["containers"][0])
        daemon = subprocess.Popen([*confined(pod), self.kvdepotd, *arguments], stderr=subprocess.PIPE, text=True)
        self.addCleanup(daemon.communicate)
        self.addCleanup(daemon.kill)
        self.assertIn("event=started", daemon.stderr.readline())
        return pod, daemon

    def test_a_daemon_of_the_cpu_overlay_answers_its_probes_and_its_client_maps(self):
        pod_ip = loopback_address()
        node = Node(self.folder, self.things["overlays/cpu"], self.secrets, pod_ip)
        pod, daemon = self.start(node)

        [container] = pod["spec"]["containers"]
        [port] = container["ports"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container[probe]["httpGet"]
            self.assertEqual(get["port"], port["name"])
            with urllib.request.urlopen(f"http://{pod_ip}:{port['containerPort']}{get['path']}", timeout=SECONDS_MAX) as page:
                self.assertEqual(page.status, 200, probe)

        [client] = pods(self.things["client/cpu"])
        [container] = client["spec"]["containers"]
        program, *arguments = node.words(client, container)
        self.assertEqual(program, "kvdepot")
        done = subprocess.run([*confined(client), self.kvdepot, *arguments],
                              capture_output=True, text=True, timeout=SECONDS_MAX)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(len(re.findall(r"(?m)^ok ", done.stdout)), CHECK_COUNT)
        self.assertRegex(done.stdout, r"(?m)^ok +mapping +\d+ tokens written and attended in this process")

        daemon.send_signal(signal.SIGTERM)
        self.assertEqual(daemon.wait(SECONDS_MAX), 0)


if __name__ == "__main__":
    unittest.main()
