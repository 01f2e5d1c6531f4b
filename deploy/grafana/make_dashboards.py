#!/usr/bin/python3 -B
"""Writes dashboards/*.json beside this file from the modules beside it. Repeat it after a change there:
tests/deploy/dashboards_test.py compares.

Needs the Grafana Foundation SDK, which `deploy/install test` puts into .tools/grafana.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / ".tools/grafana")]

from grafana_foundation_sdk.builders import dashboard as build  # noqa: E402
from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync  # noqa: E402

from deploy.grafana import latency_and_leases, memory_and_sessions, overview, variables  # noqa: E402

MODULES = [overview, memory_and_sessions, latency_and_leases]


def dashboard(module) -> str:
    """The JSON of one dashboard; the module's rows are (title, width of a panel in 24ths, panels)."""
    made = (
        build.Dashboard(module.TITLE)
        .uid(module.UID)
        .description(module.DESCRIPTION)
        .tags(["kvdepot"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables(variables.variables())
        # To the other two, with the time range and the variables kept.
        .link(build.DashboardLink("KV Depot").type("dashboards").tags(["kvdepot"]).as_dropdown(True).include_vars(True).keep_time(True))
    )
    number = 0
    for title, width, row in module.rows():
        number += 1
        made.with_row(build.Row(title).id(number))
        for panel in row:
            number += 1
            made.with_panel(panel.id(number).span(width))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def files() -> dict[str, str]:
    """Name and content of every dashboard's file."""
    return {f"{module.UID}.json": dashboard(module) for module in MODULES}


def main() -> None:
    folder = HERE / "dashboards"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    for name, content in files().items():
        (folder / name).write_text(content)


if __name__ == "__main__":
    main()
