"""Weight decay of all that trains: as torch has it, of the weights that a batch trains, and nothing where not asked."""

import pytest
import torch
from torch import nn

from configs import TINY_TEXT, search_config
from forgetless.errors import InputError
from forgetless.evaluation.trainings import Training
from forgetless.options import command_line
from forgetless.parts import OptimizerConfig
from forgetless.search import Search, SearchArm, SearchConfig, load_task
from forgetless.training import make_optimizer

RATE, DECAY = 0.1, 0.3


def config_of(name, decay):
    return OptimizerConfig(name=name, learning_rate=RATE, momentum=0.0, weight_decay=decay)


def first_step(name, weight, gradient, decay):
    """A weight after one step from no state, by the optimizers' formulas."""
    if name == "adamw":
        weight, pulled = weight - RATE * decay * weight, gradient
    else:
        pulled = gradient + decay * weight
    return weight - RATE * (pulled if name == "sgd" else pulled / (pulled.abs() + 1e-8))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("decay", [None, 0.0, DECAY])
def test_one_step_is_the_formula(name, decay):
    model = nn.Linear(20, 10, bias=False).double()
    begin = model.weight.detach().clone()
    gradient = 0.1 * torch.randn_like(begin)  # small, so that decay decides the sign, which is all of Adam's first step
    optimizer = make_optimizer(config_of(name, decay), model)
    model.weight.grad = gradient.clone()
    optimizer.step()
    expected = first_step(name, begin, gradient, {"adamw": 0.01}.get(name, 0.0) if decay is None else decay)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_both_groups_decay():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = make_optimizer(config_of("sgd", DECAY), model, list(model[0].parameters()), shared_rate=0.01)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [DECAY, DECAY]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, RATE]


@pytest.mark.parametrize("decay", [None, 1.0])
def test_in_a_search_only_used_weights_decay(decay):
    """One model trains with a rate so small that all but decay vanishes beside it."""
    given = {} if decay is None else {"weight_decay": decay}
    config = search_config(
        **TINY_TEXT | {"models_per_epoch": 1, "nodes": 3},
        vocabulary=200,
        protection=("none",),
        optimizer="sgd",
        learning_rate=0.5,
        max_gradient_norm=1e-6,
        **given,
    )
    search = Search(config, load_task(config), SearchArm(0, "none"))
    before = {name: weight.detach().clone() for name, weight in search.supernet.named_parameters()}
    search.one_epoch({}, lambda phase, values: None)
    ratios = {
        round(float(weight.detach().norm() / before[name].norm()), 4)
        for name, weight in search.supernet.named_parameters()
        if before[name].norm() > 0
    }
    assert ratios == ({1.0} if decay is None else {0.25, 1.0})  # after two batches: those of the model, and the others


def test_what_is_not_asked_for_leaves_files_and_keys_as_they_were():
    plain, decayed = search_config(**TINY_TEXT), search_config(**TINY_TEXT, weight_decay=5e-4)
    assert "weight_decay" not in plain.to_dict()["optimizer"]
    assert SearchConfig.from_dict(decayed.to_dict()) == decayed
    assert "--weight-decay 5e-4" in command_line(decayed, "search")
    assert "--weight-decay" not in command_line(plain, "search")
    keys = [Training.of(each, "0" * 64, "x", seed=0, num_batches=1).key for each in (plain, decayed)]
    assert keys[0] != keys[1]


def test_a_wrong_decay_is_refused():
    with pytest.raises(InputError, match=r"Expected weight_decay to be finite and at least 0, but got -0\.1"):
        search_config(**TINY_TEXT, weight_decay=-0.1)
