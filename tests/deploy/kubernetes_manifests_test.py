"""The objects of deploy/kubernetes fit together. Whether each is valid alone is deploy/kubernetes/validate.py's
matter, what daemon and client do with them kubernetes_daemon_test's."""

import re
import unittest
from pathlib import Path

import yaml

from tests.deploy.rendered_manifests import SOURCES, of_kind, pods, render_all

OVERLAYS = ["overlays/cpu", "overlays/gpu"]
CLIENT_OF = {"overlays/cpu": "client/cpu", "overlays/gpu": "client/gpu"}
UNITS = {"Gi": 1 << 30, "GiB": 1 << 30, "Mi": 1 << 20, "MiB": 1 << 20, "": 1}
# Beside its sessions, on the CPU.
DAEMON_BYTES = 2 << 30


def matches(selector: dict, labels: dict) -> bool:
    """A selector of labels by equality; an empty one selects everything, and none here is meant to."""
    wanted = selector.get("matchLabels", {})
    return bool(wanted) and wanted.items() <= labels.items()


def amount_bytes(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", text).groups()
    return int(number) * UNITS[unit]


def seconds(text: str) -> int:
    return int(re.fullmatch(r"(\d+)s", text).group(1))


class KubernetesManifestsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.things = render_all()

    def daemons(self, overlay):
        """(pod, its container of the daemon, its settings) of each DaemonSet."""
        config_maps = {thing["metadata"]["name"]: thing["data"] for thing in of_kind(self.things[overlay], "ConfigMap")}
        for pod in pods(self.things[overlay]):
            [container] = pod["spec"]["containers"]
            [name] = [volume["configMap"]["name"] for volume in pod["spec"]["volumes"] if "configMap" in volume]
            lines = [line.split("#")[0].strip() for line in config_maps[name]["kvdepotd.conf"].splitlines()]
            settings = dict(re.split(r"\s*=\s*", line, maxsplit=1) for line in lines if line)
            settings.update(argument[2:].split("=", 1) for argument in container["args"])
            yield pod, container, settings

    def only(self, overlay, kind):
        [thing] = of_kind(self.things[overlay], kind)
        return thing

    def client(self, overlay):
        [pod] = pods(self.things[CLIENT_OF[overlay]])
        [container] = pod["spec"]["containers"]
        return pod, container

    def test_each_daemon_set_has_its_own_pods(self):
        for overlay in OVERLAYS:
            sets = of_kind(self.things[overlay], "DaemonSet")
            for one in sets:
                selected = [other["metadata"]["name"] for other in sets
                            if matches(one["spec"]["selector"], other["spec"]["template"]["metadata"]["labels"])]
                self.assertEqual(selected, [one["metadata"]["name"]])

    def test_selectors_select_every_daemon_and_no_client(self):
        for overlay in OVERLAYS:
            selectors = [{"matchLabels": self.only(overlay, "Service")["spec"]["selector"]},
                         self.only(overlay, "NetworkPolicy")["spec"]["podSelector"],
                         self.only(overlay, "PodDisruptionBudget")["spec"]["selector"]]
            for selector in selectors:
                for pod, _, _ in self.daemons(overlay):
                    self.assertTrue(matches(selector, pod["metadata"]["labels"]), selector)
                self.assertFalse(matches(selector, self.client(overlay)[0]["metadata"]["labels"]), selector)

    def test_prometheus_finds_the_service_and_the_job_that_the_alerts_ask_for(self):
        [job] = yaml.safe_load(Path("deploy/prometheus/prometheus.yaml").read_text())["scrape_configs"]
        for overlay in OVERLAYS:
            service, monitor = self.only(overlay, "Service"), self.only(overlay, "ServiceMonitor")
            self.assertTrue(matches(monitor["spec"]["selector"], service["metadata"]["labels"]))
            [endpoint], [port] = monitor["spec"]["endpoints"], service["spec"]["ports"]
            self.assertEqual(endpoint["port"], port["name"])
            self.assertIn({"targetLabel": "job", "replacement": job["job_name"]}, endpoint["relabelings"])
            for _, container, _ in self.daemons(overlay):
                self.assertIn({"name": port["targetPort"], "containerPort": port["port"]}, container["ports"])

    def test_daemons_listen_where_the_network_policy_says_and_nowhere_else(self):
        for overlay in OVERLAYS:
            policy = self.only(overlay, "NetworkPolicy")["spec"]
            self.assertEqual((set(policy["policyTypes"]), policy["egress"]), ({"Ingress", "Egress"}, []))
            for _, container, settings in self.daemons(overlay):
                allowed = {(port["protocol"], port["port"]) for rule in policy["ingress"] for port in rule["ports"]}
                self.assertEqual({("TCP", port["name"]) for port in container["ports"]}, allowed)
                [port] = container["ports"]
                # The pod's own address, which is not every interface.
                self.assertEqual(settings["metrics_address"], f"$(POD_IP):{port['containerPort']}")
                self.assertRegex(settings["listen"], r"^unix:///[^,]+$")
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    self.assertEqual(container[probe]["httpGet"]["port"], port["name"])

    def test_the_network_policy_lets_the_clients_in(self):
        for overlay in OVERLAYS:
            labels = self.client(overlay)[0]["metadata"]["labels"]
            rules = self.only(overlay, "NetworkPolicy")["spec"]["ingress"]
            self.assertTrue(any(matches(peer.get("podSelector", {}), labels) for rule in rules for peer in rule["from"]))

    def test_whatever_is_mounted_exists(self):
        for name, things in self.things.items():
            config_maps = {thing["metadata"]["name"] for thing in of_kind(things, "ConfigMap")}
            for pod in pods(things):
                spec = pod["spec"]
                volumes = {volume["name"] for volume in spec["volumes"]}
                mounted = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
                self.assertEqual(mounted, volumes, name)
                for container in spec.get("initContainers", []):
                    self.assertLessEqual({mount["name"] for mount in container["volumeMounts"]}, volumes)
                self.assertLessEqual({volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume},
                                     config_maps)

    def test_a_client_is_where_its_daemon_is_and_has_the_same_socket_folder_and_device(self):
        for overlay in OVERLAYS:
            client, container = self.client(overlay)
            [term] = client["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            [(daemon, its_container, settings)] = [found for found in self.daemons(overlay)
                                                   if matches(term["labelSelector"], found[0]["metadata"]["labels"])]
            self.assertEqual(term["topologyKey"], "kubernetes.io/hostname")
            environment = {entry["name"]: entry.get("value") for entry in container["env"]}
            self.assertIn(f"--target={settings['listen']}", container["args"])
            self.assertEqual(environment["DEVICE"], daemon["metadata"]["labels"]["kvdepot-device"])
            shown = [entry.get("value") for entry in its_container["env"] if entry["name"] == "NVIDIA_VISIBLE_DEVICES"]
            self.assertEqual([environment["NVIDIA_VISIBLE_DEVICES"]] if shown else [], shown)
            self.assertEqual(client["spec"].get("runtimeClassName"), daemon["spec"].get("runtimeClassName"))
            self.assertEqual(self.folders_of_the_node(client)["/run/kvdepot"], self.folders_of_the_node(daemon)["/run/kvdepot"])

    @staticmethod
    def folders_of_the_node(pod):
        """Paths of the node by paths of the pod's container."""
        paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["spec"]["volumes"] if "hostPath" in volume}
        return {mount["mountPath"]: paths[mount["name"]] for mount in pod["spec"]["containers"][0]["volumeMounts"]
                if mount["name"] in paths}

    def test_a_client_may_open_the_sockets(self):
        for overlay in OVERLAYS:
            client = self.client(overlay)[0]["spec"]["securityContext"]
            for pod, _, settings in self.daemons(overlay):
                daemon = pod["spec"]["securityContext"]
                self.assertEqual(settings["socket_mode"], "0660")
                self.assertIn(daemon["runAsGroup"], client["supplementalGroups"])
                if settings["device"] != "cpu":
                    self.assertEqual(daemon["runAsUser"], client["runAsUser"])
                [folder] = pod["spec"]["initContainers"]
                self.assertEqual(folder["command"], ["chown", f"{daemon['runAsUser']}:{daemon['runAsGroup']}", "/run/kvdepot"])

    def test_a_gpu_has_one_daemon_and_a_node_no_daemon_of_a_gpu_that_it_has_not(self):
        for number, (pod, container, _) in enumerate(self.daemons("overlays/gpu")):
            self.assertEqual(pod["metadata"]["labels"]["kvdepot-device"], f"gpu{number}")
            self.assertIn({"name": "NVIDIA_VISIBLE_DEVICES", "value": str(number)}, container["env"])
            required = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            self.assertEqual(required["nodeSelectorTerms"], [{"matchExpressions": [
                {"key": "nvidia.com/gpu.count", "operator": "Gt", "values": [str(number)]},
                {"key": "nvidia.com/gpu.compute.major", "operator": "Gt", "values": ["8"]}]}])

    def test_folders_of_gpus_differ_in_the_number_alone(self):
        folders = sorted(path for path in (SOURCES / "overlays/gpu").glob("gpu*"))
        self.assertEqual([path.name for path in folders], [f"gpu{number}" for number in range(len(folders))])
        first = (folders[0] / "kustomization.yaml").read_text()
        for number, folder in enumerate(folders):
            expected = first.replace("gpu0", f"gpu{number}").replace('"0"', f'"{number}"')
            self.assertEqual((folder / "kustomization.yaml").read_text(), expected)

    def test_a_change_restarts_no_daemon(self):
        for overlay in OVERLAYS:
            for daemon_set in of_kind(self.things[overlay], "DaemonSet"):
                self.assertEqual(daemon_set["spec"]["updateStrategy"], {"type": "OnDelete"})

    def test_kubernetes_waits_longer_than_the_daemon(self):
        for overlay in OVERLAYS:
            for pod, container, settings in self.daemons(overlay):
                self.assertGreaterEqual(pod["spec"]["terminationGracePeriodSeconds"], seconds(settings["drain_timeout"]) + 5)
                probe = container["startupProbe"]
                self.assertGreaterEqual(probe["periodSeconds"] * probe["failureThreshold"],
                                        seconds(settings.get("memory_wait_timeout", "0s")) + 30)

    def test_sessions_on_the_cpu_fit_into_the_container(self):
        for _, container, settings in self.daemons("overlays/cpu"):
            limits = container["resources"]["limits"]
            self.assertEqual(settings["threads"], limits["cpu"])
            self.assertLessEqual(amount_bytes(settings["memory_budget"]) + DAEMON_BYTES, amount_bytes(limits["memory"]))

    def test_every_container_is_confined(self):
        for things in self.things.values():
            for pod in pods(things):
                spec = pod["spec"]
                self.assertFalse(spec["automountServiceAccountToken"])
                # Of the node's namespaces the daemon has one, and clients none.
                is_daemon = pod["metadata"]["labels"]["app.kubernetes.io/name"] == "kvdepotd"
                self.assertEqual([key for key in spec if key.startswith("host")], ["hostPID"] if is_daemon else [])
                self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"})
                for container in spec["containers"]:
                    self.assertEqual(container["securityContext"], {
                        "readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}})
                    self.assertTrue(spec["securityContext"]["runAsNonRoot"])
                # It makes the folder of the sockets the daemon's, and can do nothing else.
                for container in spec.get("initContainers", []):
                    self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"], "add": ["CHOWN"]})
                for container in spec["containers"] + spec.get("initContainers", []):
                    self.assertEqual(set(container["resources"]["limits"]), {"cpu", "memory"})
                    self.assertEqual(set(container["resources"]["requests"]), {"cpu", "memory"})

    def test_the_image_is_named_in_one_place(self):
        tags = [path for path in SOURCES.rglob("*.yaml") if "newTag:" in path.read_text() or "kvdepotd:" in path.read_text()]
        self.assertEqual(tags, [SOURCES / "image/kustomization.yaml"])
        images = {container["image"] for things in self.things.values() for pod in pods(things)
                  for container in pod["spec"]["containers"]}
        [image] = yaml.safe_load((SOURCES / "image/kustomization.yaml").read_text())["images"]
        self.assertEqual(images, {f"{image['name']}:{image['newTag']}"})

    def test_no_secret_is_in_the_manifests(self):
        for things in self.things.values():
            self.assertEqual(of_kind(things, "Secret"), [])


if __name__ == "__main__":
    unittest.main()
