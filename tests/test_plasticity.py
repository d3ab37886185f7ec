"""The penalty, the proximal step and the object over them: formulas, fixed points, degenerate cases, state."""

import copy
import gc
import io
import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from forgetless import WeightPlasticity, diagonal_fisher, proximal_step, quadratic_penalty, reference
from forgetless.plasticity import block as blocks
from forgetless.plasticity import metric as metrics_of_optimizers

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]

OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD": lambda p: SGD(p, lr=0.05),
    "SGD, momentum": lambda p: SGD(p, lr=0.02, momentum=0.8),
    "SGD, momentum, dampening": lambda p: SGD(p, lr=0.05, momentum=0.8, dampening=0.3),
    "SGD, Nesterov": lambda p: SGD(p, lr=0.02, momentum=0.8, nesterov=True),
    "Adam": lambda p: Adam(p, lr=0.02),
    "AdamW": lambda p: AdamW(p, lr=0.02, weight_decay=0.0),
    "AMSGrad": lambda p: Adam(p, lr=0.02, betas=(0.9, 0.6), amsgrad=True),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def randn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def columns(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], ...]:
    """Parameters, anchors and importances; some importances are 0."""
    parameters = [randn(*shape, dtype=dtype) for shape in shapes]
    anchors = [randn(*shape, dtype=dtype) for shape in shapes]
    importances = [randn(*shape, dtype=dtype).relu() for shape in shapes]
    return parameters, anchors, importances


def importance_of(model: nn.Module, value: float | None = None) -> dict[str, Tensor]:
    return {
        name: torch.rand_like(weight) if value is None else torch.full_like(weight, value)
        for name, weight in model.named_parameters()
    }


class Weights(nn.Module):
    """A model that is nothing but some weights, named a, b, c, …"""

    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        for name, value in zip("abcdefgh", values, strict=False):
            self.register_parameter(name, nn.Parameter(value.clone()))


def consolidated(
    parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor], alpha: float, **options: str
) -> WeightPlasticity:
    """A plasticity over some weights, with these anchors and importances."""
    held = WeightPlasticity(parameters, alpha, **options)
    state = held.state_dict() | {"anchors": list(anchors), "importances": list(importances)}
    held.load_state_dict(state)
    return held


def same_state(left: dict[str, object], right: dict[str, object]) -> bool:
    pairs = zip([*left["anchors"], *left["importances"]], [*right["anchors"], *right["importances"]], strict=True)
    return all(left[key] == right[key] for key in ("alpha", "rule", "decay", "damping")) and all(
        a is b is None or (a.dtype == b.dtype and torch.equal(a, b)) for a, b in pairs
    )


# ---- the penalty -----------------------------------------------------------------------------------------------------


def test_penalty_is_the_reference() -> None:
    arguments = columns([(3, 4), (5,), ()])
    assert quadratic_penalty(*arguments, alpha=7.0).item() == pytest.approx(
        reference.quadratic_penalty(*arguments, alpha=7.0), rel=1e-12
    )


def test_penalty_has_the_gradient_of_its_formula() -> None:
    parameters, anchors, importances = columns([(3, 4), (5,)])
    for parameter in parameters:
        parameter.requires_grad_()
    gradients = torch.autograd.grad(quadratic_penalty(parameters, anchors, importances, 7.0), parameters)
    for gradient, theta, anchor, importance in zip(gradients, parameters, anchors, importances, strict=True):
        torch.testing.assert_close(gradient, 7.0 * importance * (theta - anchor).detach(), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda *p: quadratic_penalty(p, anchors, importances, 7.0), parameters)
    assert torch.autograd.gradgradcheck(lambda *p: quadratic_penalty(p, anchors, importances, 7.0), parameters)


def test_penalty_of_nothing_is_zero() -> None:
    assert quadratic_penalty([], [], [], alpha=1e5) == 0


@pytest.mark.parametrize("function", [quadratic_penalty, partial(proximal_step, learning_rate=0.1)])
@pytest.mark.parametrize("alpha", [-1.0, math.nan, math.inf])
def test_an_impossible_alpha_is_refused(function: Callable[..., object], alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"Expected alpha to be finite and at least 0, but got {alpha}"):
        function(*columns([(2,)]), alpha=alpha)
    with pytest.raises(ValueError, match="Expected alpha to be finite"):
        WeightPlasticity([], alpha)
    held = WeightPlasticity([], 1.0)
    with pytest.raises(ValueError, match="Expected alpha to be finite"):
        held.alpha = alpha
    assert held.alpha == 1.0


# ---- the proximal step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1e-3, 1.0, 1e3, 1e9])
@pytest.mark.parametrize("metric", ["a number", "tensors"])
def test_step_is_the_reference(metric: str, alpha: float) -> None:
    parameters, anchors, importances = columns([(3, 4), (5,), ()])
    d = 0.3 if metric == "a number" else [torch.rand_like(p) + 0.1 for p in parameters]
    given_metric = copy.deepcopy(d)
    expected = [
        reference.proximal_step(p, a, f, alpha=alpha, learning_rate=0.2, metric=d if isinstance(d, float) else d[i])
        for i, (p, a, f) in enumerate(zip(parameters, anchors, importances, strict=True))
    ]
    given_others = copy.deepcopy((anchors, importances))
    proximal_step(parameters, anchors, importances, alpha=alpha, learning_rate=0.2, metric=d)
    torch.testing.assert_close(parameters, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((anchors, importances), given_others, rtol=0, atol=0)
    torch.testing.assert_close(d, given_metric, rtol=0, atol=0)


def test_step_minimises_its_objective() -> None:
    """α/2 Σ F (θ' − θ̂)² + 1/(2 lr) Σ d (θ' − θ)² has gradient 0 at θ', and is convex."""
    parameters, anchors, importances = columns([(6,)])
    metric, start = [torch.rand(6, dtype=torch.float64) + 0.1], parameters[0].clone()
    proximal_step(parameters, anchors, importances, alpha=3.0, learning_rate=0.2, metric=metric)
    theta = parameters[0].requires_grad_()
    objective = quadratic_penalty([theta], anchors, importances, 3.0)
    objective = objective + quadratic_penalty([theta], [start], metric, 1 / 0.2)
    torch.testing.assert_close(torch.autograd.grad(objective, theta)[0], torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-30, 1e-8, 1.0, 1e4, 1e30])
