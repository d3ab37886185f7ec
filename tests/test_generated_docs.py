"""What pages say of the code is what the code says."""

import runpy
import sys
from pathlib import Path

import pytest

from forgetless.spaces.nas201 import Nas201Space
from forgetless.strategies import STRATEGIES, make_strategy

ROOT = Path(__file__).parents[1]


def test_made_regions_are_up_to_date(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["generate_docs.py", "--check"])
    code = runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))["main"]()
    assert code == 0, f"{capsys.readouterr().out} Run `python scripts/generate_docs.py`."


@pytest.mark.parametrize("name", [name for name in STRATEGIES if STRATEGIES[name].trains_shared_weights])
def test_a_strategy_documents_what_it_tells(name):
    kind = STRATEGIES[name]
    strategy = make_strategy(kind.Options(), Nas201Space(), seed=0, num_steps=3)
    strategy.loss = lambda architecture, weights: weights.sum()
    known = {key for each in kind.__mro__ for key in vars(each).get("measured", {})}
    told = set()
    for _ in range(3):
        told |= strategy.learn(strategy.propose(30), [0.1 * (i % 7) for i in range(30)]).keys()
    assert told == known
