"""What `kubectl apply -k` sends of each folder of deploy/kubernetes, for tests to look at."""

import os
import shutil
import tempfile
from pathlib import Path

from deploy.kubernetes.manifests import FOLDERS, render

SOURCES = Path("deploy/kubernetes")
# Where Bazel's tests find it; the variable is for those who run without it.
KUBECTL = Path(os.environ.get("KUBECTL", "../kubectl/bin/kubectl")).absolute()


def render_all() -> dict[str, list[dict]]:
    """The objects by folder."""
    with tempfile.TemporaryDirectory() as folder:
        # kubectl follows no link that leads out of a folder, and Bazel's files are such links.
        copy = shutil.copytree(SOURCES, Path(folder) / "kubernetes")
        return {name: render(KUBECTL, copy / name) for name in FOLDERS}


def of_kind(things: list[dict], kind: str) -> list[dict]:
    return [thing for thing in things if thing["kind"] == kind]


def pods(things: list[dict]) -> list[dict]:
    """Metadata and spec of all pods: those of DaemonSets, and those that stand for themselves."""
    return [thing["spec"]["template"] for thing in of_kind(things, "DaemonSet")] + of_kind(things, "Pod")