def test_step_is_finite_for_every_alpha(scale: float, dtype: torch.dtype) -> None:
    """It moves from θ to θ̂ as α grows, and neither further nor back."""
    importance = torch.full((4,), scale, dtype=torch.promote_types(dtype, torch.float32))
    metrics: list[float | list[Tensor]] = [1.0, 0.0, [torch.tensor([0.0, 1e-8, 1.0, 1e8], dtype=importance.dtype)]]
    for metric, learning_rate in itertools.product(metrics, [1e-8, 1e-3, 1.0, 10.0]):
        last = torch.ones(4, dtype=dtype)
        for alpha in [0.0, 5e-324, 1e-300, *(10.0**power for power in range(-12, 13))]:
            theta, anchor = torch.ones(4, dtype=dtype), torch.full((4,), -2.0, dtype=dtype)
            proximal_step([theta], [anchor], [importance], alpha=alpha, learning_rate=learning_rate, metric=metric)
            assert theta.isfinite().all()
            assert (theta <= last).all()
            assert (theta >= anchor * (1 + torch.finfo(dtype).eps)).all()
            last = theta
        if scale == 0:
            assert (last == 1).all()
        if scale == 1e30:
            assert (last == -2).all()


def test_step_is_finite_where_the_importance_is_half_precision() -> None:
    theta, anchor = torch.ones(2).half(), torch.zeros(2).half()
    proximal_step([theta], [anchor], [torch.tensor([6e4, 0.0]).half()], alpha=1e12, learning_rate=1.0)
    assert theta.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("options", [{"alpha": 0.0, "learning_rate": 0.1}, {"alpha": 1e5, "learning_rate": 0.0}])
def test_step_of_no_size_leaves_the_weights_bit_for_bit(options: dict[str, float]) -> None:
    parameters, anchors, importances = columns([(50,)], torch.float32)
    parameters[0][:5], importances[0][:5] = 0.0, 1e5  # the smallest pull would show
    before = parameters[0].clone()
    proximal_step(parameters, anchors, importances, **options)
    assert torch.equal(parameters[0], before)
    proximal_step([], [], [], alpha=1.0, learning_rate=1.0)


def test_weights_without_importance_are_left_bit_for_bit() -> None:
    parameters, anchors, importances = columns([(50,)], torch.float32)
    before, unimportant = parameters[0].clone(), importances[0] == 0
    proximal_step(parameters, anchors, importances, alpha=1e12, learning_rate=0.1)
    assert unimportant.any()
    assert torch.equal(parameters[0][unimportant], before[unimportant])


shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), max_size=5)


@settings(deadline=None)
@given(shapes=shapes, alpha=st.floats(0, 1e12), learning_rate=st.floats(0, 10), seed=st.integers(0, 99))
def test_any_list_of_shapes(shapes: list[tuple[int, ...]], alpha: float, learning_rate: float, seed: int) -> None:
    torch.manual_seed(seed)
    parameters, anchors, importances = columns(shapes)
    metric = [torch.rand_like(p) + 1e-3 for p in parameters]
    expected = [
        reference.proximal_step(p, a, f, alpha=alpha, learning_rate=learning_rate, metric=d)
        for p, a, f, d in zip(parameters, anchors, importances, metric, strict=True)
    ]
    assert quadratic_penalty(parameters, anchors, importances, alpha).item() == pytest.approx(
        reference.quadratic_penalty(parameters, anchors, importances, alpha)
    )
    proximal_step(parameters, anchors, importances, alpha=alpha, learning_rate=learning_rate, metric=metric)
    torch.testing.assert_close(parameters, expected, rtol=1e-9, atol=1e-9)


# ---- attached to an optimizer: where it comes to rest ----------------------------------------------------------------


def quadratic_problem() -> tuple[Weights, WeightPlasticity, Callable[[], Tensor], Callable[..., Tensor]]:
    """½ Σ h (θ − c)² under α/2 Σ F (θ − θ̂)²: the minimiser of eq. 8 is (h c + α F θ̂) / (h + α F)."""
    h, c, anchor, importance = torch.tensor(
        [[1.0, 2.0, 0.5], [1.0, -1.0, 2.0], [0.0, 0.0, 0.0], [0.02, 0.3, 0.0]], dtype=torch.float64
    )
    alpha = 10.0
    model = Weights(randn(3))
    held = consolidated([model.a], [anchor], [importance], alpha)

    def minimiser(factor: float = 1.0) -> Tensor:
        strength = factor * alpha * importance
        return (h * c + strength * anchor) / (h + strength)

    return model, held, lambda: (h * (model.a - c).square()).sum() / 2, minimiser


def descend(model: nn.Module, optimizer: Optimizer, loss: Callable[[], Tensor], num_steps: int) -> None:
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


@every_optimizer
def test_every_optimizer_comes_to_rest_at_the_minimiser_of_equation_8(make: MakeOptimizer) -> None:
    model, held, loss, minimiser = quadratic_problem()
    optimizer = make(model.parameters())
    held.attach(optimizer)
    descend(model, optimizer, loss, 2500 if isinstance(optimizer, Adam) else 600)
    torch.testing.assert_close(model.a.detach(), minimiser(), rtol=1e-3, atol=1e-3)
    # … and where the importance is 0, at that of the loss alone.
    assert model.a[2].item() == pytest.approx(2.0, abs=1e-3)


@every_optimizer
def test_the_minimiser_of_equation_8_is_a_fixed_point(make: MakeOptimizer) -> None:
    """Started there, with the buffers of a steady gradient, nothing moves: the derivation of d, without a transient."""
    model, held, loss, minimiser = quadratic_problem()
    with torch.no_grad():
        model.a.copy_(minimiser())
    gradient = torch.autograd.grad(loss(), model.a)[0]
    optimizer = make(model.parameters())
    loss().backward()
    optimizer.step()  # makes the buffers
    state, group = optimizer.state[model.a], optimizer.param_groups[0]
    if state.get("momentum_buffer") is not None:  # b = μ b + (1 − τ) g
        state["momentum_buffer"].copy_(gradient * (1 - group["dampening"]) / (1 - group["momentum"]))
    if "exp_avg" in state:
        state["exp_avg"].copy_(gradient)
        for moment in state.keys() & {"exp_avg_sq", "max_exp_avg_sq"}:
            state[moment].copy_(gradient.square())
        state["step"].fill_(1e6)  # the bias corrections are over
    with torch.no_grad():
        model.a.copy_(minimiser())
    held.attach(optimizer)
    descend(model, optimizer, loss, 5)
    torch.testing.assert_close(model.a.detach(), minimiser(), rtol=1e-9, atol=1e-9)


def test_with_the_metric_of_plain_sgd_momentum_would_rest_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """d = 1 instead of (1 − μ)/(1 − τ) is a protection with α (1 − μ)/(1 − τ)."""
    monkeypatch.setattr(metrics_of_optimizers, "sgd_metric", lambda group: 1.0)
    model, held, loss, minimiser = quadratic_problem()
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.8, dampening=0.2)
    held.attach(optimizer)
    descend(model, optimizer, loss, 600)
    assert (model.a - minimiser()).abs().max() > 0.1
    torch.testing.assert_close(model.a.detach(), minimiser(factor=0.2 / 0.8), rtol=1e-6, atol=1e-6)


