"""What the committed dashboards ask Prometheus, as Grafana would send it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "dashboards"


@dataclass
class PanelQuery:
    dashboard: str  # uid
    panel: str  # title
    kind: str  # timeseries, stat, table
    unit: str
    legend: str
    ref: str
    expression: str

    @property
    def name(self) -> str:
        return f"{self.dashboard} / {self.panel} / {self.ref}"


def dashboards(folder: Path = FOLDER) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def panels(dashboard: dict) -> list[dict]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled_in(expression: str, rate_interval: str) -> str:
    """With everything chosen, as the dashboards open."""
    for variable, value in {"$job": ".+", "$instance": ".+", "$device": ".+", "$__rate_interval": rate_interval}.items():
        expression = expression.replace(variable, value)
    return expression


def queries(dashboard: dict, rate_interval: str) -> Iterator[PanelQuery]:
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield PanelQuery(
                dashboard["uid"], panel["title"], panel["type"],
                panel.get("fieldConfig", {}).get("defaults", {}).get("unit", ""), target["legendFormat"], target["refId"],
                filled_in(target["expr"], rate_interval),
            )
