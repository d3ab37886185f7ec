"""Every strategy and every protection that has a state, killed at every sixth point; two models at every point."""

import pytest

from forgetless.experiments.two_model import TwoModelConfig
from forgetless.protection import ARMS
from forgetless.search import SearchConfig
from forgetless.strategies import STRATEGIES
from test_checkpoints import CELL, IMAGES, MODELS, TEXT, killed_at_every_point, text  # noqa: F401

PROTECTIONS = [name for name in ARMS if name not in {"none", "matched-lr"}]
COMBINATIONS = [
    *(("images", IMAGES, {"strategy": strategy}) for strategy in STRATEGIES),
    *(("images", IMAGES, {"protection": (name,), "tolerance": 0.5}) for name in PROTECTIONS),
    *(("text", TEXT, {"protection": (name,), "epochs": 1, "tolerance": 0.5}) for name in PROTECTIONS),
    *(("text", TEXT, {"strategy": strategy, "epochs": 1}) for strategy in STRATEGIES if strategy != "gdas"),
    ("cell", CELL, {"strategy": "enas"}),
    ("images", IMAGES, {"importance": "held-out", "importance_batches": 1, "rule": "merge"}),
    ("images", IMAGES, {"single": True, "protect_from": "forgetting"}),
    ("text", TEXT, {"independent": True, "optimizer": "adam"}),
]


@pytest.mark.parametrize(
    ("space", "base", "changes"), COMBINATIONS, ids=[f"{space} {changes}" for space, _, changes in COMBINATIONS]
)
def test_every_combination(space, base, changes, text):  # noqa: F811
    options = base | ({"protection": ("none",)} if changes.get("strategy") == "random" else {}) | changes
    if space == "text":
        options = options | {"data": text}
    assert killed_at_every_point(SearchConfig(**options), 6) > 2  # every sixth: each goes through the rest of the run


@pytest.mark.parametrize("wiring", ["prefix", "crossed"])
@pytest.mark.parametrize("protection", [*((name,) for name in ARMS if name != "matched-lr"), ("wpl", "matched-lr")])
def test_every_protection_of_two_models(wiring, protection):
    shared = {"prefix": 2, "crossed": 3}[wiring]
    options = MODELS | {"protection": protection, "wiring": wiring, "shared": (shared,), "tolerance": (0.5,)}
    assert killed_at_every_point(TwoModelConfig(**options)) > 2
