"""Time of one step of the recurrent supernet, as a ratio to an `nn.LSTM` language model of the same sizes.

    python benchmarks/recurrent_step.py --json recurrent_step.json

The yardstick is embedding → one `nn.LSTM` layer → tied decoder → cross entropy, with the same dropout. A training step
is forward and backward, without the optimizer; a controller step is forward in eval mode with gradients off. Each round
takes the next of several architectures that are drawn uniformly.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.spaces.recurrent import RecurrentArchitecture, RecurrentSpace
from forgetless.spaces.recurrent.supernet import RecurrentSupernet

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


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Forward and backward."""
    model.train()
    model.zero_grad()
    loss().backward()  # type: ignore[no-untyped-call]


def controller_step(model: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Forward, as the reward of an architecture is computed."""
    model.eval()
    with torch.no_grad():
        loss()


def models_and_losses(options: argparse.Namespace) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """The yardstick first."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(options.words, (options.batch, options.words_per_sequence + 1), generator=generator)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    lstm = LstmLanguageModel(options.words, options.units, options.dropout)
    found: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {"nn.LSTM": (lstm, partial(lstm.loss, inputs, targets))}
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
        cells = cycle([space.sample(generator) for _ in range(options.architectures)])

        def loss(supernet: RecurrentSupernet = supernet, cells: Iterator[RecurrentArchitecture] = cells) -> Tensor:
            return supernet.loss(inputs, targets, next(cells))[0]

        found[f"{num_nodes} nodes"] = (supernet, loss)
    return found


def main() -> None:
    """Measure and report."""
    parser = timing.parser(__doc__, rounds=24)
    parser.add_argument("--batch", type=int, default=64, help="sequences (default %(default)s)")
    parser.add_argument("--words-per-sequence", type=int, default=35, help="(default %(default)s)")
    parser.add_argument("--units", type=int, default=200, help="(default %(default)s)")
    parser.add_argument("--words", type=int, default=10_000, help="vocabulary (default %(default)s)")
    parser.add_argument("--dropout", type=float, default=0.0, help="on inputs and outputs (default %(default)s)")
    parser.add_argument("--architectures", type=int, default=8, help="per number of nodes (default %(default)s)")
    parser.add_argument("--plain", action="store_true", help="time the plain path (fused=False)")
    options = parser.parse_args()
    timing.prepare(options.threads)
    models = models_and_losses(options)
    sizes = f"batch {options.batch} × {options.words_per_sequence}, {options.units} units, {options.words:,} words"
    tables = {
        f"{title}, {sizes}": timing.compare(
            {name: partial(step, *model) for name, model in models.items()}, options.rounds
        )
        for title, step in (("training step", training_step), ("controller step", controller_step))
    }
    timing.report("recurrent_step", tables, options.rounds, options.json)


if __name__ == "__main__":
    main()