def test_with_the_identity_adam_would_rest_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's step does not grow with the gradient, so that a pull which does wins or loses against it by chance."""
    monkeypatch.setattr(
        metrics_of_optimizers, "adam_metric", lambda _o, _g, _p, scale, _space: lambda chunks, _: [scale] * len(chunks)
    )
    model, held, loss, minimiser = quadratic_problem()
    optimizer = Adam(model.parameters(), lr=0.02)
    held.attach(optimizer)
    descend(model, optimizer, loss, 1500)
    assert (model.a - minimiser()).abs().max() > 0.1


def test_l2_weight_decay_supplies_the_lambda_of_equation_8() -> None:
    model, held, loss, _ = quadratic_problem()
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.8, weight_decay=0.4)
    held.attach(optimizer)
    descend(model, optimizer, loss, 600)
    total = loss() + 0.4 / 2 * model.a.square().sum() + held.penalty()
    torch.testing.assert_close(torch.autograd.grad(total, model.a)[0], torch.zeros(3).double(), rtol=0, atol=1e-6)


def test_attached_and_added_protection_agree_where_both_are_stable() -> None:
    model, held, loss, minimiser = quadratic_problem()
    optimizer = SGD(model.parameters(), lr=0.05)
    descend(model, optimizer, lambda: loss() + held.penalty(), 600)
    torch.testing.assert_close(model.a.detach(), minimiser(), rtol=1e-6, atol=1e-6)


# ---- attached to an optimizer: every step ----------------------------------------------------------------------------


def expected_metric(optimizer: Optimizer, group: dict[str, object], parameter: Tensor) -> Tensor | float:
    """The optimizer's preconditioner, written from the paper's formulas and the optimizer's state."""
    if isinstance(optimizer, Adam):
        state = optimizer.state[parameter]
        second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        return (second / (1 - group["betas"][1] ** state["step"].item())).sqrt() + group["eps"]
    if isinstance(optimizer, SGD):
        return (1 - group["momentum"]) / (1 - group["dampening"])
    return 1.0


@every_optimizer
@pytest.mark.parametrize("tensor_rate", [False, True], ids=["float", "tensor"])
def test_groups_and_schedules_are_those_of_a_slow_loop(make: MakeOptimizer, tensor_rate: bool) -> None:
    """Three groups with their own learning rates, one of them with a schedule, against optimizer + reference step."""
    start = [randn(4), randn(2, 3), randn(3), randn(2)]
    anchors, importances = [randn(*w.shape) for w in start], [torch.rand_like(w) for w in start]
    fast, slow = Weights(*start), Weights(*start)
    optimizers = []
    for model in (fast, slow):
        optimizer = make([model.a, model.b])
        optimizer.add_param_group({"params": [model.c], "lr": 0.005})
        optimizer.add_param_group({"params": [model.d], "lr": 0.05})  # not shared
        for group in optimizer.param_groups if tensor_rate else ():
            group["lr"] = torch.tensor(group["lr"])
        optimizers.append(optimizer)
    held = consolidated(
        [fast.c, fast.a, fast.b],
        [anchors[2], anchors[0], anchors[1]],
        [importances[2], importances[0], importances[1]],
        30.0,
    )
    held.attach(optimizers[0])
    schedules = [] if tensor_rate else [CosineAnnealingLR(optimizer, 8) for optimizer in optimizers]
    for step in range(6):
        for model, optimizer in zip((fast, slow), optimizers, strict=True):
            optimizer.zero_grad()
            loss = sum((w - 1).square().sum() * (w.sum() / 9).cos() for w in model.parameters())
            (0.3**step * loss).backward()  # so that AMSGrad's largest moment is not its last
            optimizer.step()
        with torch.no_grad():
            for group in optimizers[1].param_groups:
                for weight in group["params"]:
                    i = next(i for i, w in enumerate(slow.parameters()) if w is weight)
                    if i < 3:
                        stepped = reference.proximal_step(
                            weight,
                            anchors[i],
                            importances[i],
                            alpha=30.0,
                            learning_rate=float(group["lr"]),
                            metric=expected_metric(optimizers[1], group, weight),
                        )
                        weight.copy_(stepped)
        for schedule in schedules:
            schedule.step()
        for found, expected in zip(fast.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6 if tensor_rate else 1e-12, atol=1e-12)
    assert not torch.equal(fast.a, start[0])


def test_alpha_may_change_between_steps() -> None:
    model = Weights(torch.ones(1))
    held = consolidated([model.a], [torch.zeros(1)], [torch.ones(1)], 1.0)
    optimizer = SGD(model.parameters(), lr=1.0)
    held.attach(optimizer)
    for alpha, expected in ((1.0, 1 / 2), (3.0, 1 / 8), (0.0, 1 / 8), (1.0, 1 / 16)):
        held.alpha = alpha
        model.a.grad = torch.zeros(1)
        optimizer.step()
        assert model.a.item() == expected
    held.alpha = 0.0
    held.load_state_dict(held.state_dict() | {"anchors": [torch.ones(1)]})
    with torch.no_grad():
        model.a.fill_(0.0)  # where the smallest pull would show
    optimizer.step()
    assert model.a.item() == 0


