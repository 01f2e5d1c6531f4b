"""Waiting for what other processes do, and saying for what where it does not come."""

import time

DEADLINE_SECONDS = 60
_POLL_SECONDS = .05


def wait_for(what: str, condition):
    """Polls until `condition` returns something true, and returns that."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(_POLL_SECONDS)
    raise TimeoutError(f"{what}: not within {DEADLINE_SECONDS} s")
