"""A tolerance in place of alpha: the projection, the multiplier at rest, measured losses, state."""

import copy
import io
import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from configs import two_model_config
from forgetless import WeightPlasticity, diagonal_fisher, reference
from forgetless.errors import InputError
from forgetless.plasticity import budget as budget_module
from forgetless.plasticity import expected_increase, tolerance_step

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.02),
    "SGD, momentum": lambda p: SGD(p, lr=0.01, momentum=0.8, dampening=0.2),
    "Adam": lambda p: Adam(p, lr=0.005),
    "AdamW": lambda p: AdamW(p, lr=0.005, weight_decay=0.0),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def rows(seed: int, size: int = 6) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """θ, θ̂, F (one of them 0) and m."""
    generator = torch.Generator().manual_seed(seed)
    theta, anchor = torch.randn(2, size, dtype=torch.float64, generator=generator)
    importance, metric = torch.randn(2, size, dtype=torch.float64, generator=generator).exp()
    return theta, anchor, importance.where(torch.arange(size) != 2, 0.0), metric


def tensors(*columns: Tensor) -> list[list[Tensor]]:
    """The same numbers as two weights of other shapes."""
    return [[column[:4].clone().view(2, 2), column[4:].clone()] for column in columns]


def flat(parts: Iterable[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


# ---- the projection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [1e-6, 1e-3, 0.1, 1.0, 1e3])
@pytest.mark.parametrize("first", [0.0, 1e-3, 1.0, 1e6])
def test_the_projection_is_the_reference(level: float, first: float) -> None:
    for seed in range(4):
        columns = rows(seed)
        expected, multiplier = reference.projection(*(column.tolist() for column in columns), level)
        parameters, anchors, importances, metrics = tensors(*columns)
        share = 1 - 1e-10
        alpha = tolerance_step(parameters, anchors, importances, metrics, tolerance=level, alpha=first, share=share)
        assert alpha == pytest.approx(multiplier, rel=1e-8)
        assert flat(parameters).tolist() == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_the_projection_is_the_nearest_point_of_a_general_solver() -> None:
    theta, anchor, importance, metric = (column.numpy() for column in rows(1))
    level = 0.3 * float((importance * (theta - anchor) ** 2).sum() / 2)
    found = minimize(
        lambda x: (metric * (x - theta) ** 2).sum() / 2,
        anchor,
        jac=lambda x: metric * (x - theta),
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda x: level - (importance * (x - anchor) ** 2).sum() / 2},
        options={"ftol": 1e-14, "maxiter": 500},
    )
    parameters, *others = tensors(*rows(1))
    tolerance_step(parameters, *others, tolerance=level, share=1 - 1e-9)
    np.testing.assert_allclose(flat(parameters).numpy(), found.x, rtol=1e-5, atol=1e-6)


def test_numbers_and_tensors_are_one_metric() -> None:
    theta, anchor, importance, _ = tensors(*rows(0))
    filled = [torch.full_like(theta[0], 0.3), torch.full_like(theta[1], 2.0)]
    results = []
    for metrics in ([0.3, 2.0], [0.3, filled[1]], filled):
        drawn = copy.deepcopy(theta)
        alpha = tolerance_step(drawn, anchor, importance, metrics, tolerance=0.01)
        results.append((alpha, flat(drawn)))
    for alpha, drawn in results[1:]:
        assert alpha == pytest.approx(results[0][0], rel=1e-12)
        torch.testing.assert_close(drawn, results[0][1], rtol=1e-12, atol=1e-12)


def test_what_others_take_is_subtracted() -> None:
    columns = rows(0)
    expected, multiplier = reference.projection(*(column.tolist() for column in columns), 0.02)
    parameters, *others = tensors(*columns)
    alpha = tolerance_step(parameters, *others, tolerance=0.05, others=0.03, share=1 - 1e-10)
    assert alpha == pytest.approx(multiplier, rel=1e-6)
    assert flat(parameters).tolist() == pytest.approx(expected, rel=1e-6)


def test_a_multiplier_too_large_falls_also_where_others_take_nearly_all() -> None:
    parameters, *others = tensors(*rows(0))
    _, exact = reference.projection(*(column.tolist() for column in rows(0)), 0.001)
    assert tolerance_step(parameters, *others, tolerance=0.01, others=0.009, alpha=100 * exact) < 10 * exact


def test_a_multiplier_that_serves_stays_and_one_too_large_falls() -> None:
    parameters, *others = tensors(*rows(0))
    _, exact = reference.projection(*(column.tolist() for column in rows(0)), 0.009)
    assert tolerance_step(copy.deepcopy(parameters), *others, tolerance=0.01, alpha=exact) == exact
    assert tolerance_step(copy.deepcopy(parameters), *others, tolerance=0.01, alpha=3 * exact) < 2 * exact
    assert tolerance_step(copy.deepcopy(parameters), *others, tolerance=1e3, alpha=exact) == 0.0


def test_from_the_last_multiplier_newton_takes_one_or_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    draw = budget_module._draw
    monkeypatch.setattr(budget_module, "_draw", lambda *arguments: counted.append(1) or draw(*arguments))
    generator = torch.Generator().manual_seed(0)
    importance = torch.randn(1000, generator=generator).mul(4).exp()  # over ten powers of ten
    anchor, theta, alpha = torch.zeros(1000), torch.zeros(1000), 0.0
    evaluations = []
    for _ in range(100):
        theta += 0.01 * torch.randn(1000, generator=generator)
        counted.clear()
        alpha = tolerance_step([theta], [anchor], [importance], [1.0], tolerance=0.05, alpha=alpha)
        evaluations.append(len(counted))
    assert sum(evaluations[10:]) / 90 < 3
    assert max(evaluations) < 15


@settings(deadline=None)
@given(
    scale=st.sampled_from([1e-38, 1e-20, 1.0, 1e20, 1e30]),
    metric=st.sampled_from([1e-8, 1.0, 1e8]),
    level=st.sampled_from([1e-12, 0.01, 1e6]),
    first=st.sampled_from([0.0, 1e-20, 1.0, 1e25]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 10),
)
def test_the_tolerance_is_kept_for_importances_of_any_size(
    scale: float, metric: float, level: float, first: float, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(50, generator=generator).to(dtype)
    anchor = torch.zeros(50, dtype=dtype)
    importance = (scale * torch.rand(50, generator=generator)).where(torch.arange(50) % 5 > 0, 0.0)
    before = theta.clone()
    alpha = tolerance_step([theta], [anchor], [importance], [metric], tolerance=level, alpha=first)
    assert math.isfinite(alpha)
    assert torch.isfinite(theta).all()
    assert torch.equal(theta[::5], before[::5])
    rounding = 0.0 if dtype == torch.float32 else float(torch.finfo(dtype).tiny) ** 2 * scale * 50
    assert expected_increase([theta], [anchor], [importance]) <= level * (1 + 100 * torch.finfo(dtype).eps) + rounding


def test_within_the_tolerance_nothing_is_touched() -> None:
    parameters, *others = tensors(*rows(0))
    before = copy.deepcopy(parameters)
    assert tolerance_step(parameters, *others, tolerance=1e6) == 0.0
    assert all(torch.equal(p, q) for p, q in zip(parameters, before, strict=True))


def test_weights_that_are_not_numbers_are_left() -> None:
    theta = torch.tensor([math.nan, 1.0])
    tolerance_step([theta], [torch.zeros(2)], [torch.ones(2)], [1.0], tolerance=0.1, alpha=1.0)
    assert theta[1] == 1.0


# ---- attached to an optimizer ----------------------------------------------------------------------------------------


class Weights(nn.Module):
    def __init__(self, *values: Tensor) -> None:
        super().__init__()
        for name, value in zip("abcdefgh", values, strict=False):
            self.register_parameter(name, nn.Parameter(value.clone()))


def problem(level: float = 0.02, **options: float) -> tuple[Weights, WeightPlasticity, Callable[[], Tensor]]:
    """½ Σ h (θ − c)² from the anchor 0, in two weights."""
    h, c, importance = torch.tensor([[1.0, 2.0, 0.5, 1.0], [1.0, -1.0, 2.0, 0.5], [0.2, 0.3, 0.0, 1.0]]).double()
    model = Weights(torch.zeros(3).double(), torch.zeros(1).double())
    held = WeightPlasticity(model.parameters(), tolerance=level, **options)
    held.consolidate(model, {"a": importance[:3], "b": importance[3:]})
    return model, held, lambda: (h * (torch.cat([model.a, model.b]) - c).square()).sum() / 2


def descend(optimizers: list[Optimizer], loss: Callable[[], Tensor], num_steps: int) -> None:
    for _ in range(num_steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def expect_at_rest(model: Weights, held: WeightPlasticity, loss: Callable[[], Tensor], tolerance: float) -> None:
    """The gradient of the loss is balanced by one multiplier times the gradient of the constraint."""
    gradients = torch.autograd.grad(loss(), [model.a, model.b])
    for weight, gradient in zip((model.a, model.b), gradients, strict=True):
        pull = held.alpha * held.importance(weight) * (weight.detach() - held.anchor(weight))
        torch.testing.assert_close(-gradient, pull, rtol=tolerance, atol=tolerance)


@every_optimizer
def test_at_rest_alpha_is_the_multiplier_and_the_tolerance_is_used(make: Callable[..., Optimizer]) -> None:
    model, held, loss = problem()
    held.attach(optimizer := make(model.parameters()))
    descend([optimizer], loss, 1500)
    assert held.alpha > 1
    assert 0.8 * 0.02 <= held.expected_increase() <= 0.02
    expect_at_rest(model, held, loss, 0.01)
    assert model.a[2].item() == pytest.approx(2.0, abs=1e-3)  # F = 0: it is free


def test_groups_of_other_learning_rates_have_one_multiplier() -> None:
    model, held, loss = problem()
    held.attach(optimizer := SGD([{"params": [model.a]}, {"params": [model.b], "lr": 0.002, "momentum": 0.5}], lr=0.03))
    descend([optimizer], loss, 4000)
    assert 0.8 * 0.02 <= held.expected_increase() <= 0.02
    expect_at_rest(model, held, loss, 1e-3)


def test_several_optimizers_come_to_share_one_multiplier() -> None:
    model, held, loss = problem()
    first, second = SGD([model.a], lr=0.01), Adam([model.b], lr=0.002)
    held.attach(first).attach(second)
    descend([first, second], loss, 3000)
    assert held.expected_increase() <= 0.02
    expect_at_rest(model, held, loss, 0.01)


def test_weights_that_did_not_move_keep_their_part() -> None:
    model, held, loss = problem()
    with torch.no_grad():
        model.b.fill_(math.sqrt(2 * 0.015))
    held.attach(optimizer := SGD([model.a], lr=0.02))
    descend([optimizer], loss, 500)
    assert model.b.item() == math.sqrt(2 * 0.015)
    assert 0.015 < held.expected_increase() <= 0.02
    with torch.no_grad():
        model.b.fill_(1.0)  # more than the tolerance by itself
    descend([optimizer], loss, 50)
    assert expected_increase([model.a], [held.anchor(model.a)], [held.importance(model.a)]) < 1e-3
    assert torch.isfinite(model.a).all()


@pytest.mark.parametrize("elsewhere", [1.0, math.nan, math.inf])
@pytest.mark.parametrize("rate", [1e-9, 1e-6, 0.02])
def test_where_others_take_all_or_are_no_numbers_what_moves_goes_half_of_its_way(elsewhere: float, rate: float) -> None:
    """Also where half a step is less than the rounding of the tolerance."""
    model, held, _ = problem()
    with torch.no_grad():
        model.b.fill_(elsewhere)
    held.attach(optimizer := SGD([model.a], lr=rate))
    model.a.grad = -torch.ones_like(model.a)
    optimizer.step()
    taken = expected_increase([model.a], [held.anchor(model.a)], [held.importance(model.a)])
    assert taken <= (0.2 + 0.3) * rate**2 / 2 / 4
    assert taken >= 0.5 * (0.2 + 0.3) * rate**2 / 2 / 4
    assert model.a[2].item() == pytest.approx(rate)  # F = 0: it is free
    assert math.isfinite(held.alpha)


@every_optimizer
def test_a_tolerance_out_of_reach_is_plain_training_bit_for_bit(make: Callable[..., Optimizer]) -> None:
    model, held, loss = problem(1e6)
    plain, _, plain_loss = problem()
    held.attach(optimizer := make(model.parameters()))
    descend([optimizer], loss, 20)
    descend([make(plain.parameters())], plain_loss, 20)
    assert torch.equal(model.a, plain.a)
    assert held.alpha == 0


def test_damping_counts() -> None:
    model, held, loss = problem(damping=0.5)
    held.attach(optimizer := SGD(model.parameters(), lr=0.02))
    descend([optimizer], loss, 800)
    importance = torch.cat([held.importance(model.a), held.importance(model.b)])
    torch.testing.assert_close(importance, torch.tensor([0.2, 0.3, 0.0, 1.0]).double() + 0.5 * 1.5 / 4)
    assert 0.8 * 0.02 <= held.expected_increase() <= 0.02
    assert model.a[2] < 1


@pytest.mark.parametrize("rule", ["sum", "ema", "joint"])
def test_over_several_models_the_accumulated_quadratic_is_held(rule: str) -> None:
    model, _, loss = problem()
    held = WeightPlasticity(model.parameters(), tolerance=0.01, rule=rule, decay=0.5)
    held.attach(optimizer := SGD(model.parameters(), lr=0.02))
    for value in (1.0, 3.0):
        held.consolidate(model, {name: torch.full_like(weight, value) for name, weight in model.named_parameters()})
        before = held.expected_increase()
        descend([optimizer], loss, 200)
        assert before <= held.expected_increase() <= 0.01
    assert (held.importance(model.a) == {"sum": 4.0, "ema": 2.0, "joint": 4.0}[rule]).all()


# ---- measured losses -------------------------------------------------------------------------------------------------


def used_up() -> WeightPlasticity:
    """A plasticity whose weights are at 0.9 of the tolerance, 0.02."""
    model, held, _ = problem()
    with torch.no_grad():
        model.b.fill_(math.sqrt(2 * 0.018))
    held.model = model  # keeps the weights alive
    return held


@pytest.mark.parametrize(
    ("increase", "budget"),
    [
        (0.03, 0.018 * 2 / 3),
        (10.0, 0.018 / 4),
        (math.nan, 0.018 / 4),
        (math.inf, 0.018 / 4),
        (0.02, 0.02),
        (0.01, 0.02),
        (-1.0, 0.02),
    ],
)
def test_the_budget_follows_what_is_measured(increase: float, budget: float) -> None:
    held = used_up()
    held.calibrate(increase)
    assert held.budget == pytest.approx(budget, rel=1e-12)
    assert held.tolerance == 0.02


def test_given_an_optimizer_the_weights_are_drawn_back_at_once() -> None:
    model, held, loss = problem()
    held.attach(optimizer := SGD(model.parameters(), lr=0.02))
    descend([optimizer], loss, 500)
    before = held.expected_increase()
    held.calibrate(0.04)
    assert held.expected_increase() == before
    held.calibrate(0.04, optimizer)
    assert held.expected_increase() <= held.budget <= before / 2
    held.tolerance = 0.04
    assert held.budget == pytest.approx(before / 2)  # doubled as the tolerance is, after two halvings


@every_optimizer
def test_weights_are_drawn_back_also_after_gradients_were_dropped(make: Callable[..., Optimizer]) -> None:
    """As in loops that end with `zero_grad`; what did not move in the last step stays."""
    model, held, loss = problem()
    held.attach(optimizer := make(model.parameters()))
    descend([optimizer], loss, 300)
    optimizer.zero_grad()
    (loss() + 0 * model.b.sum()).backward(inputs=[model.a])
    optimizer.step()
    optimizer.zero_grad()
    still, before = model.b.detach().clone(), held.expected_increase()
    held.calibrate(0.04, optimizer)
    assert held.expected_increase() < before
    assert torch.equal(model.b, still)
    before, budget = held.expected_increase(), held.budget
    for other in (SGD(model.parameters(), lr=0.1), held.detach(optimizer) or optimizer):
        with pytest.raises(ValueError, match="Expected an attached optimizer to calibrate with"):
            held.calibrate(0.04, other)
    assert (held.expected_increase(), held.budget) == (before, budget)


def test_a_used_budget_grows_again_and_an_unused_one_does_not() -> None:
    held = used_up()
    held.calibrate(0.08)
    assert held.budget == pytest.approx(0.018 / 4)
    held.calibrate(0.015)
    assert held.budget == pytest.approx(0.018 / 4 * 0.02 / 0.015)
    with torch.no_grad():
        held.model.b.zero_()
    held.calibrate(0.0)
    assert held.budget == pytest.approx(0.018 / 4 * 0.02 / 0.015)
    for _ in range(50):
        held.calibrate(1.0)  # not the weights' doing
    assert held.budget == pytest.approx(1e-20 * 0.02)


@pytest.mark.parametrize("scale", [1e-3, 1e-8, 1e-14])
def test_a_budget_holds_however_small_the_importance(scale: float) -> None:
    """Networks that fit their examples all but perfectly have next to no Fisher information."""
    model = Weights(torch.zeros(3).double())
    held = WeightPlasticity(model.parameters(), tolerance=0.02).attach(optimizer := SGD(model.parameters(), lr=0.1))
    held.consolidate(model, {"a": torch.full((3,), scale).double()})
    for _ in range(40):
        descend([optimizer], lambda: squared_distance_to_one(model), 1)
        for _ in range(8):
            held.calibrate(increase := float(model.a.detach().square().sum() / 2), optimizer)
            if increase <= 0.02:
                break
    assert 0.01 < increase <= 0.02


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_budget_stays_a_number_where_weights_are_none(weight: float) -> None:
    """So that training can go on once the weights are restored, and the state be loaded."""
    held = used_up()
    with torch.no_grad():
        held.model.b.fill_(weight)
    held.calibrate(math.nan)
    assert held.budget == pytest.approx(0.02 / 4)
    assert copy.deepcopy(held).budget == held.budget


def squared_distance_to_one(model: Weights) -> Tensor:
    return (model.a - 1).square().sum() / 2


def test_measured_losses_stay_within_the_tolerance_where_the_fisher_sees_too_little() -> None:
    """Two weights that only matter in sum: the diagonal sees half of the curvature along it."""
    curvature = 50.0
    for is_measured in (False, True):
        model = Weights(torch.zeros(20).double())
        held = WeightPlasticity(model.parameters(), tolerance=0.01)
        held.consolidate(model, {"a": torch.full((20,), curvature).double()})
        held.attach(optimizer := SGD(model.parameters(), lr=0.001))
        increases = []
        loss = partial(squared_distance_to_one, model)
        for _ in range(300):
            descend([optimizer], loss, 1)
            increases.append(curvature / 2 * model.a.sum().item() ** 2)
            if is_measured:
                held.calibrate(increases[-1])
        assert (max(increases[20:]) < 0.011) == is_measured
    assert held.expected_increase() > 1e-4


# ---- the object ------------------------------------------------------------------------------------------------------


def test_settings_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"Expected alpha or tolerance, but got both \(1.0 and 0.1\)"):
        WeightPlasticity([], 1.0, tolerance=0.1)
    for level in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"Expected tolerance to be finite and above 0, but got {level}"):
            WeightPlasticity([], tolerance=level)
    held, plain = WeightPlasticity([], tolerance=0.1), WeightPlasticity([])
    assert (held.alpha, held.tolerance, held.budget) == (0.0, 0.1, 0.1)
    assert (plain.alpha, plain.tolerance, plain.budget) == (1.0, None, None)
    with pytest.raises(ValueError, match="Expected no alpha under a tolerance"):
        held.alpha = 1.0
    with pytest.raises(ValueError, match="Expected no tolerance where alpha is given"):
        plain.tolerance = 0.1
    with pytest.raises(ValueError, match="Expected tolerance to be finite"):
        held.tolerance = 0.0
    with pytest.raises(ValueError, match="Expected a penalty of given alpha, but got a tolerance"):
        held.penalty()
    with pytest.raises(ValueError, match="Expected a tolerance to calibrate, but got none"):
        plain.calibrate(0.1)
    held.tolerance = 0.3
    assert (held.tolerance, held.budget) == (0.3, pytest.approx(0.3))
    assert "tolerance=0.3" in repr(held)


@pytest.mark.parametrize(("first", "second"), [(0.02, 0.7), (0.3, 0.1), (1e-3, 0.05), (0.03, 0.01)])
def test_another_tolerance_is_not_passed_by_the_budget_through_rounding(first: float, second: float) -> None:
    held = WeightPlasticity([], tolerance=first)
    held.tolerance = second
    assert held.budget == pytest.approx(second)
    assert held.budget <= second
    assert copy.deepcopy(held).budget == held.budget


@every_optimizer
def test_training_goes_on_bit_for_bit_after_saving_and_loading(make: Callable[..., Optimizer]) -> None:
    model, held, loss = problem()
    held.attach(optimizer := make(model.parameters()))
    descend([optimizer], loss, 100)
    held.calibrate(0.03)
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), held.state_dict()], file)
    descend([optimizer], loss, 100)

    twin, _, twin_loss = problem()
    resumed = WeightPlasticity(twin.parameters())  # the state brings the tolerance
    resumed.attach(twin_optimizer := make(twin.parameters()))
    file.seek(0)
    for target, state in zip((twin, twin_optimizer, resumed), torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(state)
    descend([twin_optimizer], twin_loss, 100)
    assert torch.equal(model.a, twin.a)
    assert torch.equal(model.b, twin.b)
    assert (held.alpha, held.tolerance, held.budget) == (resumed.alpha, resumed.tolerance, resumed.budget)


def test_states_of_before_tolerances_load_and_bad_ones_do_not() -> None:
    model, held, _ = problem()
    state = held.state_dict()
    for change in ({"tolerance": -1.0}, {"budget": 0.03}, {"budget": None}, {"budget": 0.0}):
        with pytest.raises(ValueError, match=r"Expected (tolerance|a budget)"):
            held.load_state_dict(state | change)
    old = {key: value for key, value in state.items() if key not in {"tolerance", "budget"}} | {"alpha": 7.0}
    held.load_state_dict(old)
    assert (held.alpha, held.tolerance) == (7.0, None)
    assert held.importance(model.b).item() == 1.0


def test_a_deep_copy_keeps_the_tolerance_and_a_reset_gives_it_back() -> None:
    model, held, loss = problem()
    held.attach(optimizer := SGD(model.parameters(), lr=0.02))
    descend([optimizer], loss, 100)
    held.calibrate(0.03)
    _, twin = copy.deepcopy((model, held))
    assert (twin.alpha, twin.tolerance, twin.budget) == (held.alpha, held.tolerance, held.budget)
    assert held.alpha > 0
    assert held.budget < 0.02
    held.reset()
    assert (held.alpha, held.budget, held.expected_increase()) == (0.0, 0.02, 0.0)
    assert twin.expected_increase() > 0


def test_the_expected_increase_is_that_of_a_fisher() -> None:
    """On a linear-Gaussian model with orthogonal inputs, the diagonal Fisher's prediction is exact."""
    inputs = torch.eye(4).double() * 2
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        noise = torch.randn(1000, 1, dtype=torch.float64)
        targets = model(inputs).repeat(250, 1) + noise

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return (outputs - wanted).square().sum(-1).mean() / 2

    batch = inputs.repeat(250, 1)
    fitted = torch.linalg.lstsq(batch, targets).solution.T
    with torch.no_grad():
        model.weight.copy_(fitted)
    held = WeightPlasticity(model.parameters(), tolerance=1.0)
    held.consolidate(model, diagonal_fisher(model, [(batch, targets)], loss))
    before = loss(model(batch), targets)
    with torch.no_grad():
        model.weight += torch.tensor([0.1, -0.2, 0.3, 0.05]).double()
    # The squared residuals of unit variance that the empirical Fisher holds are 1 up to sampling.
    assert held.expected_increase() == pytest.approx((loss(model(batch), targets) - before).item(), rel=0.1)


def test_of_a_mean_over_several_targets_the_expected_increase_is_one_of_them() -> None:
    """An example of T targets whose loss is their mean: the form is 1/T of what the mean loss grows by."""
    num_targets, generator = 8, torch.Generator().manual_seed(0)
    drawn = torch.randint(3, (2000, num_targets), generator=generator)
    inputs = 2 * torch.eye(3).double()[drawn]
    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        noise = torch.randn(2000, num_targets, 1, dtype=torch.float64, generator=generator)
        targets = model(inputs) + noise
        model.weight.copy_(torch.linalg.lstsq(inputs.flatten(0, 1), targets.flatten(0, 1)).solution.T)

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        return (outputs - wanted).square().mean() / 2

    held = WeightPlasticity(model.parameters(), tolerance=1.0)
    held.consolidate(model, diagonal_fisher(model, [(inputs, targets)], loss))
    before = loss(model(inputs), targets)
    with torch.no_grad():
        model.weight += torch.tensor([0.1, -0.2, 0.3]).double()
    grown = (loss(model(inputs), targets) - before).item()
    assert num_targets * held.expected_increase() == pytest.approx(grown, rel=0.1)


def test_a_tolerance_that_float32_cannot_tell_from_nothing_is_refused() -> None:
    for level in (5e-324, 1e-40, 9e-31):
        with pytest.raises(ValueError, match=rf"Expected tolerance to be at least 1e-30, but got {level}"):
            WeightPlasticity([], tolerance=level)
        with pytest.raises(InputError, match=rf"Expected a tolerance of at least 1e-30, but got {level}"):
            two_model_config(protection=("none", "wpl-tolerance"), wpl_tolerance_strength=(0.01, level))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("importance", [1e-30, 1e-10, 1.0, 1e30])
@pytest.mark.parametrize("tolerance", [1e-30, 1e-20, 1e20, 1e300])
def test_extreme_tolerances_are_kept(tolerance: float, importance: float, dtype: torch.dtype) -> None:
    for rate in (1e-35, 1e-3, 0.1):
        for make in (torch.optim.SGD, torch.optim.Adam):
            theta = nn.Parameter(torch.zeros(3, dtype=dtype))
            model = nn.Module()
            model.register_parameter("theta", theta)
            optimizer = make([theta], rate)
            held = WeightPlasticity([theta], tolerance=tolerance)
            fisher = torch.tensor([importance, 0.0, importance / 2], dtype=dtype)
            held.consolidate(model, {"theta": fisher})
            held.attach(optimizer)
            for _ in range(10):
                theta.grad = theta.detach() - 1
                optimizer.step()
            lost = 0.5 * (fisher.double() * theta.detach().double().square()).sum()
            assert lost <= tolerance * 1.01
            assert theta[1] > 0  # what the earlier model does not need goes where it wants
