"""What a step computes on the way is bounded; importances in fewer bits, anchors elsewhere, steps every k, compiled."""

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    Muon,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    SparseAdam,
)
from torch.utils._python_dispatch import TorchDispatchMode

from forgetless import WeightPlasticity
from forgetless.plasticity import chunks as chunks_module
from forgetless.plasticity import compiled as compiled_module
from forgetless.plasticity import scaled_metric
from forgetless.plasticity.chunks import cut, is_dense
from forgetless.plasticity.metric import known_metric
from forgetless.plasticity.storage import Coded

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "SGD, momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.1),
    "Adam": lambda p: Adam(p, lr=0.01),
    "Adam, amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "AdamW, fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "NAdam": lambda p: NAdam(p, lr=0.01),
    "Adamax": lambda p: Adamax(p, lr=0.01),
    "RAdam": lambda p: RAdam(p, lr=0.01, betas=(0.9, 0.6)),
    "RMSprop, centered": lambda p: RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "Adagrad": lambda p: Adagrad(p, lr=0.1, lr_decay=0.01),
    "Adadelta": lambda p: Adadelta(p, lr=0.3),
    "Adafactor": lambda p: Adafactor(p, lr=0.01),
    "ASGD": lambda p: ASGD(p, lr=0.1, lambd=0.1),
    "Muon": lambda p: Muon(p, lr=0.01),
}


class Some(nn.Module):
    """Weights larger than a chunk, as they lie in memory in every way, and a small one."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.plain = nn.Parameter(torch.randn(40, 50, generator=draw).to(dtype))
        self.turned = nn.Parameter(torch.randn(30, 40, generator=draw).to(dtype).t())
        self.small = nn.Parameter(torch.randn(1, 3, generator=draw).to(dtype))

    def gradients(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        for weight in self.parameters():
            weight.grad = torch.randn(weight.shape, generator=draw).to(weight.dtype)


def importances(model: nn.Module, seed: int = 1) -> dict[str, Tensor]:
    """From 10⁻⁸ to 1, one in five 0."""
    draw = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(w.shape, generator=draw) for name, w in model.named_parameters()}
    return {name: 10.0 ** (-8 * values) * (values > 0.2) for name, values in drawn.items()}


def protected(model: nn.Module, **options: Any) -> WeightPlasticity:
    plasticity = WeightPlasticity(model, **({"alpha": 30.0} | options))
    plasticity.consolidate(model, importances(model), {})
    return plasticity


def steps(model: Some, optimizer: Optimizer, first: int, last: int) -> None:
    for seed in range(first, last):
        model.gradients(seed)
        optimizer.step()


def trained(options: dict[str, Any], make: str = "Adam", dtype: torch.dtype = torch.float32) -> Some:
    model = Some(dtype)
    plasticity = protected(model, **options).attach(optimizer := OPTIMIZERS[make](model.parameters()))
    steps(model, optimizer, 0, 6)
    plasticity.detach()
    return model


def same(left: nn.Module, right: nn.Module) -> bool:
    return all(map(torch.equal, left.parameters(), right.parameters()))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(chunks_module.MOST_ELEMENTS, "cpu", 1024)
    return 1024


# ---- chunks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_in_chunks_a_weight_goes_where_the_formula_says(name: str, small_chunks: int) -> None:
    """θ + (θ̂ − θ) s/(1 + s), s = lr α F/d, of the whole weight, after each of some steps."""
    model, free = Some(), Some()
    plasticity = protected(model).attach(optimizer := OPTIMIZERS[name](model.parameters()))
    plain = OPTIMIZERS[name](free.parameters())
    for seed in range(3):
        free.load_state_dict(model.state_dict())
        plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        free.gradients(seed)
        plain.step()
        steps(model, optimizer, seed, seed + 1)
        (group,) = plain.param_groups
        for found, after, d in zip(
            model.parameters(), free.parameters(), _metrics(plain, group, list(free.parameters())), strict=True
        ):
            anchor, importance = plasticity.anchor(found), plasticity.importance(found)
            pull = group["lr"] * 30.0 * importance / d
            right = after + (anchor - after) * pull / (1 + pull)
            torch.testing.assert_close(found.detach(), right.detach(), rtol=1e-7, atol=1e-10)


def _metrics(optimizer: Optimizer, group: dict[str, Any], weights: list[nn.Parameter]) -> list[Any]:
    metric = scaled_metric(optimizer, group, weights, 1.0)
    return metric if isinstance(metric, list) else [metric] * len(weights)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
def test_adams_metric_is_the_root_of_its_second_moment(
    amsgrad: bool, compiled: bool, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d = √(v / (1 − β₂ᵗ)) + ε, number by number, with an ε that counts."""
    monkeypatch.setattr(compiled_module, "_compiled", lambda function: function)
    monkeypatch.setattr("forgetless.plasticity.block.FEWEST_ELEMENTS", 1000)
    model = Some()
    optimizer = Adam(model.parameters(), lr=0.01, betas=(0.9, 0.8), eps=0.3, amsgrad=amsgrad)
    held = protected(model, compiled=compiled)
    steps(model, optimizer, 0, 2)
    before = model.turned.detach().clone()
    held.attach(optimizer)
    moment = "max_exp_avg_sq" if amsgrad else "exp_avg_sq"
    v = optimizer.state[model.turned][moment].clone()
    monkeypatch.setattr(Adam, "step", lambda _self: None)
    held._after_step(optimizer, (), {})
    anchor, importance = held.anchor(model.turned), held.importance(model.turned)
    for i in ((0, 0), (39, 29), (17, 4), (3, 28)):
        d = math.sqrt(v[i].item() / (1 - 0.8**2)) + 0.3
        pull = 0.01 * 30 * importance[i].item() / d
        right = (before[i].item() + pull * anchor[i].item()) / (1 + pull)
        assert model.turned[i].item() == pytest.approx(right, rel=1e-12)


