"""How panels look. A query is written with TARGETS for the braces' content that all of them share:
"sum(kvdepot_sessions{TARGETS})"."""

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DataTransformerConfig,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.grafana.variables import DATA_SOURCE, TARGETS

BYTES, SECONDS, RATIO, RATE, COUNT = "bytes", "s", "percentunit", "cps", "short"
BYTES_PER_SECOND = "binBps"


def query(expression: str, legend: str = "") -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(expression.replace("TARGETS", TARGETS)).legend_format(legend)


def _with_queries(panel, queries):
    for number, one in enumerate(queries):
        panel.with_target(one.ref_id(chr(ord("A") + number)))
    return panel.datasource(DATA_SOURCE)


def _steps(warn: float | None, alarm: float | None) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color="green")]
    if warn is not None:
        steps.append(Threshold(value=warn, color="orange"))
    if alarm is not None:
        steps.append(Threshold(value=alarm, color="red"))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def graph(title: str, description: str, unit: str, *queries, stacked: bool = False):
    """Lines over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .min(0)
        .height(8)
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    return _with_queries(panel, queries)


def number(title: str, description: str, unit: str, one, warn=None, alarm=None, decimals=None):
    """The newest value in large type, with its past behind it."""
    panel = (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .height(4)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_steps(warn, alarm))
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.THRESHOLDS))
    )
    if decimals is not None:
        panel.decimals(decimals)
    return _with_queries(panel, [one])


def labels(title: str, description: str, one, hidden: list[str], nothing: str = ""):
    """A table of what series there are now, by their labels."""
    panel = (
        table.Panel()
        .title(title)
        .description(description)
        .height(6)
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {name: True for name in ["Time", "Value", "__name__", *hidden]}},
            )
        )
    )
    if nothing:
        panel.no_value(nothing)
    return _with_queries(panel, [one.instant().format(PromQueryFormat.TABLE)])


def ever(expression: str, by: str, counter: str) -> str:
    """`expression`, but only of those label values that the counter has ever counted: most methods and codes
    stay at zero for life and would fill the legend."""
    return f"{expression} and sum by ({by}) ({counter}) > 0"


def rate_by(by: str, counter: str, more: str = "") -> str:
    """How fast a counter grows, by the labels `by`; `more` are further matchers."""
    series = f"{counter}{{TARGETS{', ' + more if more else ''}}}"
    return ever(f"sum by ({by}) (rate({series}[$__rate_interval]))", by, series)


def quantile(q: float, histogram: str, by: str = "", more: str = "") -> str:
    """A quantile over all daemons chosen, by the labels `by`."""
    le = f"le, {by}" if by else "le"
    matchers = f"TARGETS{', ' + more if more else ''}"
    return f"histogram_quantile({q}, sum by ({le}) (rate({histogram}_bucket{{{matchers}}}[$__rate_interval])))"


def mean(histogram: str, by: str = "", more: str = "") -> str:
    matchers = f"TARGETS{', ' + more if more else ''}"
    head = f"sum by ({by})" if by else "sum"
    parts = (f"{head} (rate({histogram}_{part}{{{matchers}}}[$__rate_interval]))" for part in ("sum", "count"))
    return " / ".join(parts)
