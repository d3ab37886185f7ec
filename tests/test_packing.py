"""Many small weights: packed into flat tensors they are drawn as they are one by one."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer

from forgetless import WeightPlasticity
from forgetless.plasticity import packing
from forgetless.plasticity.packing import Packed, Packing

SHAPES = [(3,), (), (2, 3), (0, 4), (5000,), (1, 1, 2), (16,)] * 12
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01),
    "amsgrad": lambda p: Adam([{"params": p[::2]}, {"params": p[1::2], "lr": 0.003}], lr=0.01, amsgrad=True),
}


class Many(nn.Module):
    """Weights of many shapes, one of them in channels_last and one not contiguous."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        weights = [torch.randn(shape, generator=draw).to(dtype) for shape in SHAPES]
        weights.append(torch.randn(2, 3, 4, 5, generator=draw).to(dtype, memory_format=torch.channels_last))
        weights.append(torch.randn(3, 4, generator=draw).to(dtype).t())
        self.weights = nn.ParameterList(map(nn.Parameter, weights))


def protected(model: Many, **strength: float) -> WeightPlasticity:
    draw = torch.Generator().manual_seed(1)
    held = WeightPlasticity(model.parameters(), **strength)
    importance = {name: torch.rand(w.shape, generator=draw) for name, w in model.named_parameters()}
    held.consolidate(model, {name: values * (values > 0.2) for name, values in importance.items()})
    return held


def train(model: Many, optimizer: Optimizer, first: int, last: int) -> None:
    """Steps of random gradients; the first few leave every third weight without one, so that Adam's steps differ."""
    for step in range(first, last):
        draw = torch.Generator().manual_seed(step)
        for i, weight in enumerate(model.weights):
            gradient = torch.randn(weight.shape, generator=draw).to(weight.dtype)
            weight.grad = None if step < 2 and i % 3 == 0 else gradient
        optimizer.step()


def trained(monkeypatch: pytest.MonkeyPatch, fewest: int, make: str, dtype: torch.dtype, **strength: float) -> Many:
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_FEWEST_TENSORS", fewest)
        model = Many(dtype)
        held = protected(model, **strength).attach(optimizer := OPTIMIZERS[make](list(model.weights)))
        train(model, optimizer, 0, 6)
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
        train(model, optimizer, 6, 8)
        held.consolidate(model, {name: torch.ones_like(w) for name, w in model.named_parameters()})
        train(model, optimizer, 8, 11)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_packed_weights_are_drawn_bit_for_bit_as_one_by_one(monkeypatch, make, dtype):
    packed, single = (trained(monkeypatch, fewest, make, dtype, alpha=3.0) for fewest in (2, 10**9))
    assert all(map(torch.equal, packed.parameters(), single.parameters()))
    free = Many(dtype)
    train(free, OPTIMIZERS[make](list(free.weights)), 0, 11)
    assert not torch.equal(free.weights[0], packed.weights[0])


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_packed_weights_keep_a_tolerance_as_one_by_one(monkeypatch, make):
    """Up to the order of a sum."""
    packed, single = (trained(monkeypatch, fewest, make, torch.float64, tolerance=0.3) for fewest in (2, 10**9))
    for left, right in zip(packed.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12)


def test_a_step_costs_as_many_operations_with_a_thousand_weights_as_with_a_hundred(monkeypatch):
    """Counted as tensors that arithmetic is given; copying in and out is one call each."""
    given: list[int] = []
    for name in ("_foreach_mul_", "_foreach_add_", "_foreach_lerp_"):
        call = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda first, *rest, call=call: given.append(len(first)) or call(first, *rest))
    for number in (100, 1000):
        weights = nn.ParameterList(nn.Parameter(torch.ones(2)) for _ in range(number))
        optimizer = Adam(list(weights), lr=0.1, foreach=False)
        held = WeightPlasticity(weights.parameters(), alpha=1.0).attach(optimizer)
        held.consolidate(weights, {name: torch.ones(2) for name, _ in weights.named_parameters()})
        for weight in weights:
            weight.grad = torch.ones(2)
        optimizer.step()
        optimizer.step()
        given.clear()
        optimizer.step()
        assert len(given) >= 4
        assert set(given) == {1}


def test_sets_of_weights_that_change_at_each_step_are_not_packed(monkeypatch):
    loads: list[int] = []
    load = Packed.load
    monkeypatch.setattr(Packed, "load", lambda self, t: loads.append(len(load(self, t)) < len(t)) or load(self, t))
    model = Many()
    protected(model, alpha=1.0).attach(optimizer := SGD(list(model.weights), lr=0.1))
    for step in range(4):
        for i, weight in enumerate(model.weights):
            weight.grad = None if i == step else torch.ones_like(weight)
        optimizer.step()
    assert loads
    assert not any(loads)
    loads.clear()
    optimizer.step()  # the same a second time
    assert loads
    assert all(loads)


def test_a_state_loaded_or_moved_takes_effect_where_weights_are_packed():
    model = Many()
    held = protected(model, alpha=1e9).attach(optimizer := SGD(list(model.weights), lr=0.1))
    train(model, optimizer, 2, 5)
    state = held.state_dict()
    state["anchors"] = [torch.zeros_like(anchor) for anchor in state["anchors"]]
    state["importances"] = [torch.ones_like(importance) for importance in state["importances"]]
    held.load_state_dict(state)
    train(model, optimizer, 5, 6)
    assert all((weight.abs() < 1e-6).all() for weight in model.weights)
    model.double()
    held.to(dtype=torch.float64)
    train(model, optimizer, 6, 9)
    assert all(weight.dtype == torch.float64 and (weight.abs() < 1e-6).all() for weight in model.weights)


def test_a_copy_does_not_share_the_space():
    model = Many()
    held = protected(model, alpha=1.0).attach(optimizer := SGD(list(model.weights), lr=0.1))
    train(model, optimizer, 2, 5)
    twin, held_twin = copy.deepcopy((model, held))
    held_twin.attach(optimizer_twin := SGD(list(twin.weights), lr=0.1))
    train(twin, optimizer_twin, 5, 8)
    train(model, optimizer, 5, 8)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))


def test_only_plain_small_tensors_of_the_cpu_are_packed():
    small = [torch.zeros(3) for _ in range(70)]
    others = [torch.zeros(5000), torch.zeros(3, dtype=torch.float64), torch.zeros(3, device="meta")]
    sparse = [torch.zeros(3).to_sparse()]
    chosen = Packing([*others, *small, *sparse])
    assert chosen.blocks == [list(range(3, 73))]
    assert chosen.loose == [0, 1, 2, 73]
    assert Packing(small, any_packed=False).blocks == []


def test_numbers_are_spread_over_the_elements_of_their_tensors():
    tensors = [torch.zeros(size) for size in (2, 0, 1)] * 30
    packed = Packed(Packing(tensors), tensors)
    (same,) = packed.spread([2.0] * 90)
    assert same == 2.0
    (flat,) = packed.spread([float(i) for i in range(90)])
    assert flat.tolist() == [float(i) for i in range(90) for _ in range((2, 0, 1)[i % 3])]
