"""The commands of the README's section "On Kubernetes", run as far as they go without a cluster."""

import base64
import re
import subprocess
from pathlib import Path

import yaml

from tests.deploy.rendered_manifests import KUBECTL

# Nobody listens there.
NO_CLUSTER = "--server=http://127.0.0.1:1"


def commands() -> list[str]:
    section = re.search(r"^### On Kubernetes$.*?(?=^##)", Path("README.md").read_text(), re.MULTILINE | re.DOTALL).group()
    block = re.search(r"^```$(.*?)^```$", section, re.MULTILINE | re.DOTALL).group(1)
    return [line.split("  #")[0].strip() for line in block.strip().splitlines()]


def run(command: str, folder: Path) -> subprocess.CompletedProcess:
    """In bash, in `folder`, with our kubectl and nobody's configuration of it."""
    environment = {"PATH": f"{KUBECTL.parent}:/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


def make_secrets(folder: Path) -> dict[str, dict[str, str]]:
    """The Secrets that the commands create, by name and key. Files that the commands make are left in `folder`."""
    secrets = {}
    for command in commands():
        creates = "create secret" in command
        if command.startswith("kubectl") and not creates:
            continue
        done = run(command + (" --dry-run=client -o yaml" if creates else ""), folder)
        if done.returncode != 0:
            raise RuntimeError(f"{command}: {done.stderr}")
        if creates:
            secret = yaml.safe_load(done.stdout)
            secrets[secret["metadata"]["name"]] = {key: base64.b64decode(text).decode() for key, text in secret["data"].items()}
    return secrets
