"""Where time goes, and what processes that map sessions hold."""

from deploy.grafana import panels
from deploy.grafana.panels import ever, graph, mean, query, quantile, rate_by

TITLE, UID = "KV Depot: latency and leases", "kvdepot-latency-leases"
DESCRIPTION = "Where time goes, and what processes that map sessions hold."

_DURATION = "kvdepot_operation_duration_seconds"
_ATTEND = 'operation="attend"'
_COUNT = f"{_DURATION}_count{{TARGETS}}"
_LEASE_METHODS = 'method=~"OpenLease|MapSession|Commit|UnmapSession|RegisterBuffer|UnregisterBuffer"'


def rows() -> list[tuple[str, int, list]]:
    return [("Latency", 6, _latency()), ("Load", 6, _load()), ("Leases", 8, _leases())]


def _latency() -> list:
    return [
        graph("Attend", "From the call's arrival to its result.", panels.SECONDS,
              *[query(quantile(q, _DURATION, more=f'{_ATTEND}, stage="total"'), f"p{q * 100:g}") for q in (.5, .9, .99)]),
        graph("Attend, where time goes", "Mean of a call: waiting, on the device, in all. The rest lies between pieces.",
              panels.SECONDS, query(mean(_DURATION, "stage", _ATTEND), "{{stage}}")),
        graph("p99 by operation", "From the call's arrival to its result.", panels.SECONDS,
              query(ever(quantile(.99, _DURATION, "operation", 'stage="total"'), "operation", _COUNT), "{{operation}}")),
        graph("Waiting, p99 by operation", "Until the first piece begins: more work than the device does shows here first.",
              panels.SECONDS, query(ever(quantile(.99, _DURATION, "operation", 'stage="queue"'), "operation", _COUNT), "{{operation}}")),
    ]


def _load() -> list:
    return [
        graph("Operations", "Ended, by kind. A chunk of an append is one, its end another.", panels.RATE,
              query(ever(f"sum by (operation) (rate({_DURATION}_count{{TARGETS, stage=\"total\"}}[$__rate_interval]))",
                         "operation", _COUNT), "{{operation}}")),
        graph("Time on the device", "Seconds of work a second, by kind. Attends of one batch count each.", panels.COUNT,
              query(ever(f"sum by (operation) (rate({_DURATION}_sum{{TARGETS, stage=\"kernel\"}}[$__rate_interval]))",
                         "operation", _COUNT), "{{operation}}"), stacked=True),
        graph("Calls in flight", "By method. OpenLease lasts as long as a lease.", panels.COUNT,
              query(ever("sum by (method) (kvdepot_rpc_started_total{TARGETS}) "
                         "- sum by (method) (kvdepot_rpc_handled_total{TARGETS})",
                         "method", "kvdepot_rpc_started_total{TARGETS}"), "{{method}}")),
        graph("Calls that arrived", "By method; those that were called at least once.", panels.RATE,
              query(rate_by("method", "kvdepot_rpc_started_total"), "{{method}}")),
    ]


def _leases() -> list:
    return [
        graph("Leases", "Processes that may map sessions, by daemon.", panels.COUNT,
              query("kvdepot_leases{TARGETS}", "{{instance}}")),
        graph("Mapped memory", "Slabs that processes map, one of two twice; memory of processes that calls use in place.",
              panels.BYTES,
              query("sum by (instance) (kvdepot_mapped_bytes{TARGETS})", "{{instance}} slabs"),
              query("sum by (instance) (kvdepot_registered_buffer_bytes{TARGETS})", "{{instance}} buffers")),
        graph("Directories held back", "Old ones that a process has not let go of. Their memory is not reused meanwhile.",
              panels.COUNT, query("kvdepot_directory_versions_held_back{TARGETS}", "{{instance}}")),
        graph("Memory that came back", "Because processes let go of directories.", panels.BYTES_PER_SECOND,
              query("sum by (instance) (rate(kvdepot_mapped_reclaimed_bytes_total{TARGETS}[$__rate_interval]))", "{{instance}}")),
        graph("Calls about leases", "By method.", panels.RATE,
              query(rate_by("method", "kvdepot_rpc_handled_total", _LEASE_METHODS), "{{method}}")),
        graph("Mapping errors", "By step and code; what calls return is under Calls not OK.", panels.RATE,
              query(rate_by("operation, code", "kvdepot_mapping_errors_total"), "{{operation}} {{code}}")),
    ]
