"""Counts of what was tried and how it ended, for results/reliability.json."""

import json
import os
from collections import Counter
from pathlib import Path

from filelock import FileLock

from forgetless.runs import environment

OUTCOMES = ("identical", "warned", "refused", "wrong")


def report(section, counts, **more):
    """Put the counts of one section into the file that FORGETLESS_RELIABILITY names, if it names one."""
    name = os.environ.get("FORGETLESS_RELIABILITY")
    if not name:
        return
    path = Path(name)
    with FileLock(path.with_suffix(".lock")):
        found = json.loads(path.read_text()) if path.exists() else {"command": "make test-slow", "sections": {}}
        found["sections"][section] = {
            "counts": {key: {name: each.get(name, 0) for name in OUTCOMES} for key, each in sorted(counts.items())},
            **more,
            "revision": environment()["git_revision"],
        }
        found["sections"] = dict(sorted(found["sections"].items()))
        path.write_text(json.dumps(found, indent=1) + "\n")


class Tally:
    """Outcomes by kind."""

    def __init__(self):
        self.counts = {}
        self.wrong = []

    def add(self, kind, outcome, detail=""):
        """One trial; what is wrong is kept to be shown."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome == "wrong":
            self.wrong.append((kind, detail))
