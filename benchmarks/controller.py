"""Time of the ENAS controller: n architectures in one pass, as a ratio to one after the other.

    python benchmarks/controller.py --json controller.json

What a search spends on its strategy besides evaluating the architectures: drawing n of them, and one step of learning
from them, on one thread.
"""

from collections.abc import Callable

import timing

from forgetless.spaces.cell import CellSpace
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace
from forgetless.strategies.enas import EnasStrategy


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
        strategy = EnasStrategy(space)
        batch, rewards = strategy.propose(n), [index / n for index in range(n)]
        functions: dict[str, Callable[[], object]] = {
            f"propose {n} × 1": lambda s=strategy: [s.propose(1) for _ in range(n)],
            f"propose {n}": lambda s=strategy: s.propose(n),
            f"learn {n}": lambda s=strategy, b=batch, r=rewards: s.learn(b, r),
        }
        tables[title] = timing.compare(functions, options.rounds)
    timing.report("controller", tables, options.rounds, options.json)


if __name__ == "__main__":
    main()
