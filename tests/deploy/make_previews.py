#!/usr/bin/python3 -B
"""Draws deploy/grafana/preview/*.png anew: a loaded daemon, a Prometheus that scrapes it, the committed dashboards.

Takes some four minutes and needs //server:kvdepotd, //client/cli:kvdepot and //client:libkvdepot_client.so; BAZEL_BIN names
the folder where that is not bazel-bin. Look at the pictures afterwards.
"""

import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("BAZEL_BIN", "bazel-bin")
sys.path.insert(0, str(ROOT))

from deploy.grafana.draw_previews import draw_all  # noqa: E402
from tests.deploy.loaded_daemon import LoadedDaemon  # noqa: E402
from tests.deploy.prometheus_process import PrometheusProcess  # noqa: E402

MINUTES = 4


def bench_for(daemon: LoadedDaemon, seconds: float) -> None:
    """Clients come and go."""
    choose = random.Random(1)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        daemon.kvdepot("bench", f"--codec={choose.choice(['planes', 'planes', 'planes', 'raw', 'packkv'])}",
                       f"--clients={choose.randint(1, 3)}", "--layers=2", f"--tokens={choose.choice([512, 1024, 2048])}",
                       f"--rounds={choose.randint(20, 60)}")


def main() -> None:
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="kvdepot-previews-", dir="/tmp") as name:
        folder = Path(name)
        for part in ("daemon", "prometheus"):
            (folder / part).mkdir()
        daemon = LoadedDaemon(folder / "daemon")
        prometheus = PrometheusProcess(folder / "prometheus", [daemon.pages])
        try:
            prometheus.wait_until_scraped_after(time.time())
            start = time.monotonic()
            bench_for(daemon, 60)
            daemon.load()
            bench_for(daemon, MINUTES * 60 - (time.monotonic() - start))
            prometheus.wait_until_scraped_after(time.time())
            draw_all(f"http://{prometheus.address}", ROOT / "deploy/grafana/preview", MINUTES)
        finally:
            prometheus.stop()
            daemon.stop()


if __name__ == "__main__":
    main()
