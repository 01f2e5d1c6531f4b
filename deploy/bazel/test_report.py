"""Counts test cases of one `bazel test` run from its build events and prints the closing line.

Usage: test_report.py EVENTS_JSON BAZEL_EXIT_STATUS

A test's report holds its cases, and each is counted. A test without one counts as one case (Bazel
writes such a report for it), and so does a target that could not be loaded, built or run.
"""

import json
import sys
import urllib.parse
import xml.etree.ElementTree as ElementTree

_PASSING = ("PASSED", "FLAKY")


class Outcome:
    """What the events of one run say."""

    def __init__(self):
        self.broken = {}  # Label of a target that could not be built -> reason.
        self.causes = {}  # Label or pattern that Bazel stumbled over -> reason.
        self.status = {}  # Label of a test -> its overall status.
        self.attempts = {}  # (label, run, shard) -> (attempt, path of its XML report or None).


def _read_events(lines):
    outcome = Outcome()
    for line in lines:
        event = json.loads(line)
        (kind, key), *_ = event["id"].items()
        if kind == "targetCompleted" and not event.get("completed", {}).get("success"):
            outcome.broken[key["label"]] = event.get("aborted", {}).get("reason", "does not build")
        elif kind in ("pattern", "unconfiguredLabel", "configuredLabel") and "aborted" in event:
            label = key.get("label") or " ".join(key.get("pattern", []))
            outcome.causes[label] = event["aborted"].get("reason", "aborted")
        elif kind == "testSummary":
            outcome.status[key["label"]] = event["testSummary"]["overallStatus"]
        elif kind == "testResult":
            part = (key["label"], key.get("run"), key.get("shard"))
            attempt = int(key.get("attempt", 1))
            if attempt >= outcome.attempts.get(part, (0, None))[0]:
                files = event["testResult"].get("testActionOutput", [])
                uris = [file["uri"] for file in files if file["name"] == "test.xml"]
                path = urllib.parse.unquote(urllib.parse.urlparse(uris[0]).path) if uris else None
                outcome.attempts[part] = (attempt, path)
    return outcome


def _count_cases(path):
    """(passed, failed, skipped) of one XML report, or zeros where it cannot be read."""
    try:
        cases = list(ElementTree.parse(path).iter("testcase"))
    except (OSError, ElementTree.ParseError):
        return 0, 0, 0
    failed = sum(1 for c in cases if c.find("failure") is not None or c.find("error") is not None)
    skipped = sum(1 for c in cases if c.find("skipped") is not None or c.get("status") == "notrun")
    return len(cases) - failed - skipped, failed, skipped


def count(outcome):
    """(passed, failed, skipped, lines that name what failed) of a whole run."""
    passed = failed = skipped = 0
    notes = []
    for label in sorted(outcome.status.keys() - outcome.broken.keys()):
        totals = [0, 0, 0]
        for part, (_, path) in outcome.attempts.items():
            if part[0] == label and path is not None:
                totals = [a + b for a, b in zip(totals, _count_cases(path))]
        status = outcome.status[label]
        if status not in _PASSING:
            # A crash or a time-out may leave a report of passes only.
            totals[1] = max(totals[1], 1)
            notes.append(f"{label}: {status}")
        elif not any(totals):
            # It ran and Bazel calls it passed, yet nothing says what it tested.
            totals[1] = 1
            notes.append(f"{label}: no test case in it")
        passed, failed, skipped = passed + totals[0], failed + totals[1], skipped + totals[2]
    for label, reason in sorted(outcome.broken.items()):
        failed += 1
        notes.append(f"{label}: {reason}")
    return passed, failed, skipped, notes


def main():
    events, bazel_status = sys.argv[1], int(sys.argv[2])
    with open(events, encoding="utf-8") as lines:
        outcome = _read_events(lines)
    passed, failed, skipped, notes = count(outcome)
    if bazel_status != 0 and failed == 0:
        # Nothing was attempted, for instance because a BUILD file does not parse.
        failed = 1
        notes.append(f"bazel ended with status {bazel_status}")
    notes += [f"because of {label}: {reason}" for label, reason in sorted(outcome.causes.items())]
    if passed + failed == 0:
        failed = 1
        notes.append("no test ran")
    for note in notes:
        print(f"FAILED {note}", file=sys.stderr)
    sys.stderr.flush()
    line = f"{passed} passed, {failed} failed"
    print(line + (f", {skipped} skipped" if skipped else ""))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
