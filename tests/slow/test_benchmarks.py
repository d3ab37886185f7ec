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


def test_the_frontier_of_fine_tuning_runs_without_a_gpu_and_says_what_it_left_out(tmp_path: Path) -> None:
    run("fine_tune_gpu.py", "--json", str(tmp_path / "all.json"))
    found = json.loads((tmp_path / "all.json").read_text())
    assert not found["left_out"]
    assert {each["protection"] for each in found["summary"]} >= {"none", "wise-ft", "replay", "lora", "osf"}
    run("fine_tune_gpu.py", "--minutes", "0", "--json", str(tmp_path / "one.json"))
    one = json.loads((tmp_path / "one.json").read_text())
    assert len(one["summary"]) == 1
    assert len(one["left_out"]) == len(found["summary"]) - 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to measure resident memory")
@pytest.mark.parametrize("path", [(), ("--general",)])
def test_a_fisher_stays_within_its_memory(path: tuple[str, ...], tmp_path: Path) -> None:
    budgets = ["0", "8e7", "1.6e8"]
    run("fisher_memory.py", *path, "--memory", *budgets, "--json", str(tmp_path / "memory.json"))
    free, *stated = json.loads((tmp_path / "memory.json").read_text())["rows"]
    assert all(0.3 * row["memory"] < row["peak"] < 1.1 * row["memory"] for row in stated)
    assert free["peak"] > 1.2 * stated[-1]["peak"]
