#!/usr/bin/python3 -B
"""Checks every object of these manifests against the schemas of Kubernetes, unknown fields and kinds included.

Needs what `deploy/install test` puts into .tools. Prints each finding; exit code 1 if there is one.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parents[1] / ".tools"
sys.path[:0] = [str(HERE.parents[1]), str(TOOLS / "kubernetes_validate")]

import jsonschema  # noqa: E402
import kubernetes_validate  # noqa: E402

from deploy.kubernetes.manifests import FOLDERS, render  # noqa: E402

# The oldest release that these manifests are for, and the newest that there are schemas of.
KUBERNETES_VERSIONS = ["1.30", "1.37"]
# Kinds that are not Kubernetes' own.
CUSTOM_KINDS = {("monitoring.coreos.com/v1", "ServiceMonitor"): HERE / "schemas/service_monitor.json"}


def problem(thing: dict, version: str) -> str:
    """What is wrong with an object, where; empty if nothing is."""
    schema = CUSTOM_KINDS.get((thing["apiVersion"], thing["kind"]))
    try:
        if schema:
            jsonschema.validate(thing, json.loads(schema.read_text()), jsonschema.Draft202012Validator)
        else:
            kubernetes_validate.validate(thing, version, strict=True)
    except jsonschema.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    # The command of that package only warns here, and ends with 0.
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message
    return ""


def main() -> int:
    problems = []
    for folder in FOLDERS:
        try:
            things = render(TOOLS / "kubectl/bin/kubectl", HERE / folder)
        except RuntimeError as error:
            problems.append(f"{folder}: {error}")
            continue
        for thing in things:
            for version in KUBERNETES_VERSIONS:
                if found := problem(thing, version):
                    problems.append(f"{folder}: {thing['kind']} {thing['metadata']['name']}, Kubernetes {version}: {found}")
    for text in problems:
        print(f"deploy/kubernetes/{text}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