@pytest.mark.parametrize("make", ["SGD", "Adam", "NAdam"])
def test_chunks_change_no_bit(make: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained({}, make)
    monkeypatch.setitem(chunks_module.MOST_ELEMENTS, "cpu", 1024)
    assert same(whole, trained({}, make))


class _Largest(TorchDispatchMode):
    """The most elements of what an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        found = result if isinstance(result, list | tuple) else [result]
        self.num_elements = max([self.num_elements, *(t.numel() for t in found if isinstance(t, Tensor))])
        return result


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("Adafactor", "Muon")])
@pytest.mark.parametrize("importance_dtype", [None, torch.bfloat16, torch.uint8])
def test_nothing_on_the_way_is_larger_than_a_chunk(
    name: str, importance_dtype: torch.dtype | None, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forgetless.plasticity.block._MOST_KEPT", 0)
    model = Some(torch.float32)
    plasticity = protected(model, importance_dtype=importance_dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    steps(model, optimizer, 0, 2)
    plasticity.attach(optimizer)
    monkeypatch.setattr(type(optimizer), "step", lambda self: None)
    follow = plasticity._following[optimizer]
    plasticity._after_step(optimizer, (), {})  # cuts
    with _Largest() as largest:
        plasticity._after_step(optimizer, (), {})
    assert 0 < largest.num_elements <= small_chunks
    follow.remove()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if not name.startswith(("SGD", "AdamW"))])
def test_no_metric_waits_for_a_number(name: str) -> None:
    """Tensors without data have none to give."""
    model = Some(torch.float32)
    optimizer = OPTIMIZERS[name]([model.plain])
    steps(model, optimizer, 0, 1)
    state = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in optimizer.state[model.plain].items()}
    weight = nn.Parameter(model.plain.detach().to("meta"))
    weight.grad = model.plain.grad.to("meta")
    if name == "Adam, amsgrad":
        assert "max_exp_avg_sq" in state
    metric = known_metric(optimizer).definition(state, optimizer.param_groups[0], weight)
    assert isinstance(metric, Tensor)
    assert metric.device.type == "meta"


def test_sparse_adam_is_followed_in_chunks(small_chunks: int) -> None:
    model = nn.Embedding(100, 30, sparse=True)
    plasticity = protected(model).attach(optimizer := SparseAdam(model.parameters(), lr=0.1))
    before = model.weight.detach().clone()
    model(torch.arange(0, 100, 2)).sum().backward()
    optimizer.step()
    (metric,) = scaled_metric(optimizer, optimizer.param_groups[0], [model.weight], 1.0)
    pull = 0.1 * 30 * plasticity.importance(model.weight) / metric
    after = before.clone()
    after[::2] -= 0.1
    torch.testing.assert_close(model.weight.detach(), (after + pull * before) / (1 + pull), rtol=1e-5, atol=1e-6)


def test_tensors_are_cut_as_they_lie_in_memory() -> None:
    turned, strided = torch.randn(3, 4).t(), torch.randn(3, 4)[:, ::2]
    assert is_dense(turned)
    assert not is_dense(strided)
    (first,), (second,), (third,) = cut([turned, strided], most=8)
    assert torch.equal(torch.cat([first.of(turned), second.of(turned)]), turned.t().flatten())
    assert torch.equal(first.of(turned.contiguous()), first.of(turned))
    assert third.of(strided) is strided


# ---- fewer bits ----------------------------------------------------------------------------------------------------


def test_a_code_is_the_nearest_fourth_root() -> None:
    """Against a loop over Python's numbers."""
    draw = torch.Generator().manual_seed(0)
    importance = 10.0 ** (-9 * torch.rand(2, 700, generator=draw)) * (torch.rand(2, 700, generator=draw) > 0.1)
    coded = Coded.of(importance)
    flat, found = importance.flatten().tolist(), coded.dense().flatten().tolist()
    for start in (0, 1024):
        scale = max(flat[start : start + 1024])
        for value, decoded in zip(flat[start : start + 1024], found[start : start + 1024], strict=True):
            code = max(round(255 * (value / scale) ** 0.25), 1 if value else 0)
            assert decoded == pytest.approx(scale * (code / 255) ** 4, rel=1e-5)
            assert (decoded == 0) == (value == 0)
            if value > 1e-6 * scale:
                assert abs(decoded / value - 1) < 0.25
    assert torch.equal(Coded.of(coded.dense()).codes, coded.codes)
    assert torch.equal(Coded.of(torch.zeros(5)).dense(), torch.zeros(5))


@pytest.mark.parametrize("make", ["SGD", "Adam"])
@pytest.mark.parametrize("importance_dtype", [torch.bfloat16, torch.uint8])
def test_a_step_takes_importances_as_they_are_held(importance_dtype: torch.dtype, make: str, small_chunks: int) -> None:
    model = Some(torch.float32)
    held = protected(model, importance_dtype=importance_dtype)
    rounded = {name: held.importance(w) for name, w in model.named_parameters()}
    assert not all(torch.equal(rounded[name], value) for name, value in importances(model).items())
    whole = Some(torch.float32)
    wide = WeightPlasticity(whole, alpha=30.0)
    wide.consolidate(whole, rounded, {})
    for one, plasticity in ((model, held), (whole, wide)):
        plasticity.attach(optimizer := OPTIMIZERS[make](one.parameters()))
        steps(one, optimizer, 0, 5)
    assert same(model, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"importance_dtype": torch.bfloat16},
        {"importance_dtype": torch.uint8},
        {"anchor": "cpu"},
        {"anchor": "folder"},
        {"importance_dtype": torch.uint8, "anchor": "folder"},
    ],
    ids=str,
)
def test_states_copies_masks_and_replaced_weights(options: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("forgetless.plasticity.storage._FEWEST_IN_FILE", 1)
    options = {name: str(tmp_path) if value == "folder" else value for name, value in options.items()}
    model = Some(torch.float32)
    held = protected(model, **options)
    steps(model, SGD(model.parameters(), lr=0.01), 0, 1)
    before = {name: (held.importance(w), held.anchor(w).clone()) for name, w in model.named_parameters()}
    mask = torch.zeros(40, 50, dtype=torch.bool)
    mask[:10] = True
    held.consolidate(model, importances(model, 2), {"plain": mask})
    assert torch.equal(held.anchor(model.plain)[:10], model.plain.detach()[:10])
    assert torch.equal(held.anchor(model.plain)[10:], before["plain"][1][10:])

    twin, copied = copy.deepcopy((model, held))
    pickled_model, pickled = pickle.loads(pickle.dumps((model, held)))
    loaded = WeightPlasticity(model, **options)
    loaded.load_state_dict(held.state_dict())
    for one, other in ((twin, copied), (pickled_model, pickled), (model, loaded)):
        for mine, its in zip(model.parameters(), one.parameters(), strict=True):
            assert torch.equal(held.importance(mine), other.importance(its))
            assert torch.equal(held.anchor(mine), other.anchor(its))
        assert other._weights.storage.importance_dtype is held._weights.storage.importance_dtype

    grown = nn.Parameter(torch.zeros(45, 50))
    old = held.importance(model.plain)
    held.replace(model.plain, grown)
    assert torch.equal(held.anchor(grown)[:40], copied.anchor(twin.plain))
    torch.testing.assert_close(held.importance(grown)[:40], old, rtol=0.3, atol=1e-9)
    assert not held.importance(grown)[40:].any()
    held.to(dtype=torch.float64)
    model.plain = grown
    model.double()
    held.attach(optimizer := SGD(model.parameters(), lr=0.1))
    steps(model, optimizer, 0, 2)
    assert held.penalty().isfinite()
    assert held.expected_increase() > 0
    assert not list(tmp_path.iterdir())  # files without a name


@pytest.mark.parametrize("anchor", ["cpu", "folder"])
def test_anchors_elsewhere_change_no_bit(anchor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forgetless.plasticity.storage._FEWEST_IN_FILE", 1)
    place = str(tmp_path) if anchor == "folder" else anchor
    assert same(trained({"anchor": place}), trained({}))
    tolerance = {"alpha": None, "tolerance": 1e-3}
    assert same(trained({"anchor": place} | tolerance), trained(tolerance))


def test_eight_bits_hold_a_quarter_more_than_the_weights() -> None:
    model = nn.Linear(1000, 1000, bias=False)
    held = protected(model, importance_dtype=torch.uint8)
    (coded,), (anchor,) = held._weights.importances, held._weights.anchors
    size = sum(t.numel() * t.element_size() for t in (*coded, anchor))
    assert size <= 1.251 * model.weight.numel() * 4


def test_what_cannot_be_held_so_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected importance_dtype to be torch.bfloat16, torch.uint8 or None"):
        WeightPlasticity(nn.Linear(1, 1), importance_dtype=torch.float16)
    with pytest.raises(ValueError, match=r"Expected anchor to be .cpu. or a folder"):
        WeightPlasticity(nn.Linear(1, 1), anchor=tmp_path / "none")
    model = nn.ParameterDict({"weight": nn.Parameter(torch.ones(2, dtype=torch.complex64))})
    with pytest.raises(ValueError, match="Expected real weights that are dense plain tensors"):
        WeightPlasticity(model.parameters(), importance_dtype=torch.uint8).consolidate(model, {"weight": torch.ones(2)})
    for every in (0, 1.5):
        with pytest.raises(ValueError, match="Expected every to be a whole number"):
            WeightPlasticity(nn.Linear(1, 1), every=every)


# ---- every k steps -------------------------------------------------------------------------------------------------


class One(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=torch.float64))


def held_at_zero(model: One, **options: Any) -> WeightPlasticity:
    plasticity = WeightPlasticity(model, alpha=1.0, **options)
    with torch.no_grad():
        start = model.theta.clone()
        model.theta.zero_()
        plasticity.consolidate(model, {"theta": torch.ones_like(start)})
        plasticity.warn_if_moved()
        model.theta.copy_(start)
    return plasticity


@pytest.mark.parametrize("make", ["SGD", "Adam"])
@pytest.mark.parametrize("every", [1, 4])
def test_the_rest_point_is_the_same_at_every_k(every: int, make: str) -> None:
    """½ (θ − 1)² + ½ θ² is least at ½; a step of learning rate lr leaves it by about k lr/2."""
    model = One(0.9)
    held_at_zero(model, every=every).attach(
        optimizer := SGD(model.parameters(), lr=0.01) if make == "SGD" else Adam(model.parameters(), lr=0.003)
    )
    seen = []
    for _ in range(800):
        model.theta.grad = model.theta.detach() - 1
        optimizer.step()
        seen.append(model.theta.item())
    assert math.fsum(seen[-200:]) / 200 == pytest.approx(0.5, abs=0.01)


def test_every_k_draws_with_the_rates_of_all_steps_and_of_what_moved() -> None:
    model = nn.ParameterList([nn.Parameter(torch.ones(1).double()), nn.Parameter(torch.ones(1).double())])
    plasticity = WeightPlasticity(model.parameters(), alpha=2.0, every=3)
    plasticity.consolidate(model, {"0": torch.ones(1), "1": torch.ones(1)})
    plasticity.warn_if_moved()
    plasticity.attach(optimizer := SGD(model.parameters(), lr=1.0))
    with torch.no_grad():
        model[0].fill_(2.0)
        model[1].fill_(2.0)
    for rate, second_moves in ((0.1, True), (0.2, False), (0.4, True)):
        assert model[0].item() == model[1].item() == 2.0
        optimizer.param_groups[0]["lr"] = rate
        model[0].grad, model[1].grad = torch.zeros(1).double(), torch.zeros(1).double() if second_moves else None
        optimizer.step()
    assert model[0].item() == pytest.approx(1 + 1 / (1 + 2 * 0.7))
    assert model[1].item() == pytest.approx(1 + 1 / (1 + 2 * 0.5))


@pytest.mark.parametrize("options", [{"alpha": 30.0}, {"alpha": None, "tolerance": 1e-3}], ids=str)
@pytest.mark.parametrize("load_first", [True, False])
def test_a_run_resumed_between_two_steps_goes_on_as_it_would_have(options: dict[str, Any], load_first: bool) -> None:
    model = Some()
    held = protected(model, every=4, **options).attach(optimizer := Adam(model.parameters(), lr=0.01))
    steps(model, optimizer, 0, 6)
    fresh = Some()
    fresh.load_state_dict(model.state_dict())
    resumed, again = WeightPlasticity(fresh, **options), Adam(fresh.parameters(), lr=0.01)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    if load_first:
        resumed.load_state_dict(held.state_dict())
        resumed.attach(again)
    else:
        resumed.attach(again)
        resumed.load_state_dict(held.state_dict())
    assert resumed.every == 4
    steps(model, optimizer, 6, 11)
    steps(fresh, again, 6, 11)
    assert same(model, fresh)


def test_steps_before_a_model_is_consolidated_are_not_followed() -> None:
    model = One(1.0)
    plasticity = held_at_zero(model, every=2).attach(optimizer := SGD(model.parameters(), lr=1.0))
    model.theta.grad = torch.zeros(1).double()
    optimizer.step()
    plasticity.consolidate(model, {"theta": torch.ones(1)})
    with torch.no_grad():
        model.theta.fill_(2.0)
    plasticity._weights._fresh = []
    optimizer.step()
    assert model.theta.item() == 2.0


def test_a_tolerance_is_kept_after_every_k_steps() -> None:
    model = Some()
    held = protected(model, alpha=None, tolerance=1e-3, every=3).attach(optimizer := Adam(model.parameters(), lr=0.01))
    for step in range(12):
        steps(model, optimizer, step, step + 1)
        if step % 3 == 2:
            assert held.expected_increase() <= 1e-3 * (1 + 1e-6)


# ---- compiled ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["SGD", "Adam", "NAdam"])
@pytest.mark.parametrize("importance_dtype", [None, torch.bfloat16])
def test_one_pass_draws_as_chunks_do(make: str, importance_dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python runs it; tests/slow has it compiled."""
    passes: list[str] = []

    def interpreted(function: Callable[..., None]) -> Callable[..., None]:
        return lambda *tensors: passes.append(function.__name__) or function(*tensors)

    monkeypatch.setattr(compiled_module, "_compiled", interpreted)
    monkeypatch.setattr("forgetless.plasticity.block.FEWEST_ELEMENTS", 1000)
    monkeypatch.setattr("forgetless.plasticity.block._MOST_KEPT", 0)
    options = {"importance_dtype": importance_dtype}
    found, right = trained({"compiled": True} | options, make), trained(options, make)
    for left, weight in zip(found.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(left, weight, rtol=1e-6, atol=1e-6)
    assert len(passes) == (0 if make == "NAdam" else 2 * 6)


def test_without_a_compiler_the_step_is_taken_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_function: Callable[..., None]) -> Callable[..., None]:
        def run(*_tensors: Tensor) -> None:
            raise RuntimeError("no compiler\nand more")

        return run

    monkeypatch.setattr(compiled_module, "_compiled", fails)
    monkeypatch.setattr("forgetless.plasticity.block.FEWEST_ELEMENTS", 1000)
    with pytest.warns(UserWarning, match=r"could not be compiled, and is taken without: RuntimeError: no compiler\."):
        found = trained({"compiled": True})
    assert same(found, trained({}))
