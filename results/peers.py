"""The page of other libraries' Fishers and protected steps."""

from collections.abc import Mapping
from typing import Any

from page import HERE, Cells, Page, command_block, environment, read, table

MEANINGS = """- *Factor*: the sum of a library's Fisher over that of the slow reference, one example at a time in
  float64. It is 1 for the mean of the examples' squared gradients, and down to 1 / (batch size) where a batch's mean
  gradient is squared.
- *Correlation*: Pearson's, over all weights, with that reference.
- *Time*: over one forward and backward pass of the same batches, and over an unprotected step of SGD at batch 128.
- *Bytes per weight*: by how much the peak memory of a Fisher lies above that of the forward and backward pass; what is
  held between steps. A weight has 4. Peaks differ by a few bytes from run to run."""


def pages() -> list[Page]:
    found = read(HERE / "peers.json")
    rows = {row["name"]: row for row in found["rows"]}
    ours, others = (
        rows["forgetless"],
        [row for name, row in rows.items() if name != "forgetless" and row["step_ratios"]],
    )
    most = max(int(tasks) for tasks in ours["step_ratios"])
    slow = [row["step_ratios"][str(most)] for row in others]
    exact = sorted(name for name, row in rows.items() if abs(row["factor"] - 1) < 0.01)
    return [
        Page(
            name="peers",
            title="Other libraries",
            question="Is their Fisher that of the examples, and what does it cost to protect earlier tasks?",
            answer=f"{len(exact)} of {len(rows)} compute the Fisher of the examples; after {most} earlier tasks a step "
            f"takes {ours['step_ratios'][str(most)]:.2f} times an unprotected one here, {min(slow):.1f} to "
            f"{max(slow):.1f} times elsewhere.",
            more="On the same network, data and batches.",
            parts=[
                command_block(
                    f"{found['command']} --json results/peers.json",
                    f"784-512-512-512-10; {found['data']}. {found['rounds']} interleaved rounds, medians, "
                    f"{environment(found['environment'])}. In an environment of its own: "
                    "`benchmarks/peers/requirements.txt` says how it is made.",
                ),
                MEANINGS,
                f"Fisher:\n\n{table([fisher(row) for row in rows.values()])}",
                f"Step:\n\n{table([step(row) for row in (ours, *others)])}",
            ],
        )
    ]


def fisher(row: Mapping[str, Any]) -> Cells:
    return {
        "": row["name"],
        "factor": f"{row['factor']:.3f}",
        "correlation": f"{row['correlation']:.2f}",
        "time": f"{row['fisher_ratio']:.2f}",
        "bytes per weight": f"{row['fisher_bytes']:.0f}",
    }


def step(row: Mapping[str, Any]) -> Cells:
    cells = {"": row["name"]}
    for tasks, ratio in row["step_ratios"].items():
        earlier = f"{tasks} earlier task{'s' * (tasks != '1')}"
        cells[f"time, {earlier}"] = f"{ratio:.2f}"
        cells[f"bytes per weight, {earlier}"] = f"{row['step_bytes'][tasks]:.0f}"
    return cells
