"""Every alert says what to do, and is known to fire and to keep quiet. promtool itself runs in deploy/lint."""

import re
import unittest
from pathlib import Path

import yaml

FOLDER = Path("deploy/prometheus")
SEVERITIES = {"critical", "warning"}


def anchors(markdown: str) -> set[str]:
    """What headings can be linked by: lower case, spaces as hyphens, other signs left out."""
    headings = re.findall(r"^#+ (.*)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def operations(readme: str) -> str:
    """The section that holds the runbooks."""
    return re.search(r"^## Operations$.*?(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL).group()


class AlertsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
        cls.alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
        cls.runbooks = operations(Path("README.md").read_text())

    def test_every_alert_says_what_it_is_about(self):
        for alert in self.alerts:
            with self.subTest(alert["alert"]):
                self.assertEqual(set(alert["annotations"]), {"summary", "description", "runbook_url"})
                self.assertEqual(set(alert["labels"]), {"severity"})
                self.assertIn(alert["labels"]["severity"], SEVERITIES)

    def test_every_alert_has_a_runbook_and_every_runbook_an_alert(self):
        found = {anchor for anchor in anchors(self.runbooks) if anchor.startswith("kvdepot")}
        self.assertEqual(found, {alert["alert"].lower() for alert in self.alerts})
        for alert in self.alerts:
            self.assertEqual(alert["annotations"]["runbook_url"], f"README.md#{alert['alert'].lower()}")

    def test_every_alert_fires_in_one_test_and_not_in_another(self):
        tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
        cases = [case for test in tests for case in test["alert_rule_test"]]
        names = {alert["alert"] for alert in self.alerts}
        self.assertEqual({case["alertname"] for case in cases if case["exp_alerts"]}, names)
        self.assertEqual({case["alertname"] for case in cases if not case["exp_alerts"]}, names)


if __name__ == "__main__":
    unittest.main()
