"""Where memory goes, what compression saves, and how far sealing is behind."""

from deploy.grafana import panels
from deploy.grafana.panels import graph, mean, query, quantile, rate_by

TITLE, UID = "KV Depot: memory and sessions", "kvdepot-memory-sessions"
DESCRIPTION = "Where memory goes, what compression saves, and how far sealing is behind."

_MEMORY_LIMITS = 'reason=~"budget_bytes|tenant_quota_bytes|device_memory"'
_RATE = "[$__rate_interval]"


def rows() -> list[tuple[str, int, list]]:
    return [("Memory", 6, _memory()), ("Sessions", 6, _sessions()), ("Sealing", 8, _sealing())]


def _memory() -> list:
    return [
        graph("Budget used", "By daemon. Refusals begin at 100 %.", panels.RATIO,
              query("kvdepot_memory_used_bytes{TARGETS} / kvdepot_memory_budget_bytes{TARGETS}", "{{instance}}")),
        graph("Memory by kind", "Over the chosen daemons. The device gives slabs; sessions use a part of them.", panels.BYTES,
              query("sum(kvdepot_memory_budget_bytes{TARGETS})", "budget"),
              query("sum(kvdepot_memory_slab_bytes{TARGETS})", "slabs"),
              query("sum(kvdepot_memory_used_bytes{TARGETS})", "used"),
              query("sum(kvdepot_memory_slab_unused_bytes{TARGETS})", "unused in slabs")),
        graph("Unused part of slabs", "Room and gaps. On the CPU their pages take no memory.", panels.RATIO,
              query("kvdepot_memory_slab_unused_bytes{TARGETS} / (kvdepot_memory_slab_bytes{TARGETS} > 0)", "{{instance}}")),
        graph("Refused for want of memory", "By the limit: all sessions' budget, a tenant's quota, the device itself.",
              panels.RATE, query(rate_by("reason", "kvdepot_rejections_total", _MEMORY_LIMITS), "{{reason}}")),
    ]


def _sessions() -> list:
    return [
        graph("Sessions", "By daemon.", panels.COUNT, query("kvdepot_sessions{TARGETS}", "{{instance}}")),
        graph("What sessions hold", "Uncompressed and as stored, by codec.", panels.BYTES,
              query("sum by (codec) (kvdepot_session_logical_bytes{TARGETS})", "{{codec}} uncompressed"),
              query("sum by (codec) (kvdepot_session_stored_bytes{TARGETS})", "{{codec}} stored")),
        graph("Times smaller", "Uncompressed over stored, by codec; exact tails and sinks count too, so short sessions have less.",
              panels.COUNT,
              query("sum by (codec) (kvdepot_session_logical_bytes{TARGETS}) "
                    "/ (sum by (codec) (kvdepot_session_stored_bytes{TARGETS}) > 0)", "{{codec}}")),
        graph("Tokens", "Stored, and compressed by codec; each layer counted by itself.", panels.RATE,
              query(f"sum(rate(kvdepot_appended_tokens_total{{TARGETS}}{_RATE}))", "stored"),
              query(rate_by("codec", "kvdepot_sealed_tokens_total"), "sealed, {{codec}}")),
    ]


def _sealing() -> list:
    return [
        graph("Segments sealed", "By codec. Raw also where a session's codec could not hold the values.", panels.RATE,
              query(rate_by("codec", "kvdepot_sealed_segments_total"), "{{codec}}")),
        graph("Bytes sealed", "What went in and what came out, by codec.", panels.BYTES_PER_SECOND,
              query(rate_by("codec", "kvdepot_sealed_logical_bytes_total"), "{{codec}} in"),
              query(rate_by("codec", "kvdepot_sealed_stored_bytes_total"), "{{codec}} out")),
        graph("Seal lag", "From the addition that made a segment due until its exact tokens were free.", panels.SECONDS,
              query(quantile(.5, "kvdepot_seal_lag_seconds"), "p50"),
              query(quantile(.99, "kvdepot_seal_lag_seconds"), "p99")),
        graph("Seals put off", "For want of memory: their tokens stay exact, and large.", panels.RATE,
              query(f"sum by (instance) (rate(kvdepot_seals_deferred_total{{TARGETS}}{_RATE}))", "{{instance}}")),
        graph("Error of what is stored", "Relative L2 error of sampled segments; planes of 2 bits have about .2 for K and .4 for V.",
              panels.COUNT,
              query(mean("kvdepot_reconstruction_error_ratio", "kind"), "{{kind}} mean"),
              query(quantile(.9, "kvdepot_reconstruction_error_ratio", "kind"), "{{kind}} p90")),
    ]
