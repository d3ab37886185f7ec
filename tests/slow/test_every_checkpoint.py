"""Every strategy and every protection that has a state, killed at every sixth point; two models at every point."""

import pytest

from configs import search_config, two_model_config
from forgetless.protection import PROTECTIONS
from forgetless.strategies import STRATEGIES
from test_checkpoints import CELL, IMAGES, MODELS, TEXT, killed_at_every_point, text  # noqa: F401

PROTECTED = [kind.name for kind in PROTECTIONS.values() if kind.protects]
OPTIONS = {"wpl-tolerance": {"wpl_tolerance_strength": 0.5}}
OPTIONS_OF_TWO_MODELS = OPTIONS | {"coupling": {"coupling_num_examples": 8, "coupling_num_rows": 8}}
COMBINATIONS = [
    *(("images", IMAGES, {"strategy": strategy}) for strategy in STRATEGIES),
    *(("images", IMAGES, {"protection": (name,), **OPTIONS.get(name, {})}) for name in PROTECTED),
    *(("text", TEXT, {"protection": (name,), "epochs": 1, **OPTIONS.get(name, {})}) for name in PROTECTED),
    *(("text", TEXT, {"strategy": strategy, "epochs": 1}) for strategy in STRATEGIES if strategy != "gdas"),
    ("cell", CELL, {"strategy": "enas"}),
    ("images", IMAGES, {"importance": "held-out", "importance_batches": 1, "wpl_rule": "merge"}),
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
    assert killed_at_every_point(search_config(**options), 6) > 2  # every sixth: each goes through the rest of the run


@pytest.mark.parametrize("wiring", ["prefix", "crossed"])
@pytest.mark.parametrize(
    "protection", [*((name,) for name in PROTECTIONS if name != "matched-lr"), ("wpl", "matched-lr")]
)
def test_every_protection_of_two_models(wiring, protection):
    shared = {"prefix": 2, "crossed": 3}[wiring]
    options = MODELS | {"protection": protection, "wiring": wiring, "shared": (shared,)}
    options |= OPTIONS_OF_TWO_MODELS.get(protection[0], {})
    assert killed_at_every_point(two_model_config(**options)) > 2
