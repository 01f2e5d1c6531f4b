"""What an operator looks at first: is it up, is it full, does it fail, is it slow."""

from deploy.grafana import panels
from deploy.grafana.panels import graph, labels, number, query, quantile, rate_by

TITLE, UID = "KV Depot: overview", "kvdepot-overview"
DESCRIPTION = "Is it up, is it full, does it fail, is it slow."

_ATTEND = 'operation="attend", stage="total"'


def rows() -> list[tuple[str, int, list]]:
    return [("Now", 4, _now()), ("Alerts and daemons", 12, _tables()), ("Calls", 8, _calls()), ("Load", 8, _load())]


def _now() -> list:
    return [
        number("Daemons up", "Of the chosen ones, those that Prometheus could read last.", panels.COUNT,
               query("sum(up{TARGETS})")),
        number("Memory used", "Of the budget. Refusals begin at 100 %.", panels.RATIO,
               query("sum(kvdepot_memory_used_bytes{TARGETS}) / sum(kvdepot_memory_budget_bytes{TARGETS})"),
               warn=.8, alarm=.95, decimals=1),
        number("Sessions", "Held now, over all tenants.", panels.COUNT, query("sum(kvdepot_sessions{TARGETS})")),
        number("Times smaller", "What the tokens held would take uncompressed over what they take.", panels.COUNT,
               query("sum(kvdepot_session_logical_bytes{TARGETS}) / sum(kvdepot_session_stored_bytes{TARGETS})"),
               decimals=2),
        number("Attend p99", "One attend in a hundred takes longer, from the call's arrival to its result.", panels.SECONDS,
               query(quantile(.99, "kvdepot_operation_duration_seconds", more=_ATTEND)), warn=.5, alarm=1),
        number("Running for", "The youngest of the chosen daemons: what it held before is gone.", panels.SECONDS,
               query("min(time() - kvdepot_start_time_seconds{TARGETS})")),
    ]


def _tables() -> list:
    return [
        labels("Alerts firing", "Of deploy/prometheus/rules.yaml. Each has a runbook in the README.",
               query('ALERTS{job=~"$job", instance=~"$instance|", alertname=~"Kvdepot.*", alertstate="firing"}'), ["alertstate", "job"],
               nothing="none"),
        labels("Daemons", "Release, backend and device; the epoch changes with every start.",
               query("kvdepot_build_info{TARGETS}"), ["job"]),
    ]


def _calls() -> list:
    return [
        graph("Calls answered", "By method; those that were called at least once.", panels.RATE,
              query(rate_by("method", "kvdepot_rpc_handled_total"), "{{method}}")),
        graph("Calls not OK", "By status code. INTERNAL and DATA_LOSS are ours, INVALID_ARGUMENT and NOT_FOUND the client's.",
              panels.RATE, query(rate_by("code", "kvdepot_rpc_handled_total", 'code!="OK"'), "{{code}}")),
        graph("Calls refused", "Right in themselves, by the limit that they met.", panels.RATE,
              query(rate_by("reason", "kvdepot_rejections_total"), "{{reason}}")),
    ]


def _load() -> list:
    return [
        graph("Memory", "What sessions use, and may.", panels.BYTES,
              query("sum by (instance) (kvdepot_memory_used_bytes{TARGETS})", "{{instance}} used"),
              query("sum by (instance) (kvdepot_memory_budget_bytes{TARGETS})", "{{instance}} budget")),
        graph("Tokens stored", "Appended or committed, each layer counted by itself.", panels.RATE,
              query("sum by (instance) (rate(kvdepot_appended_tokens_total{TARGETS}[$__rate_interval]))", "{{instance}}")),
        graph("Attend", "From the call's arrival to its result, over all chosen daemons.", panels.SECONDS,
              query(quantile(.5, "kvdepot_operation_duration_seconds", more=_ATTEND), "p50"),
              query(quantile(.99, "kvdepot_operation_duration_seconds", more=_ATTEND), "p99")),
    ]
