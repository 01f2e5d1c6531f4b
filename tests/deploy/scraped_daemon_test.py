"""A loaded daemon, scraped by a real Prometheus: dashboards and rules ask for what there is, and show all there is."""

import math
import re
import shutil
import tempfile
import time
import unittest
from pathlib import Path

from deploy.grafana import panel_queries
from tests.deploy.loaded_daemon import TENANTS, LoadedDaemon
from tests.deploy.prometheus_process import PrometheusProcess

# As long as the test, so that a rate sees all of the load.
RATE_INTERVAL = "5m"
SERIES_MAX = 2000

# Queries of panels for which zero, or nothing, is the right answer here.
ZERO_IS_RIGHT = {
    "kvdepot-overview / Alerts firing / A": "nothing is wrong with the daemon",
    "kvdepot-latency-leases / Directories held back / A": "the process that maps lets go of directories as it goes on",
    "kvdepot-latency-leases / Mapping errors / A": "every step of mapping went well",
}

# Rules that return nothing while all is well. Comparisons are asked with `bool`, so that others return 0.
NOTHING_IS_RIGHT = {
    "KvdepotNotScraped": "absent() returns a series only where there is none",
}

# Exported metrics that no dashboard shows.
NOT_SHOWN: dict[str, str] = {}

_METRIC = re.compile(r"\bkvdepot_[a-z0-9_]+")
_OF_HISTOGRAM = re.compile(r"_(bucket|sum|count)$")
# With a number, as alerts do it.
_COMPARISON = re.compile(r"(==|>|<) (?=[\d.]+)")


def metrics_in(expression: str) -> set[str]:
    """Names of the daemon's metrics, those of histograms without their parts; a recorded name counts as none."""
    return {_OF_HISTOGRAM.sub("", name) for name in _METRIC.findall(re.sub(r"\b\w+:\w+:\w+", "", expression))}


def is_data(series: list[dict]) -> bool:
    values = [float(one["value"][1]) for one in series]
    return any(value != 0 and not math.isnan(value) for value in values)


class ScrapedDaemonTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Not TEST_TMPDIR: a socket's path is limited to 107 bytes.
        cls.folder = Path(tempfile.mkdtemp(prefix="kvdepot-scraped-", dir="/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        for name in ("daemon", "prometheus"):
            (cls.folder / name).mkdir()
        cls.daemon = LoadedDaemon(cls.folder / "daemon")
        cls.addClassCleanup(cls.daemon.stop)
        cls.prometheus = PrometheusProcess(cls.folder / "prometheus", [cls.daemon.pages])
        cls.addClassCleanup(cls.prometheus.stop)
        # Rates count from the first scrape on, which is before the load.
        cls.prometheus.wait_until_scraped_after(time.time())
        cls.daemon.load()
        cls.prometheus.wait_until_scraped_after(time.time())
        cls.queries = [query for dashboard in panel_queries.dashboards()
                       for query in panel_queries.queries(dashboard, RATE_INTERVAL)]
        cls.exported = set(re.findall(r"^# TYPE (\S+)", cls.daemon.metrics(), re.MULTILINE))

    def test_every_query_of_a_panel_returns_data(self):
        self.assertLessEqual(set(ZERO_IS_RIGHT), {query.name for query in self.queries})
        for query in self.queries:
            with self.subTest(query.name):
                series = self.prometheus.query(query.expression)
                if query.name not in ZERO_IS_RIGHT:
                    self.assertTrue(is_data(series), f"{query.expression}: {series}")

    def test_every_rule_returns_data(self):
        rules = self.prometheus.rules()
        self.assertLessEqual(set(NOTHING_IS_RIGHT), {rule["name"] for rule in rules})
        for rule in rules:
            with self.subTest(rule["name"]):
                self.assertEqual(rule["health"], "ok", rule)
                if rule["type"] == "recording":
                    series = self.prometheus.query(rule["name"])
                else:
                    series = self.prometheus.query(_COMPARISON.sub(r"\1 bool ", rule["query"]))
                if rule["name"] not in NOTHING_IS_RIGHT:
                    self.assertTrue(series, rule["query"])

    def test_nothing_fires(self):
        self.assertEqual(self.prometheus.query('ALERTS{alertstate="firing"}'), [])

    def test_every_metric_that_is_asked_for_exists(self):
        rules = [rule["query"] for rule in self.prometheus.rules()]
        variables = [variable["query"] for dashboard in panel_queries.dashboards()
                     for variable in dashboard["templating"]["list"]]
        for expression in [query.expression for query in self.queries] + rules + variables:
            self.assertLessEqual(metrics_in(expression), self.exported, expression)

    def test_every_recorded_name_that_is_asked_for_exists(self):
        rules = self.prometheus.rules()
        recorded = {rule["name"] for rule in rules if rule["type"] == "recording"}
        asked = {name for rule in rules for name in re.findall(r"\b\w+:\w+:\w+", rule["query"])}
        self.assertEqual(asked - recorded, set())

    def test_every_exported_metric_is_on_a_dashboard(self):
        shown = set().union(*(metrics_in(query.expression) for query in self.queries))
        self.assertEqual(self.exported - shown - set(NOT_SHOWN), set())
        self.assertEqual(set(NOT_SHOWN) & shown, set())

    def test_variables_choose_by_labels_that_exist(self):
        labels = self.prometheus.query("kvdepot_build_info")[0]["metric"]
        for dashboard in panel_queries.dashboards():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] == "query":
                    self.assertIn(variable["name"], labels)

    def test_tenants_make_no_series(self):
        # The daemon's and Prometheus' own of the scrape, without what rules have made of them.
        series = self.prometheus.query('count({job="kvdepot", __name__!~".*:.*|ALERTS.*"})')
        self.assertLess(float(series[0]["value"][1]), SERIES_MAX)
        page = self.daemon.metrics()
        for tenant in TENANTS:
            self.assertNotIn(tenant, page)


if __name__ == "__main__":
    unittest.main()
