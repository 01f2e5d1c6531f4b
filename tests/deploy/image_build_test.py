"""deploy/Dockerfile from its first line to its last, as `docker build` does it: installs a compiler and builds. Takes its time."""

import os
import unittest
from pathlib import Path

from tests.deploy.container_engine import ContainerEngine

DOCKERFILE = Path("deploy/Dockerfile")
BUILD_SECONDS = 3000


class ImageBuildTest(unittest.TestCase):
    def test_the_image_is_built_from_sources_and_serves(self):
        engine = ContainerEngine()
        self.addCleanup(engine.close)
        engine.import_debian()
        # Where the sources are: tests see links to them.
        root = DOCKERFILE.resolve().parents[1]
        self.assertTrue((root / "WORKSPACE").exists(), root)
        # Wheels come over whatever this machine trusts.
        certificates = Path(os.path.realpath("/etc/ssl/certs/ca-certificates.crt"))
        engine.build(DOCKERFILE.read_text(), root, "kvdepot", "--target=daemon",
                     f"--volume={certificates}:/certificates.crt:ro", "--env=PIP_CERT=/certificates.crt", timeout=BUILD_SECONDS)
        engine.leave_network()
        engine.podman("run", "--detach", "--name=daemon", "--read-only", "--cap-drop=all", "--network=none", "kvdepot")
        engine.wait_until_healthy("daemon")
        self.assertIn('"cpu"', engine.podman("exec", "daemon", "kvdepot", "info", "--json"))


if __name__ == "__main__":
    unittest.main()
