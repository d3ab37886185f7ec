"""The benchmarks that other scripts build on, at small size: that they run, and what they promise of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(script: str, *options: str) -> None:
    subprocess.run([sys.executable, "-W", "ignore", str(BENCHMARKS / script), *options], check=True, timeout=500)


def test_the_gpu_benchmark_runs_without_one(tmp_path: Path) -> None:
    run("gpu.py", "--rounds", "2", "--json", str(tmp_path / "gpu.json"))
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert len(found["tables"]) >= 6
    assert all(timing["seconds"] > 0 for timings in found["tables"].values() for timing in timings)
    assert all(0 < share < 2 for shares in found["shares_of_bandwidth"].values() for share in shares.values())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure resident memory")
@pytest.mark.parametrize("path", [(), ("--general",)])
def test_a_fisher_stays_within_its_memory(path: tuple[str, ...], tmp_path: Path) -> None:
    budgets = ["0", "8e7", "1.6e8"]
    run("fisher_memory.py", *path, "--memory", *budgets, "--json", str(tmp_path / "memory.json"))
    free, *stated = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert all(0.3 * row["memory"] < row["peak"] < 1.1 * row["memory"] for row in stated)
    assert free["peak"] > 1.2 * stated[-1]["peak"]