def test_a_constant_metric_is_not_computed_anew_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is then one pass over the weights, whatever the number of groups."""
    computed = []
    compute = blocks._shares
    monkeypatch.setattr(blocks, "_shares", lambda *arguments: computed.append(1) or compute(*arguments))
    model = Weights(torch.ones(1), torch.ones(1))
    held = consolidated(list(model.parameters()), [torch.zeros(1)] * 2, [torch.ones(1)] * 2, 1.0)
    held.attach(optimizer := SGD([{"params": [model.a]}, {"params": [model.b], "lr": 3.0}], lr=1.0))

    def step() -> int:
        computed.clear()
        model.a.grad, model.b.grad = torch.zeros(1), torch.zeros(1)
        optimizer.step()
        return len(computed)

    assert [step(), step(), step()] == [2, 0, 0]
    optimizer.param_groups[1]["lr"] = 2.0
    assert [step(), step()] == [1, 0]
    held.consolidate(model, importance_of(model, 1.0))
    assert [step(), step()] == [2, 0]
    model.a.grad = None
    optimizer.step()


def mlp(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 3))


def train(model: nn.Module, optimizer: Optimizer, num_steps: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(num_steps):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x.to(dtype)), x[:, :3].argmax(1)).backward()
        optimizer.step()


def copies_of(model: nn.Module, number: int) -> list[nn.Module]:
    return [copy.deepcopy(model) for _ in range(number)]


def same_weights(left: nn.Module, right: nn.Module) -> bool:
    return all(map(torch.equal, left.parameters(), right.parameters()))


PLAIN_OPTIMIZERS = {**OPTIMIZERS, "AdamW, weight decay": lambda p: AdamW(p, lr=0.02, weight_decay=0.1)}


@pytest.mark.parametrize("make", PLAIN_OPTIMIZERS.values(), ids=PLAIN_OPTIMIZERS.keys())
@pytest.mark.parametrize("reason", ["alpha 0", "importance 0", "nothing shared", "nothing held", "detached"])
def test_no_protection_is_plain_training_bit_for_bit(reason: str, make: MakeOptimizer) -> None:
    plain, protected = copies_of(mlp(), 2)
    shared = [] if reason == "nothing shared" else protected.parameters()
    held = WeightPlasticity(shared, 0.0 if reason == "alpha 0" else 1e5)
    optimizers = make(plain.parameters()), make(protected.parameters())
    held.attach(optimizers[1])
    if reason != "nothing held":
        held.consolidate(protected, importance_of(protected, 0.0 if reason == "importance 0" else 1.0))
    if reason == "detached":
        held.detach()
    for model, optimizer in zip((plain, protected), optimizers, strict=True):
        train(model, optimizer, 5)
    assert same_weights(plain, protected)
    if reason in {"alpha 0", "importance 0", "nothing shared", "nothing held"}:
        assert held.penalty() == 0


@every_optimizer
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_training_is_finite_for_every_alpha(dtype: torch.dtype, make: MakeOptimizer) -> None:
    start = mlp().to(dtype)
    importances = importance_of(start)
    for i, value in enumerate(importances.values()):
        value.flatten()[::2] *= (0.0, 1e-20, 1e4, 1e4, 1e4, 1e4)[i]
    if dtype is not torch.float16:
        importances["2.weight"][0] = 1e30
    for alpha in (1e-12, 1.0, 1e5, 1e12):
        model = copy.deepcopy(start)
        optimizer = make(model.parameters())
        if dtype is torch.float16 and isinstance(optimizer, Adam):
            optimizer.param_groups[0]["eps"] = 1e-4  # Adam's own step needs it in this type
        held = WeightPlasticity(model.parameters(), alpha).attach(optimizer)
        held.consolidate(model, importances)
        train(model, optimizer, 8)
        assert all(weight.isfinite().all() for weight in model.parameters())
        if dtype is not torch.float16 and alpha >= 1:
            assert torch.equal(model[2].weight[0], start[2].weight[0])


def test_a_step_that_a_gradient_scaler_skipped_keeps_the_weights_finite() -> None:
    """The fused Adam then leaves its step count and moments at 0."""
    model = Weights(torch.ones(2))
    optimizer = Adam(model.parameters(), lr=0.1, eps=0.0)
    held = consolidated([model.a], [torch.zeros(2)], [torch.tensor([1.0, 0.0])], 1.0).attach(optimizer)
    optimizer.state[model.a] = {"step": torch.zeros(()), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    model.a.grad = torch.zeros(2)
    held._after_step(optimizer, (), {})
    assert model.a.isfinite().all()


def test_protection_holds_where_the_gradient_of_the_penalty_would_diverge() -> None:
    """lr · α · F far above 2: the added loss turns weights into NaN, the step does not."""
    start = mlp()
    flat_start = nn.utils.parameters_to_vector(start.parameters())
    importances = importance_of(start, 1.0)
    moved = {}
    for form in ("added", "attached"):
        model = copy.deepcopy(start)
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        held = WeightPlasticity(model.parameters(), 1e4)
        held.consolidate(model, importances)
        if form == "attached":
            held.attach(optimizer)
        for _ in range(30):
            optimizer.zero_grad()
            x = torch.randn(16, 6)
            loss = F.cross_entropy(model(x), x[:, :3].argmax(1))
            (loss + held.penalty() if form == "added" else loss).backward()
            optimizer.step()
        moved[form] = (nn.utils.parameters_to_vector(model.parameters()) - flat_start).abs()
    assert not moved["added"].isfinite().all()
    assert moved["attached"].max() < 1e-2


def test_weights_without_a_gradient_are_left_alone() -> None:
    model = Weights(torch.ones(2), torch.ones(2))
    held = consolidated(list(model.parameters()), [torch.zeros(2)] * 2, [torch.ones(2)] * 2, 1e5)
    optimizer = SGD(model.parameters(), lr=0.1)
    held.attach(optimizer)
    model.a.grad = torch.zeros(2)
    optimizer.step()
    assert model.a.abs().max() < 1e-3
    assert torch.equal(model.b, torch.ones(2))


def test_private_weights_move_freely() -> None:
    shared = nn.Linear(6, 6)
    model, plain = copies_of(nn.Sequential(shared, nn.Tanh(), nn.Linear(6, 3)), 2)
    held = WeightPlasticity(model[0].parameters(), 1e12)
    held.consolidate(model, importance_of(model, 1.0))
    held.attach(optimizer := SGD(model.parameters(), lr=0.1))
    before = copy.deepcopy(model)
    train(model, optimizer, 1)
    train(plain, SGD(plain.parameters(), lr=0.1), 1)
    assert same_weights(model[0], before[0])
    assert same_weights(model[2], plain[2])


# ---- attach and detach -----------------------------------------------------------------------------------------------


def test_another_optimizer_falls_back_to_the_identity_and_says_so_once() -> None:
    model = Weights(torch.ones(1))
    held = consolidated([model.a], [torch.zeros(1)], [torch.ones(1)], 10.0)

    class Unknown(Optimizer):
        def step(self, closure=None):
            pass

    optimizer = Unknown(model.parameters(), {"lr": 0.1})
    with pytest.warns(UserWarning, match="does not know the metric of Unknown") as caught:
        held.attach(optimizer)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for expected in (1 / 2, 1 / 4):  # s = lr α F = 1
            model.a.grad = torch.zeros(1)
            optimizer.step()
            assert model.a.item() == expected


def test_several_optimizers_are_attached_and_detached_by_themselves() -> None:
    model = Weights(torch.ones(1), torch.ones(1))
    held = consolidated(list(model.parameters()), [torch.zeros(1)] * 2, [torch.ones(1)] * 2, 1.0)
    first, second = SGD([model.a], lr=1.0), SGD([model.b], lr=3.0)

    def step() -> tuple[float, float]:
        for optimizer, weight in ((first, model.a), (second, model.b)):
            weight.grad = torch.zeros(1)
            with torch.no_grad():
                weight.fill_(1.0)
            optimizer.step()
        return model.a.item(), model.b.item()

    assert held.attach(first) is held
    held.attach(second)
    assert step() == (1 / 2, 1 / 4)
    held.detach(first)
    assert step() == (1.0, 1 / 4)
    held.attach(first)
    assert step() == (1 / 2, 1 / 4)
    held.detach()
    assert step() == (1.0, 1.0)
    held.detach(first)  # nothing happens
    held.attach(first)
    with pytest.raises(ValueError, match="Expected an optimizer that is not attached yet"):
        held.attach(first)
    assert step() == (1 / 2, 1.0)


def test_an_optimizer_is_not_kept_alive() -> None:
    model = Weights(torch.ones(1))
    held = WeightPlasticity(model.parameters())
    for _ in range(5):
        held.attach(SGD(model.parameters(), lr=0.1))
    gc.collect()
    held.attach(optimizer := SGD(model.parameters(), lr=0.1))
    assert list(held._following) == [optimizer]


def test_an_optimizer_of_other_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected an optimizer of some of the shared parameters"):
        WeightPlasticity(mlp().parameters()).attach(SGD(mlp().parameters(), lr=0.1))


# ---- consolidate -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parameters", "named_parameters", "list", "with duplicates"])
def test_shared_weights_are_found_by_identity_under_any_name(form: str) -> None:
    shared, other = nn.Linear(6, 6), nn.Linear(6, 6)
    given = {
        "parameters": shared.parameters(),
        "named_parameters": shared.named_parameters(),
        "list": [shared.weight, shared.bias],
        "with duplicates": [shared.weight, shared.bias, shared.weight],
    }[form]
    first = nn.Sequential(shared, nn.Tanh(), nn.Linear(6, 3))
    second = nn.Sequential(other, nn.Tanh(), shared, nn.Tanh(), nn.Linear(6, 3))
    held = WeightPlasticity(given, rule="sum")
    assert held.shared_parameters == (shared.weight, shared.bias)
    assert held.anchor(shared.weight) is None
    assert held.importance(shared.weight) is None
    held.consolidate(first, importance_of(first, 1.0))
    held.consolidate(second, importance_of(second, 2.0))
    assert (held.importance(shared.weight) == 3).all()
    assert torch.equal(held.anchor(shared.bias), shared.bias)
    assert str(held) == "WeightPlasticity(alpha=1, rule='sum', 2 of 2 shared parameters held)"


def test_tied_weights_are_found_under_each_of_their_names() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    for name in ("0.weight", "1.weight"):
        held = WeightPlasticity([model[0].weight])
        held.consolidate(model, {name: torch.ones(4, 4)})
        assert held.importance(model[0].weight) is not None


def test_weights_that_a_model_does_not_use_keep_anchor_and_importance() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    held = WeightPlasticity([*first.parameters(), *second.parameters()])
    held.consolidate(first, importance_of(first, 1.0))
    anchor = held.anchor(first.weight).clone()
    with torch.no_grad():
        first.weight.add_(1.0)
    assert held.anchor(second.weight) is None
    held.consolidate(second, importance_of(second, 5.0))
    assert torch.equal(held.anchor(first.weight), anchor)
    assert (held.importance(first.weight) == 1).all()
    held.consolidate(first, {"bias": torch.ones(2)})  # importance names one weight only
    assert torch.equal(held.anchor(first.weight), anchor)
    assert (held.importance(first.bias) == 2).all()


def test_anchor_and_importance_are_copies() -> None:
    model = Weights(torch.ones(2))
    importance = importance_of(model, 1.0)
    held = WeightPlasticity(model.parameters())
    held.consolidate(model, importance)
    importance["a"].fill_(9.0)
    with torch.no_grad():
        model.a.fill_(9.0)
    assert (held.anchor(model.a) == 1).all()
    assert (held.importance(model.a) == 1).all()
    assert not held.anchor(model.a).requires_grad


@pytest.mark.parametrize("alpha", [1.0, 1e6])
@pytest.mark.parametrize("rule", ["replace", "sum", "joint", "ema", "merge"])
def test_rules_are_their_recursions(rule: str, alpha: float) -> None:
    """α is not folded in, and importance depends on the models' own importances alone, not on how often it was used."""
    model = Weights(randn(6))
    held = WeightPlasticity(model.parameters(), alpha, rule=rule, decay=0.7)
    importance, anchor = [0.0] * 6, [0.0] * 6
    for j in range(5):
        # Model j does not need weight j, and no model needs the last one.
        new, theta = torch.rand(6).double() * (torch.arange(6) != j) * (torch.arange(6) != 5), randn(6)
        with torch.no_grad():
            model.a.copy_(theta)
        held.consolidate(model, {"a": new}, where={})
        held.penalty(), held.state_dict(), held.attach(SGD(model.parameters(), lr=0.1)).detach()
        for i, (f, y) in enumerate(zip(new.tolist(), theta.tolist(), strict=True)):
            old, x = importance[i], anchor[i]
            importance[i], anchor[i] = f, y
            if j and rule == "sum":
                importance[i] = old + f
            elif j and rule == "ema":
                importance[i] = 0.7 * old + 0.3 * f
            elif j and rule in {"joint", "merge"} and old + f:
                kept = old if rule == "joint" else 0.7 * old
                importance[i] = kept + f
                anchor[i] = (kept * x + f * y) / importance[i]
        assert held.importance(model.a).tolist() == pytest.approx(importance, rel=1e-12)
        assert held.anchor(model.a).tolist() == pytest.approx(anchor, rel=1e-12)
        if rule != "joint":
            assert torch.equal(held.anchor(model.a), model.a)
        if rule != "merge":
            assert torch.equal(model.a, theta)


