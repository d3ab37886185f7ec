"""Time of the ENAS controller: n architectures in one pass, as a ratio to one after the other.

    python benchmarks/controller.py --json controller.json

What a search spends on its strategy besides evaluating the architectures: drawing n of them, and one step of learning
from them, on one thread.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timing

from forgetless.spaces.cell import CellSpace
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace
from forgetless.strategies.enas import EnasStrategy


def propose_singly(strategy: EnasStrategy[Any], number: int) -> None:
    """One architecture at a time."""
    for _ in range(number):
        strategy.propose(1)


def main() -> None:
    """Measure and report."""
    parser = timing.parser(__doc__, rounds=20)
    parser.add_argument("--architectures", type=int, default=10, help="n (default %(default)s)")
    options = parser.parse_args()
    timing.prepare(options.threads)
    n = options.architectures
    tables = {}
    for title, space in (
        ("recurrent, 8 nodes", RecurrentSpace(8)),
        ("recurrent, 12 nodes", RecurrentSpace(12)),
        ("cell, 5 blocks", CellSpace(5)),
        ("nas201", Nas201Space()),
    ):
        strategy: EnasStrategy[Any] = EnasStrategy(space)
        batch, rewards = strategy.propose(n), [index / n for index in range(n)]
        functions: dict[str, Callable[[], object]] = {
            f"propose {n} × 1": partial(propose_singly, strategy, n),
            f"propose {n}": partial(strategy.propose, n),
            f"learn {n}": partial(strategy.learn, batch, rewards),
        }
        tables[title] = timing.compare(functions, options.rounds)
    timing.report("controller", tables, options.rounds, options.json)


if __name__ == "__main__":
    main()
