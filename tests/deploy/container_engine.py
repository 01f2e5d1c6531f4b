"""Podman for a test: Debian's package, with images, volumes and networks of its own, and nothing of it left behind.

Runs as root, on any Debian 12 machine that may mount: with or without systemd, overlayfs or a tidy cgroup tree."""

import ctypes
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from tests.deploy.polling import wait_for

# What deploy/Dockerfile starts from, and what stands in for the image of that name.
DEBIAN, RELEASE = "docker.io/library/debian:12-slim", "bookworm"
PODMAN_COMPOSE = "../podman_compose/podman_compose.py"
_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000  # <sched.h>

# Of a process in a container. Podman would raise them to a million, which a machine need not allow.
_LIMITS = {"nofile": 4096, "nproc": 4096}
_CONFIGURATION = """
[containers]
default_ulimits = ["nofile={nofile}:{nofile}", "nproc={nproc}:{nproc}"]
pids_limit = 0
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
static_dir = "{folder}/libpod"
tmp_dir = "{folder}/tmp"
volume_path = "{folder}/volumes"
[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
"""
_STORAGE = """
[storage]
driver = "{driver}"
graphroot = "{folder}/storage"
runroot = "{folder}/run"
"""


def run(*command, timeout: float = 600, check: bool = True, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=timeout, **options)
    if check and done.returncode != 0:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done


def _unshare(namespace: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(namespace) != 0:
        error = os.strerror(ctypes.get_errno())
        raise PermissionError(f"unshare: {error}: this test needs a machine where root may make namespaces and mount")


class ContainerEngine:
    """From its first call on this process and its children have their own mounts: whatever is mounted goes with them."""

    def __init__(self):
        if os.geteuid() != 0:
            raise PermissionError("this test builds and runs containers: it must be run as root")
        _unshare(_CLONE_NEWNS)
        run("mount", "--make-rprivate", "/")
        self.folder = Path(tempfile.mkdtemp(prefix="kvdepot-image-", dir="/var/tmp"))
        # crun refuses a tree of both versions of control groups.
        if Path("/sys/fs/cgroup/unified").exists():
            run("mount", "-t", "tmpfs", "tmpfs", "/sys/fs/cgroup/unified")
        for name, text in ("containers.conf", _CONFIGURATION), ("storage.conf", _STORAGE):
            (self.folder / name).write_text(text.format(folder=self.folder, driver=self._storage_driver(), **_LIMITS))
        os.environ.update(CONTAINERS_CONF=str(self.folder / "containers.conf"),
                          CONTAINERS_STORAGE_CONF=str(self.folder / "storage.conf"), TMPDIR=str(self.folder),
                          PATH="/usr/sbin:/usr/bin:/sbin:/bin")

    def _storage_driver(self) -> str:
        """Layers are whole copies where the machine has no overlays."""
        for name in "lower", "upper", "work", "merged":
            (self.folder / "overlay" / name).mkdir(parents=True, exist_ok=True)
        options = ",".join(f"{name}dir={self.folder}/overlay/{name}" for name in ("lower", "upper", "work"))
        merged = self.folder / "overlay/merged"
        if run("mount", "-t", "overlay", "-o", options, "overlay", merged, check=False).returncode != 0:
            return "vfs"
        run("umount", merged)
        return "overlay"

    def limit_options(self, **more: int) -> list[str]:
        return [f"--ulimit={name}={value}" for name, value in {**_LIMITS, **more}.items()]

    def podman(self, *arguments, **options) -> str:
        return run("podman", *arguments, **options).stdout

    def succeeds(self, *arguments) -> bool:
        return run("podman", *arguments, check=False).returncode == 0

    def logs(self, container: str) -> str:
        done = run("podman", "logs", container)
        return done.stdout + done.stderr

    def inspect(self, kind: str, name: str) -> dict:
        return json.loads(self.podman(kind, "inspect", name))[0]

    def import_debian(self) -> None:
        """A Debian 12 from this machine's own mirror, under the name of the one from a registry."""
        indexes = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages",
                      "Origin: Debian").stdout.splitlines()
        sources = sorted({line for line in indexes if line.split()[1].startswith(RELEASE) and line.endswith(" main")})
        mirror = next(line.split()[0] for line in sources if line.split()[1] == RELEASE)
        root = self.folder / "debian"
        run("debootstrap", "--variant=minbase", RELEASE, root, mirror)
        (root / "etc/apt/sources.list").write_text("".join(f"deb {line}\n" for line in sources))
        # As much as an image of Debian's has: nothing of how it was made.
        run("chroot", root, "apt-get", "clean")
        run("tar", "-C", root, "-cf", self.folder / "debian.tar", ".")
        self.podman("import", self.folder / "debian.tar", DEBIAN)
        shutil.rmtree(root)
        (self.folder / "debian.tar").unlink()

    def build(self, dockerfile: str, context: Path, tag: str, *options, timeout: float = 600) -> None:
        """Builds one target of a Dockerfile, its text given. RUN has the machine's network."""
        path = self.folder / "Dockerfile"
        path.write_text(dockerfile)
        self.podman("build", "--network=host", "--pull=never", "--format=docker", "--file", path,
                    "--tag", tag, *options, context, timeout=timeout)

    def leave_network(self) -> None:
        """From here on containers' networks are no part of the machine's. Nothing can be downloaded any more."""
        _unshare(_CLONE_NEWNET)
        run("ip", "link", "set", "lo", "up")
        run("mount", "-t", "tmpfs", "tmpfs", "/run")

    def compose(self, file: Path, *arguments) -> str:
        services = yaml.safe_load(file.read_text())["services"]
        limits = self.folder / "limits.yaml"
        limits.write_text(yaml.safe_dump({"services": {name: {"ulimits": _LIMITS} for name in services}}))
        return run("/usr/bin/python3", "-B", PODMAN_COMPOSE, "--in-pod=false", "-f", file.resolve(), "-f", limits, *arguments,
                   env={**os.environ, "PYTHONPATH": str(Path(PODMAN_COMPOSE).parent)}).stdout

    def wait_until_healthy(self, container: str) -> None:
        """As a container's own health check says, which somebody must call where there is no systemd to do it."""
        wait_for(f"{container} is healthy", lambda: self.succeeds("healthcheck", "run", container))

    def close(self) -> None:
        run("podman", "rm", "--all", "--force", "--time=0", check=False)
        run("podman", "volume", "rm", "--all", "--force", check=False)
        run("podman", "rmi", "--all", "--force", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)
        groups = Path("/sys/fs/cgroup")
        for parent in [*groups.glob("libpod_parent"), *groups.glob("*/libpod_parent")]:
            # Empty once the last container's monitor has ended, or another's, who has this parent too.
            run("rmdir", parent / "conmon", parent, check=False)