def test_joint_is_one_quadratic_per_model_up_to_a_constant() -> None:
    model = Weights(randn(6))
    held = WeightPlasticity(model.parameters(), alpha=3.0, rule="joint")
    centres, importances, starts = [], [], randn(5, 6)
    for theta in starts:
        with torch.no_grad():
            model.a.copy_(theta)
        importances.append(torch.rand(6).double() * (torch.rand(6) > 0.3))
        held.consolidate(model, {"a": importances[-1]})
        centres.append(theta.clone())
    differences = []
    for theta in randn(4, 6):
        with torch.no_grad():
            model.a.copy_(theta)
        every = sum(
            reference.quadratic_penalty([theta], [c], [f], 3.0) for c, f in zip(centres, importances, strict=True)
        )
        differences.append(every - held.penalty().item())
    assert differences == pytest.approx([differences[0]] * 4, rel=1e-12)
    assert differences[0] > 0


@pytest.mark.parametrize(
    ("rule", "limit"), [("replace", 1.0), ("ema", 1.0), ("merge", 1 / (1 - 0.9)), ("sum", 200.0), ("joint", 200.0)]
)
def test_repeated_consolidations_do_not_compound_beyond_the_rule(rule: str, limit: float) -> None:
    model = Weights(torch.ones(3))
    held = WeightPlasticity(model.parameters(), alpha=60.0, rule=rule, decay=0.9)
    held.attach(optimizer := SGD(model.parameters(), lr=0.1))
    for _ in range(200):
        held.consolidate(model, {"a": torch.ones(3)})
        model.a.grad = torch.ones(3)
        optimizer.step()
    torch.testing.assert_close(held.importance(model.a), torch.full((3,), limit), rtol=1e-4, atol=0)


