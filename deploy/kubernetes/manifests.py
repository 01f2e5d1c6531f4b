"""What `kubectl apply -k` sends of this folder. It asks no cluster."""

import subprocess
from pathlib import Path

import yaml

# Whatever a user may apply, from this folder.
FOLDERS = ["overlays/cpu", "overlays/gpu", "client/cpu", "client/gpu"]


def render(kubectl: Path, folder: Path) -> list[dict]:
    """The objects of one folder. RuntimeError: kubectl has something to say, if only of a field that will go away."""
    result = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    if result.returncode != 0 or result.stderr:
        raise RuntimeError(result.stderr.strip() or f"kubectl kustomize ended with {result.returncode}")
    return list(yaml.safe_load_all(result.stdout))
