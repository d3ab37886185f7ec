"""Interpolation after training, and lower rates during it."""

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW

from forgetless.errors import DivergedError, InputError
from forgetless.protection import Evidence, make_protection
from forgetless.training import train

X = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 3


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def evidence_of(model):
    return Evidence(fisher=dict, batches=lambda: [(X, Y)], loss=F.cross_entropy, loss_of=lambda: None)


def fine_tuned(protection, model, optimizer=None, steps=5):
    protection.consolidate(model, evidence_of(model))
    optimizer = optimizer or SGD(model.parameters(), lr=0.3)
    train([(X, Y)] * steps, lambda batch: F.cross_entropy(model(batch[0]), batch[1]), optimizer, protection)
    return state_of(model)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def expect_same(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_interpolation_is_exact_at_both_ends_and_starts_from_the_end_of_training_each_time():
    plain = network()
    before = state_of(plain)
    trained = fine_tuned(make_protection("none", plain.parameters()), plain)
    model = network()
    protection = make_protection("wise-ft", model.parameters(), strength=0.25)
    found = fine_tuned(protection, model)
    assert any(not torch.equal(found[name], trained[name]) for name in found)
    for w in (0.25, 0.9, 1.0, 0.0, 0.25):
        protection.finish(w)
        present = state_of(model)
        for name, end in trained.items():  # BatchNorm's running statistics among them
            torch.testing.assert_close(present[name], before[name] + (1 - w) * (end - before[name]))
        if w in (0, 1):
            expect_same(present, before if w else trained)
    expect_same(state_of(model), found)
    assert protection.strength == 0.25


def test_a_restored_interpolation_finishes_as_the_first_one():
    model = network()
    protection = make_protection("wise-ft", model.parameters())
    fine_tuned(protection, model)
    buffer = io.BytesIO()
    torch.save(protection.state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    protection.finish(0.7)
    wanted = state_of(model)
    protection.finish(0.1)
    again = make_protection("wise-ft", model.parameters(), recall=lambda _: (model, evidence_of(model)))
    again.load_state_dict(state)
    again.finish(0.7)
    expect_same(state_of(model), wanted)
    with pytest.raises(InputError, match="Expected a way to recall 1 earlier models, but got none"):
        make_protection("wise-ft", model.parameters()).load_state_dict(state)


def test_weights_that_are_not_trained_or_that_no_earlier_model_used_are_not_moved():
    first, second, third = (nn.Linear(4, 4) for _ in range(3))
    every = [*first.parameters(), *second.parameters(), *third.parameters()]
    protection = make_protection("wise-ft", every, strength=1.0)
    earlier = nn.Sequential(first, second)
    protection.consolidate(earlier, evidence_of(earlier))
    anchor = first.weight.detach().clone()
    with torch.no_grad():
        second.weight.add_(1)  # as by a model that diverged and was not consolidated
    moved = second.weight.detach().clone()
    present = nn.Sequential(first, third)
    start = third.weight.detach().clone()
    optimizer = SGD(every, lr=0.1)
    train([X[:, :4]] * 3, lambda x: present(x).square().mean(), optimizer, protection)
    assert torch.equal(first.weight, anchor)
    assert torch.equal(second.weight, moved)
    assert not torch.equal(third.weight, start)


def test_what_interpolation_refuses():
    model = network()
    protection = make_protection("wise-ft", model.parameters())
    with pytest.raises(InputError, match="Expected a training to finish, but got none"):
        protection.finish(0.5)
    with pytest.raises(InputError, match=r"Expected a share of the earlier weights in \[0, 1\], but got nan"):
        protection.finish(math.nan)
    with pytest.raises(InputError, match=r"Expected strength in \[0, 1\], but got 1.5"):
        make_protection("wise-ft", model.parameters(), strength=1.5)
    nn.init.constant_(model[0].weight, math.inf)
    with pytest.raises(DivergedError, match="Expected finite weights to go back to, but got inf or nan"):
        protection.consolidate(model, evidence_of(model))
    with pytest.raises(RuntimeError, match="stop"), protection.during(SGD(model.parameters(), lr=0.1)):
        raise RuntimeError("stop")


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.3, momentum=0.9), lambda p: AdamW(p, lr=0.01)])
@pytest.mark.parametrize("mixed", [True, False])
def test_slower_is_training_with_another_rate_for_the_used_weights(make, mixed):
    """Also where they are in one group with others, and where the rate falls on the way."""

    def trained(model, groups, protection):
        optimizer = make(groups)
        rates = [group["lr"] for group in optimizer.param_groups]

        def fall(step):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate / (1 + step)

        train(
            [(X, Y)] * 4,
            lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
            optimizer,
            protection,
            after_step=fall,
        )
        assert [group["lr"] for group in optimizer.param_groups] == [rate / 5 for rate in rates]
        return state_of(model)

    model = network()
    body, head = list(model[:3].parameters()), list(model[3].parameters())
    protection = make_protection("slower", model.parameters(), strength=8.0)
    protection.consolidate(model[:3], evidence_of(model))
    groups = [{"params": [*head, *body]}] if mixed else [{"params": body}, {"params": head}]
    found = trained(model, groups, protection)
    twin = network()
    rate = make([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
    by_hand = [{"params": twin[:3].parameters(), "lr": rate / 8}, {"params": twin[3].parameters()}]
    expect_same(found, trained(twin, by_hand, make_protection("none", [])))


def test_a_divisor_of_1_is_plain_training_and_less_is_refused():
    plain, model = network(), network()
    trained = fine_tuned(make_protection("none", plain.parameters()), plain)
    expect_same(fine_tuned(make_protection("slower", model.parameters(), strength=1.0), model), trained)
    with pytest.raises(InputError, match="Expected the strength of slower to be finite and at least 1, but got 0"):
        make_protection("slower", [], strength=0.5)


def test_an_optimizer_gets_its_groups_back_after_an_error():
    model = network()
    protection = make_protection("slower", model.parameters())
    protection.consolidate(copy.copy(model), evidence_of(model))
    optimizer = SGD(model.parameters(), lr=0.1)
    groups = optimizer.param_groups

    def fails():
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), protection.during(optimizer):
        optimizer.step(fails)
    assert optimizer.param_groups is groups