def diagonal_regression(num_examples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs with orthogonal columns and targets: ½ |X w − y|² has the diagonal Hessian D, and its minimiser w."""
    x = torch.linalg.qr(randn(num_examples, 4))[0] * torch.tensor([1.0, 2.0, 0.5, 3.0]).double()
    y = randn(num_examples)
    return x.square().sum(0), torch.linalg.lstsq(x, y.unsqueeze(1)).solution.squeeze(1), x.T @ y


def test_merge_of_linear_gaussian_models_is_the_joint_optimum() -> None:
    """Where the diagonal Laplace approximation is exact, the recursion of the posterior is exact too (γ = 1)."""
    tasks = [diagonal_regression(n) for n in (6, 20, 11)]
    model = Weights(torch.zeros(4).double())
    held = WeightPlasticity(model.parameters(), rule="merge", decay=1.0)
    for hessian, optimum, _ in tasks:
        with torch.no_grad():
            model.a.copy_(optimum)
        held.consolidate(model, {"a": hessian})
    joint = sum(right for _, _, right in tasks) / sum(hessian for hessian, _, _ in tasks)
    torch.testing.assert_close(model.a.detach(), joint, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(held.importance(model.a), sum(hessian for hessian, _, _ in tasks))


def test_protected_training_of_linear_gaussian_models_ends_at_the_joint_optimum() -> None:
    """The rule `sum` in turn: each model trained under the penalty of those before, α = 1."""
    tasks = [diagonal_regression(n) for n in (6, 20, 11)]
    model = Weights(torch.zeros(4).double())
    held = WeightPlasticity(model.parameters(), alpha=1.0, rule="sum")
    for hessian, optimum, _ in tasks:
        optimizer = SGD(model.parameters(), lr=0.02, momentum=0.8)
        held.attach(optimizer)
        descend(model, optimizer, lambda h=hessian, w=optimum: (h * (model.a - w).square()).sum() / 2, 600)
        held.detach(optimizer)
        held.consolidate(model, {"a": hessian})
    joint = sum(right for _, _, right in tasks) / sum(hessian for hessian, _, _ in tasks)
    torch.testing.assert_close(model.a.detach(), joint, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_damping_adds_a_share_of_the_mean_over_the_models_shared_weights(dtype: torch.dtype) -> None:
    model = Weights(torch.zeros(3).to(dtype), torch.zeros(1).to(dtype), torch.zeros(5).to(dtype))
    held = WeightPlasticity([model.a, model.b], damping=1e-3)
    importance = {"a": [0.0, 2.0, 0.0], "b": [6.0], "c": [100.0] * 5}  # c is not shared; the mean is 8 / 4
    held.consolidate(model, {name: torch.tensor(values).to(dtype) for name, values in importance.items()})
    assert held.importance(model.a).tolist() == pytest.approx([0.002, 2.002, 0.002])
    assert held.importance(model.b).tolist() == pytest.approx([6.002])
    held.consolidate(model, {"b": torch.tensor([1.0]).to(dtype)})
    assert held.importance(model.b).tolist() == pytest.approx([6.002 + 1.001])


def test_importance_beyond_the_range_of_the_weights_type_stays_finite() -> None:
    model = Weights(torch.ones(2))
    held = WeightPlasticity(model.parameters(), 1e12, rule="sum").attach(optimizer := SGD(model.parameters(), lr=1.0))
    for _ in range(3):
        held.consolidate(model, {"a": torch.tensor([1e300, 3e38], dtype=torch.float64)})
    model.a.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(model.a, torch.ones(2))


def tensors_alive() -> tuple[int, int]:
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in {Tensor, nn.Parameter}]
    return len(tensors), sum(tensor.nelement() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize(
    ("rule", "optimizer"), [("replace", "SGD"), ("sum", "Adam"), ("ema", "SGD, momentum"), ("merge", "AMSGrad")]
)
def test_a_hundred_models_take_the_memory_of_one(rule: str, optimizer: str) -> None:
    make, model = OPTIMIZERS[optimizer], mlp()
    held = WeightPlasticity(model.parameters(), rule=rule)
    importances = importance_of(model)
    alive = []
    for num_models in range(1, 101):
        held.attach(optimizer := make(model.parameters()))
        held.consolidate(model, importances)
        if num_models in {1, 100}:
            train(model, optimizer, 2)
            alive.append(tensors_alive())
        held.detach(optimizer)
        del optimizer
    assert alive[0] == alive[1]


def test_reset_forgets_everything() -> None:
    model = mlp()
    held = WeightPlasticity(model.parameters())
    held.consolidate(model, importance_of(model))
    held.reset()
    assert all(held.anchor(weight) is None and held.importance(weight) is None for weight in model.parameters())
    assert held.penalty() == 0


# ---- refusals --------------------------------------------------------------------------------------------------------


def bad_importances() -> dict[str, tuple[dict[str, Tensor], str]]:
    good = importance_of(mlp(), 1.0)
    bad = {
        "unknown name": ({"7.weight": torch.ones(1)}, r"by the parameter names of the model, but got '7.weight'"),
        "shape": ({"4.bias": torch.ones(4)}, r"importance of '4.bias' in the weight's shape \(3,\), but got \(4,\)"),
        "negative": ({"4.bias": -torch.ones(3)}, r"importance of '4.bias' to be at least 0, but got -1"),
        "inf": ({"4.bias": torch.full((3,), math.inf)}, r"Expected finite importance of '4.bias'"),
        "nan": ({"4.bias": torch.full((3,), math.nan)}, r"Expected finite importance of '4.bias'"),
        "device": ({"4.bias": torch.ones(3, device="meta")}, r"importance of '4.bias' on cpu, but got meta"),
    }
    nothing = ({}, r"Expected importance of some of the shared parameters, but got it of none")
    return {what: (good | change, message) for what, (change, message) in bad.items()} | {"nothing": nothing}


@pytest.mark.parametrize("what", bad_importances())
def test_bad_importance_is_refused_and_nothing_is_changed(what: str) -> None:
    importances, message = bad_importances()[what]
    model = mlp()
    held = WeightPlasticity(model.parameters(), rule="sum")
    held.consolidate(model, importance_of(model, 1.0))
    before = held.state_dict()
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(ValueError, match=message):
        held.consolidate(model, importances)
    assert same_state(held.state_dict(), before)


def test_a_copy_of_the_model_is_refused() -> None:
    model = mlp()
    held = WeightPlasticity(model.parameters())
    twin = copy.deepcopy(model)
    with pytest.raises(ValueError, match="matched by identity: pass the model itself, not a copy"):
        held.consolidate(twin, importance_of(twin))


@pytest.mark.parametrize("use", ["consolidate", "penalty", "step"])
def test_an_anchor_unlike_its_weight_is_refused(use: str) -> None:
    """A model that was moved to another type (or device) without its plasticity."""
    model = mlp()
    held = WeightPlasticity(model.parameters())
    held.consolidate(model, importance_of(model, 1.0))
    before = held.state_dict()
    held.attach(optimizer := SGD(model.parameters(), lr=0.1))
    model.double()
    actions: dict[str, Callable[[], object]] = {
        "consolidate": lambda: held.consolidate(model, importance_of(model, 1.0)),
        "penalty": held.penalty,
        "step": lambda: train(model, optimizer, 1),
    }
    with pytest.raises(ValueError, match=r"like its weight \(torch.float64 on cpu\), but got torch.float32 on cpu"):
        actions[use]()
    assert same_state(held.state_dict(), before)
    held.to(dtype=torch.float64)
    actions[use]()


def test_alpha_is_the_posteriors_own_unless_it_is_given() -> None:
    assert WeightPlasticity([]).alpha == WeightPlasticity([], None).alpha == 1
    assert WeightPlasticity([], 3).alpha == 3
    assert WeightPlasticity([], tolerance=0.1).alpha == 0  # the multiplier of a constraint that nothing exceeds


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected rule to be one of .* but got 'summ'. Did you mean 'sum'\?"):
        WeightPlasticity([], rule="summ")
    for decay in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"Expected decay in \[0, 1\], but got {decay}"):
            WeightPlasticity([], decay=decay)
    for damping in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"Expected damping to be finite and at least 0, but got {damping}"):
            WeightPlasticity([], damping=damping)
    with pytest.raises(TypeError, match=r"Expected shared parameters to be modules, tensors .* but got int"):
        WeightPlasticity([nn.Linear(1, 1), 3])
    with pytest.raises(TypeError, match="but got str"):
        WeightPlasticity(mlp().state_dict())


# ---- state -----------------------------------------------------------------------------------------------------------


def through_a_file(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_optimizer
def test_training_goes_on_bit_for_bit_after_saving_and_loading(make: MakeOptimizer) -> None:
    model = mlp()
    optimizer = make(model.parameters())
    held = WeightPlasticity(model[:3].parameters(), 50.0, rule="ema", decay=0.6, damping=0.1).attach(optimizer)
    held.consolidate(model, importance_of(model))
    train(model, optimizer, 4, seed=1)
    held.consolidate(model, importance_of(model))
    train(model, optimizer, 3, seed=2)
    state = through_a_file(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "plasticity": held.state_dict()}
    )
    importances = importance_of(model)
    train(model, optimizer, 3, seed=3)
    held.consolidate(model, importances)
    train(model, optimizer, 3, seed=4)

    resumed = mlp()
    resumed.load_state_dict(state["model"])
    resumed_optimizer = make(resumed.parameters())
    resumed_optimizer.load_state_dict(state["optimizer"])
    resumed_held = WeightPlasticity(resumed[:3].parameters()).attach(resumed_optimizer)
    resumed_held.load_state_dict(state["plasticity"])
    assert (resumed_held.alpha, resumed_held.rule, resumed_held.decay, resumed_held.damping) == (50.0, "ema", 0.6, 0.1)
    train(resumed, resumed_optimizer, 3, seed=3)
    resumed_held.consolidate(resumed, importances)
    train(resumed, resumed_optimizer, 3, seed=4)
    assert same_weights(model, resumed)
    assert same_state(held.state_dict(), resumed_held.state_dict())


def test_a_state_is_a_copy_on_the_way_out_and_in() -> None:
    model = Weights(torch.ones(2), torch.ones(2))
    held = WeightPlasticity(model.parameters())
    held.consolidate(model, {"a": torch.ones(2)})
    state = held.state_dict()
    assert state["anchors"][1] is None
    state["anchors"][0].fill_(5.0)
    assert (held.anchor(model.a) == 1).all()
    held.load_state_dict(state)
    state["anchors"][0].fill_(6.0)
    assert (held.anchor(model.a) == 5).all()
    assert held.anchor(model.b) is None


def test_a_loaded_state_takes_effect_on_an_attached_optimizer() -> None:
    model = Weights(torch.ones(1))
    held = consolidated([model.a], [torch.zeros(1)], [torch.ones(1)], 1.0)
    held.attach(optimizer := SGD(model.parameters(), lr=1.0))
    stronger = held.state_dict() | {"importances": [torch.full((1,), 3.0)]}
    for expected in (1 / 2, 1 / 8):
        model.a.grad = torch.zeros(1)
        optimizer.step()
        assert model.a.item() == expected
        held.load_state_dict(stronger)


def bad_states() -> dict[str, tuple[dict[str, object], str]]:
    one = torch.ones(2)
    return {
        "missing key": ({"alpha": 1.0, "rule": "sum", "anchors": []}, r"one without damping, decay, importances"),
        "number": (
            {"anchors": [one], "importances": [one]},
            r"state of 2 shared parameters, but got 1 anchors",
        ),
        "shape": ({"anchors": [one, torch.ones(3)]}, r"Expected anchor 1 of shape \(2,\), but got \(3,\)"),
        "shape of importance": ({"importances": [torch.ones(3), one]}, r"Expected importance 0 of shape \(2,\)"),
        "half": ({"importances": [one, None]}, r"anchor and importance 1 to be held together"),
        "nan": ({"anchors": [one * math.nan, one]}, r"Expected finite anchor 0"),
        "infinite": ({"importances": [one, one * math.inf]}, r"Expected finite importance 1"),
        "negative": ({"importances": [one, -one]}, r"Expected importance 1 to be at least 0"),
        "alpha": ({"alpha": -1.0}, r"Expected alpha to be finite and at least 0"),
        "rule": ({"rule": "max"}, r"Expected rule to be one of"),
        "decay": ({"decay": 2.0}, r"Expected decay in \[0, 1\]"),
        "damping": ({"damping": -1.0}, r"Expected damping to be finite and at least 0"),
    }


@pytest.mark.parametrize("what", bad_states())
def test_a_bad_state_is_refused_and_nothing_is_changed(what: str) -> None:
    change, message = bad_states()[what]
    model = Weights(torch.zeros(2), torch.zeros(2))
    held = consolidated(list(model.parameters()), [torch.ones(2)] * 2, [torch.ones(2)] * 2, 3.0)
    before = held.state_dict()
    with pytest.raises(ValueError, match=message):
        held.load_state_dict(change if what == "missing key" else before | change)
    assert same_state(held.state_dict(), before)


def test_to_changes_the_type_and_keeps_importance_at_least_float32() -> None:
    model = Weights(torch.ones(2), torch.ones(2))
    held = WeightPlasticity(model.parameters(), 1.0)
    held.consolidate(model, {"a": torch.full((2,), 1e-20)})
    model.bfloat16()
    assert held.to(dtype=torch.bfloat16) is held
    assert (held.anchor(model.a).dtype, held.importance(model.a).dtype) == (torch.bfloat16, torch.float32)
    assert (held.importance(model.a) > 0).all()
    assert held.to("cpu").anchor(model.a).dtype is torch.bfloat16
    assert held.anchor(model.b) is None
    held.attach(optimizer := SGD(model.parameters(), lr=1.0))
    model.a.grad = torch.zeros_like(model.a)
    optimizer.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_optimizer
def test_the_device_does_not_matter(make: MakeOptimizer) -> None:
    host, device = copies_of(mlp().double(), 2)
    importances = importance_of(host)
    held = [WeightPlasticity(model[:3].parameters(), 50.0) for model in (host, device)]
    for model, plasticity_ in zip((host, device), held, strict=True):
        plasticity_.consolidate(model, importances)
    device.cuda()
    held[1].to("cuda")
    for model, plasticity_ in zip((host, device), held, strict=True):
        plasticity_.attach(optimizer := make(model.parameters()))
        for _ in range(5):
            optimizer.zero_grad()
            sum((weight - 1).square().sum() for weight in model.parameters()).backward()
            optimizer.step()
    for left, right in zip(host.parameters(), device.parameters(), strict=True):
        torch.testing.assert_close(left, right.cpu())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deep", "pickle"]
)
def test_a_copy_of_model_and_plasticity_belongs_together(copied) -> None:
    model = mlp()
    held = WeightPlasticity(model.parameters(), 7.0, rule="ema", decay=0.3, damping=0.1)
    held.attach(SGD(model.parameters(), lr=0.1))
    held.consolidate(model, importance_of(model))
    twin, twin_held = copied((model, held))
    assert twin_held.shared_parameters[0] is twin[0].weight
    assert twin_held.anchor(twin[0].weight) is not held.anchor(model[0].weight)
    assert same_state(twin_held.state_dict(), held.state_dict())
    before = copy.deepcopy(model)
    train(twin, SGD(twin.parameters(), lr=0.1), 1)  # attached to nothing
    assert same_weights(model, before)
    assert twin_held.penalty() > 0
    assert held.penalty() == 0


def test_penalty_of_the_object_is_that_of_the_function() -> None:
    model = mlp()
    held = WeightPlasticity(model[:3].parameters(), 7.0)
    assert held.penalty() == 0
    held.consolidate(model, importance_of(model))
    train(model, SGD(model.parameters(), lr=0.5), 3)
    parts = [(w, held.anchor(w), held.importance(w)) for w in held.shared_parameters]
    assert held.penalty().item() == pytest.approx(reference.quadratic_penalty(*zip(*parts, strict=True), 7.0), rel=1e-5)
    held.penalty().backward()
    assert all(weight.grad is not None for weight in model[:3].parameters())


# ---- end to end ------------------------------------------------------------------------------------------------------


def test_protected_digits_are_forgotten_much_less() -> None:
    """Two classifiers of real digits whose hidden layers are crossed: B's training ruins A, and WPL prevents it."""
    pixels, numbers = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(numbers)
    train_x, train_y, test_x, test_y = x[:1200], y[:1200], x[1200:], y[1200:]
    width = 48

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return (model(test_x).argmax(1) == test_y).double().mean().item()

    def fit(model: nn.Module, optimizer: Optimizer, num_steps: int) -> None:
        generator = torch.Generator().manual_seed(1)
        for _ in range(num_steps):
            rows = torch.randint(1200, (64,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(model(train_x[rows]), train_y[rows]).backward()
            optimizer.step()

    forgetting, accuracy_b = {}, {}
    for protected in (False, True):
        torch.manual_seed(0)
        hidden = [nn.Linear(width, width) for _ in range(3)]
        enter, leave = [nn.Linear(64, width) for _ in range(2)], [nn.Linear(width, 10) for _ in range(2)]
        orders = ((0, 1, 2), (2, 0, 1))
        a, b = (
            nn.Sequential(enter[m], nn.ReLU(), *(part for i in orders[m] for part in (hidden[i], nn.ReLU())), leave[m])
            for m in range(2)
        )
        fit(a, SGD(a.parameters(), lr=0.1, momentum=0.9), 300)
        before = accuracy(a)
        held = WeightPlasticity([p for layer in hidden for p in layer.parameters()], alpha=1e5)
        optimizer = SGD(b.parameters(), lr=0.1, momentum=0.9)
        if protected:
            held.consolidate(a, diagonal_fisher(a, [(train_x, train_y)], F.cross_entropy, "monte_carlo"))
            held.attach(optimizer)
        fit(b, optimizer, 300)
        forgetting[protected], accuracy_b[protected] = before - accuracy(a), accuracy(b)
    assert forgetting[False] > 0.1
    assert forgetting[True] < 0.2 * forgetting[False]
    assert accuracy_b[True] > accuracy_b[False] - 0.05


@pytest.mark.parametrize("importance", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("strength", [1e-37, 1e-33, 1e-10, 1.0, 1e10, 1e33, 1e37])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_pull_is_exact_for_every_strength_that_float32_holds(name, strength, importance):
    """lr·α far below 1 or above it, against s/(1 + s) in float64."""
    theta = torch.nn.Parameter(torch.ones(2))
    model = torch.nn.Module()
    model.register_parameter("theta", theta)
    rate = 1e-3
    optimizer = (torch.optim.SGD if name == "sgd" else torch.optim.Adam)([theta], rate)
    plasticity = WeightPlasticity([theta], alpha=strength / rate)
    with torch.no_grad():
        theta.zero_()
    plasticity.consolidate(model, {"theta": torch.full((2,), importance)})
    with torch.no_grad():
        theta.fill_(1.0)
    plasticity.attach(optimizer)
    theta.grad = torch.full((2,), 1e-20) if name == "sgd" else torch.ones(2)
    optimizer.step()
    stepped, metric = (1.0, 1.0) if name == "sgd" else (1.0 - rate, 1.0 + 1e-8)
    s = strength * importance / metric
    assert theta[0].item() == pytest.approx(stepped / (1 + s), rel=1e-5, abs=1e-7)


def test_a_penalty_beyond_float32_is_infinite_or_nothing_but_never_nan():
    theta = torch.tensor([2.0], requires_grad=True)
    for importance, expected in ((0.0, 0.0), (1.0, math.inf)):
        penalty = quadratic_penalty([theta], [torch.ones(1)], [torch.tensor([importance])], alpha=1e308)
        assert penalty.item() == pytest.approx(expected) or penalty.item() > 1e38
        assert not torch.isnan(torch.autograd.grad(penalty, theta)[0]).any()
