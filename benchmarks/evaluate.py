"""How long it takes to judge a finished search by a benchmark that comes with forgetless.

    python benchmarks/evaluate.py RUN --truth recurrent-3 --json evaluate.json

The command `forgetless evaluate RUN --truth NAME` is timed as a whole, a new process each time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing
from rich.console import Console


def main() -> None:
    """Time and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of finished searches")
    parser.add_argument("--truth", required=True, help="name of the benchmark")
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    seconds, searches = [], []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "forgetless", "evaluate", str(options.run), "--truth", options.truth]
            start = time.perf_counter()
            done = subprocess.run([*command, "--output", folder, "--json"], check=True, capture_output=True, text=True)
            seconds.append(time.perf_counter() - start)
        searches = json.loads(done.stdout)["searches"]
    found = {
        "benchmark": "evaluate",
        "command": f"python benchmarks/evaluate.py RUN --truth {options.truth} --rounds {options.rounds}",
        "environment": {key: timing.environment()[key] for key in ("python", "torch", "cpu")},
        "truth": options.truth,
        "searches": len(searches),
        "architectures": searches[0]["tau"]["num_architectures"],
        "seconds": statistics.median(seconds),
    }
    Console().print(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
