"""Time that a search spends on one model under the weight plasticity loss, as a ratio to that without protection.

    python benchmarks/search_model.py --json search_model.json

A round trains one architecture of the recurrent space for `--batches` batches of the King James text and, with
protection, consolidates it: proximal steps and importance are both included, errors and rewards are not.
"""

from collections.abc import Callable
from itertools import count, cycle

import timing

from forgetless.search import Search, SearchArm, SearchConfig, load_task


def one_model(search: Search) -> Callable[[], None]:
    """What an epoch does with each model, without measuring its error."""
    cells, numbers = cycle(search.strategy.propose(8)), count()

    def step() -> None:
        cell = next(cells)
        gradients, *_ = search._train(cell, next(numbers))
        search._consolidate(cell, gradients)

    return step


def main() -> None:
    """Measure and report."""
    parser = timing.parser(__doc__, rounds=20)
    parser.add_argument("--nodes", type=int, default=6, help="(default %(default)s)")
    parser.add_argument("--units", type=int, default=200, help="(default %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="sequences (default %(default)s)")
    parser.add_argument("--words-per-sequence", type=int, default=35, help="(default %(default)s)")
    parser.add_argument("--batches", type=int, default=7, help="per model (default %(default)s)")
    options = parser.parse_args()
    timing.prepare(options.threads)
    tables = {}
    for optimizer in ("sgd", "adam"):
        config = SearchConfig.from_dict(
            {
                "space": {"name": "recurrent", "nodes": options.nodes, "units": options.units},
                "task": {"name": "text", "num_steps": options.words_per_sequence},
                "protections": [{"name": "none"}, {"name": "wpl"}],
                "protect": {"start": 0},
                "optimizer": {"name": optimizer},
                "schedule": {"batch_size": options.batch, "batches_per_model": options.batches},
            }
        )
        task = load_task(config)
        functions = {name: one_model(Search(config, task, SearchArm(0, name))) for name in ("none", "wpl")}
        sizes = f"{options.nodes} nodes, {options.units} units, batch {options.batch} × {options.words_per_sequence}"
        tables[f"{optimizer}, {sizes}, {options.batches} batches per model"] = timing.compare(functions, options.rounds)
    timing.report("search_model", tables, options.rounds, options.json)


if __name__ == "__main__":
    main()
