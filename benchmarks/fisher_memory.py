"""Peak memory of `diagonal_fisher` under a stated memory, beside that of the model, the batches and the result.

    python benchmarks/fisher_memory.py --json fisher_memory.json

Each row is a process of its own: a language model of linear layers and norms over random tokens, batches of 16 texts.
The peak is that of the process's resident memory during the call (`VmHWM`, reset before it), less what was resident
before and the result; on a GPU that of PyTorch's allocator.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from timing import environment, growth
from torch import Tensor, nn

from forgetless import diagonal_fisher


class Layer(nn.Module):
    """The perceptron of a Transformer's layer, with its norm; or one that vmap alone can follow."""

    def __init__(self, width: int, is_known: bool) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = nn.RMSNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.shift = None if is_known else nn.Parameter(torch.zeros(1, width))

    def forward(self, x: Tensor) -> Tensor:
        """The residual sum."""
        x = x if self.shift is None else x + self.shift
        residual: Tensor = self.leave(F.gelu(self.enter(self.norm(x))))
        return x + residual


def model_of(width: int, num_layers: int, vocabulary: int, is_known: bool) -> nn.Module:
    """Embedding, layers, decoder."""
    layers = [Layer(width, is_known) for _ in range(num_layers)]
    return nn.Sequential(nn.Embedding(vocabulary, width), *layers, nn.Linear(width, vocabulary, bias=False))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """One loss per token."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def peak(options: argparse.Namespace, memory: float | None) -> dict[str, float | None]:
    """Measure one call, in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = (options.width, options.layers, options.vocabulary, not options.general)
    model = model_of(*sizes).to(device)
    tokens = torch.randint(options.vocabulary, (2, 16, options.length), device=device)
    # What is loaded at the first use of an operation is no memory of the computation.
    diagonal_fisher(model_of(8, 1, 11, not options.general).to(device), [(tokens[0] % 11, tokens[0] % 11)], token_loss)
    found: dict[str, Tensor] = {}

    def compute() -> None:
        found.update(diagonal_fisher(model, [(x, x) for x in tokens], token_loss, per="target", memory=memory))

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        compute()
        grown: float = torch.cuda.max_memory_allocated() - before
    else:
        grown = growth(compute)
    result = sum(value.nbytes for value in found.values())
    return {"memory": memory, "result": result, "peak": grown - result}


def main() -> None:
    """Measure each budget in a process of its own, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="(default %(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="(default %(default)s)")
    parser.add_argument("--vocabulary", type=int, default=4000, help="(default %(default)s)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a text (default %(default)s)")
    parser.add_argument("--general", action="store_true", help="a model that takes the general path")
    parser.add_argument("--memory", type=float, nargs="+", default=[0, 7e7, 1.4e8, 2.8e8], help="bytes; 0: no limit")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--here", action="store_true", help="measure the one budget in this process, and print JSON")
    options = parser.parse_args()
    if options.here:
        sys.stdout.write(json.dumps(peak(options, options.memory[0] or None)))
        return
    given = [f"--{name}={getattr(options, name)}" for name in ("width", "layers", "vocabulary", "length")]
    given += ["--general"] if options.general else []
    rows = []
    for memory in options.memory:
        command = [sys.executable, __file__, *given, "--memory", str(memory), "--here"]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        rows.append(
            {
                "memory=": f"{memory:.1e}" if memory else "None",
                "result, MB": f"{found['result'] / 1e6:.0f}",
                "peak beside it, MB": f"{found['peak'] / 1e6:.0f}",
                "share of memory": f"{found['peak'] / memory:.2f}" if memory else "",
            }
        )
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
    if options.json is not None:
        result = {
            "benchmark": "fisher_memory",
            "command": " ".join(["python benchmarks/fisher_memory.py", *given]),
            "environment": environment(),
            "facts": {f"16 texts of {options.length} tokens": rows},
        }
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
