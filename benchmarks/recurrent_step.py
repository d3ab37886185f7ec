"""Time of one step of the recurrent supernet, as a ratio to an `nn.LSTM` language model of the same sizes.

    python benchmarks/recurrent_step.py --json recurrent_step.json

The yardstick is embedding → one `nn.LSTM` layer → tied decoder → cross entropy, with the same dropout. Its runs and
the supernet's alternate within one process on one thread, each round with the next of several architectures that are
drawn uniformly; what is printed are medians, and ratios of medians. A training step is forward and backward, without
the optimizer; a controller step is forward in eval mode with gradients off.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.architecture import RecurrentSpace
from forgetless.supernets.recurrent import RecurrentSupernet

NUM_NODES = (6, 12)


class LstmLanguageModel(nn.Module):
    """The yardstick: what a PyTorch user would write."""

    def __init__(self, num_words: int, num_units: int, dropout: float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_words, num_units)
        self.lstm = nn.LSTM(num_units, num_units)
        self.decoder = nn.Linear(num_units, num_words)
        self.decoder.weight = self.embedding.weight
        self.dropout = dropout
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of targets (B, T) after tokens (B, T)."""
        outputs, _ = self.lstm(self._locked_dropout(self.embedding(tokens.t())))  # (T, B, H)
        logits = self.decoder(self._locked_dropout(outputs))
        return F.cross_entropy(logits.flatten(0, 1), targets.t().flatten())

    def _locked_dropout(self, values: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return values
        return values * F.dropout(torch.ones_like(values[0]), self.dropout)


def milliseconds(step: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def measure(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median milliseconds by model and kind of step."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    tokens = torch.randint(options.words, (options.batch, options.steps + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    lstm = LstmLanguageModel(options.words, options.units, options.dropout)
    models: dict[str, tuple[nn.Module, Callable[[int], Tensor]]] = {
        "nn.LSTM": (lstm, lambda _: lstm.loss(inputs, targets))
    }
    for num_nodes in NUM_NODES:
        space = RecurrentSpace(num_nodes)
        supernet = RecurrentSupernet(
            options.words,
            options.units,
            space,
            dropout_input=options.dropout,
            dropout_output=options.dropout,
            fused=not options.plain,
        )
        cells = [space.sample(generator) for _ in range(options.architectures)]

        def loss(turn: int, supernet: RecurrentSupernet = supernet, cells: list = cells) -> Tensor:
            return supernet.loss(inputs, targets, cells[turn % len(cells)])[0]

        models[f"{num_nodes} nodes"] = (supernet, loss)

    def train(name: str, turn: int) -> None:
        model, loss = models[name]
        model.train()
        model.zero_grad()
        loss(turn).backward()

    def evaluate(name: str, turn: int) -> None:
        model, loss = models[name]
        model.eval()
        with torch.no_grad():
            loss(turn)

    times: dict[str, dict[str, list[float]]] = {name: {"training": [], "forward": []} for name in models}
    for turn in range(-options.warmup, options.rounds):
        for name in models:
            training = milliseconds(lambda name=name, turn=turn: train(name, turn))
            forward = milliseconds(lambda name=name, turn=turn: evaluate(name, turn))
            if turn >= 0:
                times[name]["training"].append(training)
                times[name]["forward"].append(forward)
    return {name: {kind: statistics.median(values) for kind, values in kinds.items()} for name, kinds in times.items()}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="sequences")
    parser.add_argument("--steps", type=int, default=35, help="words per sequence")
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--words", type=int, default=10_000, help="vocabulary")
    parser.add_argument("--dropout", type=float, default=0.0, help="locked, on inputs and outputs of both models")
    parser.add_argument("--architectures", type=int, default=8, help="drawn uniformly per number of nodes")
    parser.add_argument("--rounds", type=int, default=24, help="timed runs of each model")
    parser.add_argument("--warmup", type=int, default=2, help="runs that are not timed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="time the plain path (fused=False)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)

    medians = measure(options)
    yardstick = medians["nn.LSTM"]
    print(f"{'':10} {'training':>12} {'ratio':>6} {'forward':>12} {'ratio':>6}")
    for name, kinds in medians.items():
        columns = (f"{value:9.1f} ms {value / yardstick[kind]:6.3f}" for kind, value in kinds.items())
        print(f"{name:10} {' '.join(columns)}")
    if options.json:
        result = {
            "options": {name: value for name, value in vars(options).items() if name != "json"},
            "environment": {"torch": torch.__version__, "python": platform.python_version(), "cpu": cpu_name()},
            "median_milliseconds": medians,
            "ratio": {
                name: {kind: value / yardstick[kind] for kind, value in kinds.items()}
                for name, kinds in medians.items()
            },
        }
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def cpu_name() -> str:
    """The processor's model name."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
