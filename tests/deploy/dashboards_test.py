"""The committed dashboards are what the code makes, and can be found their way around in."""

import json
import unittest
from pathlib import Path

import yaml

from deploy.grafana import make_dashboards, panel_queries

PANELS_MIN = 15
VARIABLES = ["datasource", "job", "device", "instance"]
FOLDER = Path("deploy/grafana/dashboards")
PROVISIONING = Path("deploy/grafana/provisioning")


class DashboardsTest(unittest.TestCase):
    def test_committed_files_are_what_the_code_makes(self):
        committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
        made = make_dashboards.files()
        self.assertEqual(set(committed), set(made))
        for name, content in made.items():
            self.assertTrue(committed[name] == content, f"{name}: run deploy/grafana/make_dashboards.py")

    def test_there_are_enough_panels_and_each_says_what_it_shows(self):
        panels = [panel for dashboard in panel_queries.dashboards() for panel in panel_queries.panels(dashboard)]
        self.assertGreaterEqual(len(panels), PANELS_MIN)
        for panel in panels:
            self.assertTrue(panel["title"] and panel["description"] and panel["targets"], panel)

    def test_names_and_numbers_are_used_once(self):
        dashboards = panel_queries.dashboards()
        self.assertEqual(len({dashboard["uid"] for dashboard in dashboards}), len(dashboards))
        for dashboard in dashboards:
            ids = [panel["id"] for panel in dashboard["panels"]]
            self.assertEqual(len(set(ids)), len(ids), dashboard["uid"])
            names = [query.name for query in panel_queries.queries(dashboard, "1m")]
            self.assertEqual(len(set(names)), len(names), dashboard["uid"])

    def test_every_dashboard_has_the_variables_and_every_query_uses_them(self):
        for dashboard in panel_queries.dashboards():
            self.assertEqual([variable["name"] for variable in dashboard["templating"]["list"]], VARIABLES)
            for panel in panel_queries.panels(dashboard):
                self.assertEqual(panel["datasource"]["uid"], "${datasource}")
                for target in panel["targets"]:
                    self.assertIn("$job", target["expr"])
                    self.assertIn("$instance", target["expr"])
            self.assertNotIn("$", json.dumps([query.expression for query in panel_queries.queries(dashboard, "1m")]))


class ProvisioningTest(unittest.TestCase):
    def test_files_are_of_the_version_that_grafana_reads(self):
        files = sorted(PROVISIONING.glob("*/*.yaml"))
        self.assertEqual(len(files), 2)
        for path in files:
            self.assertEqual(yaml.safe_load(path.read_text())["apiVersion"], 1)

    def test_grafana_knows_the_scrape_interval(self):
        source = yaml.safe_load((PROVISIONING / "datasources/prometheus.yaml").read_text())["datasources"][0]
        scraping = yaml.safe_load(Path("deploy/prometheus/prometheus.yaml").read_text())["global"]
        self.assertEqual(source["jsonData"]["timeInterval"], scraping["scrape_interval"])


if __name__ == "__main__":
    unittest.main()
