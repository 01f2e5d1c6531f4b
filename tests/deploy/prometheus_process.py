"""A real Prometheus with the committed configuration, on a free port."""

import datetime
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from tests.deploy.polling import wait_for

CONFIGURATION = Path("deploy/prometheus")
INTERVAL, TEST_INTERVAL = "15s", "1s"


class PrometheusProcess:
    def __init__(self, folder: Path, targets: list[str]):
        """`targets` are host:port. The configuration is the committed one but for its targets, which have a file of
        their own, and its intervals: a test need not take minutes."""
        self.folder = folder
        for name in ("prometheus.yaml", "rules.yaml"):
            shutil.copy(CONFIGURATION / name, folder / name)
        configuration = (folder / "prometheus.yaml").read_text()
        if configuration.count(INTERVAL) != 2:
            raise ValueError(f"prometheus.yaml: two intervals of {INTERVAL} expected")
        (folder / "prometheus.yaml").write_text(configuration.replace(INTERVAL, TEST_INTERVAL))
        (folder / "targets.yaml").write_text(json.dumps([{"targets": targets}]))
        with open(folder / "log", "w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
                 "--web.listen-address=127.0.0.1:0"], stderr=log)
        self.address = wait_for("prometheus listens", self._address)
        wait_for("prometheus is ready", lambda: self._get("/-/ready") is not None)

    def _address(self) -> str | None:
        log = (self.folder / "log").read_text()
        if self._process.poll() is not None:
            raise RuntimeError(log)
        found = re.search(r'msg="Listening on" address=(\S+)', log)
        return found and found.group(1)

    def _get(self, path: str, **parameters) -> bytes | None:
        """None while it is not ready."""
        url = f"http://{self.address}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise RuntimeError(f"{parameters or path}: {error.read().decode()}") from error

    def api(self, path: str, **parameters):
        return json.loads(self._get(f"/api/v1/{path}", **parameters))["data"]

    def query(self, expression: str) -> list[dict]:
        """The series of an instant query: {"metric": {label: value}, "value": [time, text]}."""
        return self.api("query", query=expression)["result"]

    def rules(self) -> list[dict]:
        return [rule for group in self.api("rules")["groups"] for rule in group["rules"]]

    def wait_until_scraped_after(self, moment: float) -> None:
        """Every target was read, and then every rule evaluated, after that time (seconds since 1970)."""
        wait_for("every target is scraped", lambda: not self.query(f'timestamp(up{{job="kvdepot"}}) <= {moment} or up == 0')
                 and self.query(f'timestamp(up{{job="kvdepot"}}) > {moment}'))
        scraped = time.time()
        wait_for("every rule is evaluated", lambda: all(_seconds(rule["lastEvaluation"]) > scraped for rule in self.rules()))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


def _seconds(moment: str) -> float:
    """Of RFC 3339 with nanoseconds; a rule that was never evaluated has the year 1."""
    whole = re.sub(r"\.(\d{1,6})\d*", lambda fraction: "." + fraction.group(1).ljust(6, "0"), moment)
    parsed = datetime.datetime.fromisoformat(whole.replace("Z", "+00:00"))
    return parsed.timestamp() if parsed.year > 1970 else 0
