"""This machine as the node of a cluster: what containers of deploy/kubernetes see of volumes and variables, in a
folder of a test, and who they are. Paths of pods are mapped into that folder; nothing else of them is changed."""

import os
import random
import re
import shutil
from pathlib import Path

# Nobody else may change users and make namespaces; then containers run as whoever tests.
IS_ROOT = os.geteuid() == 0


def loopback_address() -> str:
    """One of 127/8 that no other test has: a pod's port is fixed, and free on an address of its own."""
    numbers = random.Random(os.getpid())
    return f"127.{numbers.randrange(1, 255)}.{numbers.randrange(256)}.{numbers.randrange(1, 255)}"


class Node:
    def __init__(self, folder: Path, things: list[dict], secrets: dict[str, dict[str, str]], pod_ip: str = "127.0.0.1"):
        """`things`: what a folder of manifests renders to. `secrets`: their contents by name, then by key."""
        self._folder = folder
        self._pod_ip = pod_ip
        self._config_maps = {thing["metadata"]["name"]: thing["data"] for thing in things if thing["kind"] == "ConfigMap"}
        self._secrets = secrets

    def words(self, pod: dict, container: dict) -> list[str]:
        """Command, if the container has one, and arguments, as the kubelet would make them. Makes its volumes."""
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        folders = {path: self._volume_folder(volume) for path, volume in mounts.items()}
        for path, volume in mounts.items():
            self._fill(volume, folders, folders[path], pod["spec"]["securityContext"]["fsGroup"])
        variables = {entry["name"]: self._variable(pod, entry) for entry in container.get("env", [])}
        words = container.get("command", []) + container.get("args", [])
        expanded = [re.sub(r"\$\((\w+)\)", lambda found: variables[found.group(1)], word) for word in words]
        return [_mapped(word, folders) for word in expanded]

    def _volume_folder(self, volume: dict) -> Path:
        # A folder of the node is the same one for all its pods.
        path = volume["hostPath"]["path"].strip("/") if "hostPath" in volume else volume["name"]
        folder = self._folder / ("node" if "hostPath" in volume else "pods") / path
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _fill(self, volume: dict, folders: dict[str, Path], folder: Path, group: int) -> None:
        if "configMap" in volume:
            for key, text in self._config_maps[volume["configMap"]["name"]].items():
                (folder / key).write_text(_mapped(text, folders))
        elif "secret" in volume:
            for key, text in self._secrets[volume["secret"]["secretName"]].items():
                (folder / key).unlink(missing_ok=True)
                (folder / key).write_text(text)
                (folder / key).chmod(volume["secret"]["defaultMode"])
                if IS_ROOT:
                    shutil.chown(folder / key, group=group)

    def _variable(self, pod: dict, entry: dict) -> str:
        if "value" in entry:
            return entry["value"]
        path = entry["valueFrom"]["fieldRef"]["fieldPath"]
        if path == "status.podIP":
            return self._pod_ip
        return pod["metadata"]["labels"][re.fullmatch(r"metadata\.labels\['(.+)'\]", path).group(1)]


def _mapped(text: str, folders: dict[str, Path]) -> str:
    for path, folder in folders.items():
        text = re.sub(rf"(?<!\w){re.escape(path)}(?=[/\s]|$)", str(folder), text)
    return text


def confined(pod: dict) -> list[str]:
    """What stands before a command, so that it has the user, groups and namespaces of the pod's containers and no
    capability. Network and files stay this machine's."""
    if not IS_ROOT:
        return []
    context = pod["spec"]["securityContext"]
    groups = [*context.get("supplementalGroups", []), context["fsGroup"]]
    namespaces = ["--ipc"] + ([] if pod["spec"].get("hostPID") else ["--pid", "--fork", "--kill-child", "--mount-proc"])
    return ["unshare", *namespaces, "setpriv", f"--reuid={context['runAsUser']}", f"--regid={context['runAsGroup']}",
            f"--groups={','.join(map(str, groups))}", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
