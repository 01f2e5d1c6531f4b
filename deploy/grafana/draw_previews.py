#!/usr/bin/python3 -B
"""Draws the committed dashboards about as Grafana shows them, from a Prometheus that is running:

    deploy/grafana/draw_previews.py http://127.0.0.1:9090 FOLDER [MINUTES]

One PNG a dashboard, with the panels where they lie there. For a look at panels where there is no Grafana, and
for a reviewer who has none at hand.
"""

import json
import math
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # No display.

from matplotlib import dates, pyplot, ticker  # noqa: E402
from PIL import Image  # noqa: E402

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parents[1]))

from deploy.grafana import panel_queries  # noqa: E402

COLUMNS, COLUMN_INCHES, ROW_INCHES = 24, .72, .34
POINTS = 240
COLOURS = 128
RATE_INTERVAL = "30s"
LEGEND_MAX, LEGEND_COLUMNS = 8, 2
GREEN, ORANGE, RED, GREY = "#2f9e44", "#e8890c", "#d6336c", "#666666"
_COLOURS = {"green": GREEN, "orange": ORANGE, "red": RED}
_BINARY = ["B", "KiB", "MiB", "GiB", "TiB"]
_DAY_SECONDS = 86400  # matplotlib counts days since 1970.


def text_of(value: float, unit: str) -> str:
    """As Grafana writes a value of that unit."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit in ("bytes", "binBps"):
        step = 0
        while abs(value) >= 1024 and step + 1 < len(_BINARY):
            value, step = value / 1024, step + 1
        return f"{value:.3g} {_BINARY[step]}" + ("/s" if unit == "binBps" else "")
    if unit == "s":
        if value >= 60 or value == 0:
            return f"{value / 60:.3g} min" if value else "0"
        for scale, name in ((1, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if value >= scale:
                return f"{value / scale:.3g} {name}"
    if abs(value) >= 1000:
        short = f"{value / 1000:.4g} K" if abs(value) < 1e6 else f"{value / 1e6:.4g} M"
    else:
        short = f"{value:.3g}"
    return short + (" c/s" if unit == "cps" else "")


class Prometheus:
    def __init__(self, url: str, minutes: float):
        self.url = url.rstrip("/")
        self.end = time.time()
        self.start = self.end - minutes * 60
        self.step = max(1, math.ceil((self.end - self.start) / POINTS))

    def _api(self, path: str, **parameters) -> list[dict]:
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.loads(answer.read())["data"]["result"]

    def over_time(self, expression: str) -> list[dict]:
        return self._api("query_range", query=expression, start=self.start, end=self.end, step=self.step)

    def now(self, expression: str) -> list[dict]:
        return self._api("query", query=expression, time=self.end)


def legend_of(template: str, labels: dict) -> str:
    for name, value in labels.items():
        template = template.replace("{{" + name + "}}", value)
    return template


def with_gaps(samples: list, step: float) -> tuple[list[float], list[float]]:
    """Moments and values of a line that ends where there is no sample."""
    moments, values = [], []
    for moment, value in samples:
        moment = float(moment) / _DAY_SECONDS
        if moments and moment - moments[-1] > 1.5 * step / _DAY_SECONDS:
            moments.append(moment)
            values.append(math.nan)
        moments.append(moment)
        values.append(float(value))
    return moments, values


def draw_graph(axis, unit: str, queries: list, prometheus: Prometheus, stacked: bool) -> None:
    lines = []
    for query in queries:
        for series in prometheus.over_time(query.expression):
            lines.append((legend_of(query.legend, series["metric"]), *with_gaps(series["values"], prometheus.step)))
    if stacked:
        draw_stack(axis, lines)
    else:
        for name, moments, values in lines:
            axis.plot(moments, values, linewidth=1, label=name)
    # A line along zero is not to lie under the frame.
    axis.set_ylim(bottom=-.02 * axis.get_ylim()[1])
    axis.set_xlim(prometheus.start / _DAY_SECONDS, prometheus.end / _DAY_SECONDS)
    axis.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axis.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=5))
    axis.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: text_of(value, unit)))
    axis.tick_params(labelsize=6)
    axis.grid(True, alpha=.25)
    if not lines:
        axis.text(.5, .5, "No data", ha="center", va="center", transform=axis.transAxes, color=GREY)
        return
    handles, names = axis.get_legend_handles_labels()
    if len(names) > LEGEND_MAX:
        names[LEGEND_MAX - 1:] = [f"and {len(names) - LEGEND_MAX + 1} more"]
    axis.legend(handles[:len(names)], names, fontsize=5.5, ncol=LEGEND_COLUMNS, loc="upper left",
                bbox_to_anchor=(0, -.13), frameon=False, borderaxespad=0, handlelength=1.2, labelspacing=.2)


def draw_stack(axis, lines: list) -> None:
    """Series may begin at different times: where one has no value it is 0."""
    moments = sorted({moment for _, own, _ in lines for moment in own})
    if moments:
        values = [[dict(zip(own, numbers)).get(moment, 0) for moment in moments] for _, own, numbers in lines]
        axis.stackplot(moments, values, labels=[name for name, _, _ in lines], alpha=.6)


def draw_number(axis, panel: dict, query, prometheus: Prometheus) -> None:
    past = prometheus.over_time(query.expression)
    axis.axis("off")
    now = float(past[0]["values"][-1][1]) if past else math.nan
    colour = GREEN
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or now >= step["value"]:
            colour = _COLOURS[step["color"]]
    if past:
        axis.fill_between([float(moment) for moment, _ in past[0]["values"]],
                          [float(value) for _, value in past[0]["values"]], alpha=.15, color=colour)
        axis.set_ylim(bottom=0)
    axis.text(.5, .5, text_of(now, query.unit) if past else "No data", ha="center", va="center", fontsize=16,
              transform=axis.transAxes, color=colour)


def draw_table(axis, panel: dict, query, prometheus: Prometheus) -> None:
    axis.axis("off")
    hidden = panel["transformations"][0]["options"]["excludeByName"]
    rows = [{name: value for name, value in series["metric"].items() if name not in hidden}
            for series in prometheus.now(query.expression)]
    if not rows:
        nothing = panel.get("fieldConfig", {}).get("defaults", {}).get("noValue", "No data")
        axis.text(.5, .5, nothing, ha="center", va="center", transform=axis.transAxes, color=GREY)
        return
    names = sorted({name for row in rows for name in row})
    table = axis.table([[row.get(name, "") for name in names] for row in rows], colLabels=names, loc="upper center",
                       cellLoc="left")
    table.auto_set_font_size(False)
    table.set_fontsize(7)


def draw(dashboard: dict, prometheus: Prometheus, path: Path) -> None:
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    width, height = COLUMNS * COLUMN_INCHES, (rows + 2) * ROW_INCHES
    figure = pyplot.figure(figsize=(width, height))
    figure.text(.01, 1 - .9 * ROW_INCHES / height, dashboard["title"], fontsize=13, weight="bold")
    asked = list(panel_queries.queries(dashboard, RATE_INTERVAL))
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        top = 1 - (place["y"] + 2) * ROW_INCHES / height
        if panel["type"] == "row":
            figure.text(.01, top - .6 * ROW_INCHES / height, panel["title"], fontsize=9, weight="bold", color=GREY)
            continue
        queries = [query for query in asked if query.panel == panel["title"]]
        has_legend = panel["type"] == "timeseries"
        # Room for a title above, tick labels beside, and the legend below.
        left, below, above = (.85, 2.4, .9) if has_legend else (.3, .2, .9)
        bottom = top - (place["h"] - below) * ROW_INCHES / height
        axis = figure.add_axes((
            (place["x"] + left) / COLUMNS, bottom, (place["w"] - left - .3) / COLUMNS,
            (place["h"] - below - above) * ROW_INCHES / height))
        axis.set_title(panel["title"], fontsize=8, loc="left", pad=4)
        if panel["type"] == "stat":
            draw_number(axis, panel, queries[0], prometheus)
        elif panel["type"] == "table":
            draw_table(axis, panel, queries[0], prometheus)
        else:
            is_stacked = panel["fieldConfig"]["defaults"]["custom"].get("stacking", {}).get("mode") == "normal"
            draw_graph(axis, queries[0].unit, queries, prometheus, is_stacked)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    # A third of the bytes: lines and text need few colours.
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


def draw_all(url: str, folder: Path, minutes: float) -> None:
    """Into `folder`, which it makes; prints what it drew."""
    folder.mkdir(parents=True, exist_ok=True)
    prometheus = Prometheus(url, minutes)
    for dashboard in panel_queries.dashboards():
        path = folder / f"{dashboard['uid']}.png"
        draw(dashboard, prometheus, path)
        print(path)


def main() -> None:
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    draw_all(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) == 4 else 60)


if __name__ == "__main__":
    main()
