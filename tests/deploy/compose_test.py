"""What deploy/compose.yaml says of programs, ports and settings is true. Whether it is well formed deploy/lint asks Docker's own
docker-compose; image_test runs it."""

import re
import subprocess
import unittest
from pathlib import Path

import yaml

FOLDER = Path("deploy")
DAEMON, COMMAND = "server/kvdepotd", "client/cli/kvdepot"
METRICS_PORT = "9464"
SOCKET = "socket:/run/kvdepot"
# Who calls the daemon, and who maps its memory.
CLIENTS, MAPPING_CLIENTS = {"writer", "reader", "load"}, {"writer", "reader"}


def services(file: str) -> dict:
    text = (FOLDER / file).read_text()
    # Where nothing is set in the environment.
    return yaml.safe_load(re.sub(r"\$\{\w+:-(.*?)\}", r"\1", text))["services"]


class ComposeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.services, cls.gpu = services("compose.yaml"), services("compose.gpu.yaml")

    def run_program(self, *command) -> None:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_daemon_takes_its_settings(self):
        for service in self.services["kvdepotd"], self.gpu["kvdepotd"]:
            # The image's folder of calibrations is not on this machine.
            self.run_program(DAEMON, "--check_config", "--config=deploy/kvdepotd.conf", *service["command"], "--calibrations_dir=")

    def test_the_load_generator_takes_its_flags(self):
        load = self.services["load"]
        self.assertEqual(load["entrypoint"][2], "kvdepot")
        self.run_program(COMMAND, *load["entrypoint"][3:], *load["command"], "--help")

    def test_images_are_targets_of_the_dockerfile(self):
        targets = set(re.findall(r"^FROM \S+ AS (\w+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE))
        images = {}
        for name, service in self.services.items():
            if "build" in service:
                self.assertEqual((FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).resolve(),
                                 (FOLDER / "Dockerfile").resolve(), name)
                self.assertIn(service["build"]["target"], targets)
                self.assertEqual(images.setdefault(service["image"], service["build"]["target"]), service["build"]["target"])
        for service in self.services.values():
            # Whatever else there is has a registry and a version.
            if service["image"] not in images:
                self.assertRegex(service["image"], r"^docker\.io/\w+/\w+:v?\d+\.\d+\.\d+$")

    def test_pages_are_on_loopback_alone_and_clients_have_no_network(self):
        for name, service in self.services.items():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), name)
            if name in CLIENTS:
                self.assertEqual(service["network_mode"], "none")
        self.assertNotIn("ports", self.services["kvdepotd"])
        self.assertEqual(self.services["kvdepotd"]["networks"], ["metrics"])

    def test_no_service_has_rights_that_it_does_not_need(self):
        for name, service in self.services.items():
            self.assertTrue(service["read_only"], name)
            self.assertEqual(service["cap_drop"], ["ALL"], name)
            self.assertEqual(service["security_opt"], ["no-new-privileges:true"], name)
            self.assertEqual(service["ulimits"]["core"], 0, name)
            self.assertNotIn("privileged", service, name)

    def test_clients_share_the_sockets_folder_and_group_and_cannot_write_there(self):
        group = re.search(r"groupadd --gid (\d+) ", (FOLDER / "Dockerfile").read_text()).group(1)
        daemon = re.search(r"^USER (\d+):(\d+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE).groups()
        self.assertEqual(daemon[1], group)
        self.assertEqual(self.services["kvdepotd"]["volumes"], [SOCKET])
        for name in CLIENTS:
            user, own_group = self.services[name]["user"].split(":")
            self.assertEqual((own_group, self.services[name]["volumes"]), (group, [f"{SOCKET}:ro"]), name)
            self.assertNotIn(user, (daemon[0], "0"))

    def test_those_who_map_have_the_daemons_device(self):
        self.assertEqual(set(self.gpu), MAPPING_CLIENTS | {"kvdepotd"})
        for service in self.gpu.values():
            self.assertEqual(service["deploy"], self.gpu["kvdepotd"]["deploy"])
        for name in MAPPING_CLIENTS:
            self.assertEqual([word.replace("cuda", "cpu") for word in self.gpu[name]["command"]], self.services[name]["command"])

    def test_prometheus_has_its_files_and_finds_the_daemon(self):
        mounted = {}
        for volume in self.services["prometheus"]["volumes"] + self.services["grafana"]["volumes"]:
            source, target = volume.split(":")[:2]
            if source.startswith("./"):
                self.assertTrue((FOLDER / source).exists(), source)
                mounted[target] = FOLDER / source
        configuration = yaml.safe_load(mounted["/etc/prometheus/prometheus.yml"].read_text())
        named = configuration["rule_files"] + configuration["scrape_configs"][0]["file_sd_configs"][0]["files"]
        for file in named:
            self.assertIn(f"/etc/prometheus/{file}", mounted)
        targets = yaml.safe_load(mounted["/etc/prometheus/targets.yaml"].read_text())
        self.assertEqual(targets, [{"targets": [f"kvdepotd:{METRICS_PORT}"]}])
        self.assertIn(f"--metrics_address=0.0.0.0:{METRICS_PORT}", self.services["kvdepotd"]["command"])
        self.assertTrue(set(self.services["prometheus"]["networks"]) > set(self.services["kvdepotd"]["networks"]))

    def test_grafana_shows_our_dashboards_of_that_prometheus(self):
        grafana = self.services["grafana"]
        provider = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/kvdepot.yaml").read_text())["providers"][0]
        folder = provider["options"]["path"]
        self.assertIn(f"./grafana/dashboards:{folder}:ro", grafana["volumes"])
        home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        self.assertTrue((FOLDER / "grafana/dashboards" / Path(home).relative_to(folder)).exists(), home)
        self.assertEqual(grafana["environment"]["PROMETHEUS_URL"], "http://prometheus:9090")


if __name__ == "__main__":
    unittest.main()
