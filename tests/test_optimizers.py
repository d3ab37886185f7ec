"""Under every optimizer the same α: where a weight comes to rest; optimizers in wrappers, compiled, and unknown."""

import importlib
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    LBFGS,
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
    Rprop,
    SparseAdam,
)

from forgetless import WeightPlasticity
from forgetless.plasticity import scaled_metric

MakeOptimizer = Callable[[Iterable[Tensor], float], Optimizer]


def installed(module: str, name: str) -> Any:
    """A class of a package that is not needed to develop; the test is skipped where it is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(module.partition(".")[0], reason=f"{module} is not installed")
        return getattr(importlib.import_module(module), name)


# Each with the learning rate as a multiple of the distance to go, which is what its steps are measured in, or of 1.
SCALED = {
    "Adam": lambda p, lr: Adam(p, lr=lr),
    "AdamW": lambda p, lr: AdamW(p, lr=lr, weight_decay=0.0),
    "Adam, amsgrad": lambda p, lr: Adam(p, lr=lr, betas=(0.9, 0.99), amsgrad=True),
    "Adamax": lambda p, lr: Adamax(p, lr=lr),
    "NAdam": lambda p, lr: NAdam(p, lr=lr),
    "RAdam": lambda p, lr: RAdam(p, lr=lr),
    "RMSprop": lambda p, lr: RMSprop(p, lr=lr),
    "RMSprop, momentum": lambda p, lr: RMSprop(p, lr=lr / 10, momentum=0.9),
    "Adagrad": lambda p, lr: Adagrad(p, lr=20 * lr),
    "Adagrad, decaying": lambda p, lr: Adagrad(p, lr=20 * lr, lr_decay=1e-4),
    "Muon": lambda p, lr: Muon(p, lr=5 * lr, weight_decay=0.0),
    "Muon, Nesterov off, of Moonshot": lambda p, lr: Muon(
        p, lr=10 * lr, weight_decay=0.0, nesterov=False, adjust_lr_fn="match_rms_adamw"
    ),
    "Lion": lambda p, lr: installed("lion_pytorch", "Lion")(p, lr=lr / 2),
    "torchao AdamW8bit": lambda p, lr: installed("torchao.optim", "AdamW8bit")(p, lr=lr, weight_decay=0.0),
}
FIXED = {
    "SGD": lambda p, lr: SGD(p, lr=0.01),
    "SGD, momentum": lambda p, lr: SGD(p, lr=0.002, momentum=0.9),
    "ASGD": lambda p, lr: ASGD(p, lr=0.01, lambd=1e-6),
    "Adadelta": lambda p, lr: Adadelta(p, lr=0.3),
    "Adafactor": lambda p, lr: Adafactor(p, lr=0.01, weight_decay=0.0, eps=(None, 1e-3)),
    "transformers' Adafactor": lambda p, lr: installed("transformers.optimization", "Adafactor")(
        p, lr=0.003, relative_step=False
    ),
}
OPTIMIZERS: dict[str, MakeOptimizer] = {**SCALED, **FIXED}


class Holds(nn.Module):
    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta)


def held(model: nn.Module, **options: Any) -> WeightPlasticity:
    plasticity = WeightPlasticity(model, **({"alpha": 1.0} | options))
    plasticity.consolidate(model, {name: torch.ones_like(p) for name, p in model.named_parameters()})
    return plasticity


def rest_point(make: MakeOptimizer, centre: Tensor, num_steps: int = 700) -> float:
    """Where ½ ‖θ − c‖² + ½ ‖θ − 0‖² comes to rest under α = 1, F = 1, as a share of c; ½ is right."""
    model = Holds(torch.zeros_like(centre))
    plasticity = held(model)
    plasticity.warn_if_moved()
    with torch.no_grad():
        model.theta.copy_(0.4 * centre)  # most of the way there
    optimizer = make(model.parameters(), 0.004 * float(centre.abs().mean()))
    plasticity.attach(optimizer)
    late = torch.zeros_like(centre)
    for step in range(num_steps):
        model.theta.grad = (model.theta - centre).detach()
        optimizer.step()
        late += model.theta.detach() / 50 * (step >= num_steps - 50)
    return float((late * centre).sum() / centre.square().sum())


@pytest.mark.parametrize("scale", [1.0, 0.01])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_alpha_rests_where_sgd_rests(name: str, scale: float) -> None:
    centre = torch.full((2, 3), scale)
    if "8bit" in name:  # only 4,096 numbers or more are kept in 8 bits
        centre = scale * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    num_steps = 1500 if name == "Lion" else 700
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of what torchao compiles
        assert rest_point(OPTIMIZERS[name], centre, num_steps) == pytest.approx(0.5, rel=0.02)


def rest_in_noise(make: MakeOptimizer) -> tuple[float, float]:
    """Of a matrix under gradient noise and importances from 0 to 1: Σ F θ² and ‖θ − c‖, to those at the minimum."""
    torch.manual_seed(0)
    centre, importance = torch.randn(12, 8) * 2.0 ** -torch.arange(8), torch.rand(12, 8) ** 3
    right = centre / (1 + importance)
    model = Holds(torch.zeros(12, 8))
    plasticity = WeightPlasticity(model, alpha=1.0)
    plasticity.consolidate(model, {"theta": importance})
    optimizer = make(model.parameters(), 0.02)
    plasticity.attach(optimizer)
    rate = optimizer.param_groups[0]["lr"]
    for step in range(1500):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / 1500)
        model.theta.grad = (model.theta - centre).detach() + 0.3 * torch.randn(12, 8)
        optimizer.step()
    theta = model.theta.detach()
    forgot = (importance * theta.square()).sum() / (importance * right.square()).sum()
    return float(forgot), float((theta - centre).norm() / (right - centre).norm())


@pytest.mark.parametrize(
    ("name", "make"),
    {
        "SGD": lambda p, lr: SGD(p, lr=lr),
        "Adam": lambda p, lr: Adam(p, lr=lr),
        "NAdam": lambda p, lr: NAdam(p, lr=lr),
        "RAdam": lambda p, lr: RAdam(p, lr=lr),
        "Adamax": lambda p, lr: Adamax(p, lr=lr),
        "RMSprop": lambda p, lr: RMSprop(p, lr=lr),
        "RMSprop, centered": lambda p, lr: RMSprop(p, lr=lr, centered=True),
        "Adagrad": lambda p, lr: Adagrad(p, lr=10 * lr),
        "Adadelta": lambda p, lr: Adadelta(p, lr=1.0),
        "Adafactor": lambda p, lr: Adafactor(p, lr=3 * lr, weight_decay=0.0),
        "Muon": lambda p, lr: Muon(p, lr=lr, weight_decay=0.0),
        "Lion": lambda p, lr: installed("lion_pytorch", "Lion")(p, lr=lr / 4),
    }.items(),
)
def test_under_gradient_noise_too_about_as_much_is_kept_and_learnt(name: str, make: MakeOptimizer) -> None:
    forgot, left = rest_in_noise(make)
    assert forgot == pytest.approx(1.0, rel=0.25 if name in {"Muon", "Adamax"} else 0.1)
    assert left == pytest.approx(1.0, rel=0.25 if name in {"Muon", "Adamax"} else 0.1)


# ---- the definition of d -------------------------------------------------------------------------------------------


def steady(optimizer: Optimizer, theta: nn.Parameter, gradient: Tensor, num_steps: int) -> Tensor:
    """How far the last of many steps with one gradient moves a weight: written without any formula for d."""
    for _ in range(num_steps):
        before = theta.detach().clone()
        theta.grad = gradient.clone()
        optimizer.step()
    return before - theta.detach()


STEADY: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.01, momentum=0.9, dampening=0.5),
    "Adam": lambda p: Adam(p, lr=0.01),
    "AdamW": lambda p: AdamW(p, lr=0.01, weight_decay=0.0),
    "Adamax": lambda p: Adamax(p, lr=0.01),
    "NAdam": lambda p: NAdam(p, lr=0.01),
    "RAdam": lambda p: RAdam(p, lr=0.01),
    "RMSprop": lambda p: RMSprop(p, lr=0.01),
    "RMSprop, momentum": lambda p: RMSprop(p, lr=0.01, momentum=0.8),
    "Adagrad": lambda p: Adagrad(p, lr=0.01, lr_decay=0.01),
    "Adadelta": lambda p: Adadelta(p, lr=0.5),
    "ASGD": lambda p: ASGD(p, lr=0.01, lambd=0.01, alpha=0.75),
    "Adafactor": lambda p: Adafactor(p, lr=0.001, weight_decay=0.0),
    "transformers' Adafactor, clipped": lambda p: installed("transformers.optimization", "Adafactor")(
        p, clip_threshold=0.2
    ),
    "transformers' Adafactor": lambda p: installed("transformers.optimization", "Adafactor")(p),  # lr is None
    "transformers' Adafactor, warm": lambda p: installed("transformers.optimization", "Adafactor")(p, warmup_init=True),
    "transformers' Adafactor, mean": lambda p: installed("transformers.optimization", "Adafactor")(
        p, lr=0.001, relative_step=False, scale_parameter=False, beta1=0.5
    ),
    "Muon": lambda p: Muon(p, lr=0.01, weight_decay=0.0),
    "Muon, wide": lambda p: Muon(p, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    "Lion": lambda p: installed("lion_pytorch", "Lion")(p, lr=0.01),
    "pytorch_optimizer's Lion": lambda p: installed("pytorch_optimizer", "Lion")(p, lr=0.01),
}


@pytest.mark.parametrize("num_steps", [1, 4, 7, 500])
@pytest.mark.parametrize("name", STEADY)
def test_a_steady_gradient_moves_a_weight_by_lr_g_over_d(name: str, num_steps: int) -> None:
    if num_steps < 500 and name in {"SGD", "NAdam", "RMSprop, momentum", "Muon", "transformers' Adafactor, mean"}:
        pytest.skip("its mean of gradients has not settled")
    if num_steps < 500 and name in {"Lion", "pytorch_optimizer's Lion", "Adadelta", "Muon, wide"}:
        pytest.skip("its mean has not settled")
    # Of rank 1, so that rows and columns have all that Adafactor keeps, and Muon's step is along it.
    gradient = torch.outer(torch.tensor([1.0, -3.0, 0.2]), torch.tensor([0.1, 2.0]))
    theta = nn.Parameter(torch.full((3, 2), 2.0) + torch.tensor([0.0, 1.0]))
    optimizer = STEADY[name]([theta])
    moved = steady(optimizer, theta, gradient, num_steps)
    group = optimizer.param_groups[0]
    if name == "ASGD":  # its decay is a loss of its own: without it the step is by η of the step before
        moved = 0.01 / (1 + 0.01 * 0.01 * (num_steps - 1)) ** 0.75 * gradient
    rate = 1.0 if group["lr"] is None else float(group["lr"])
    metric = scaled_metric(optimizer, group, [theta], 1.0)
    metric = metric[0] if isinstance(metric, list) else torch.full_like(gradient, metric)
    if "Muon" in name:  # in bfloat16, and right along the gradient
        along = (rate * gradient / metric * gradient).sum()
        assert float(along) == pytest.approx(float((moved * gradient).sum()), rel=0.01)
    else:  # Adafactor's depends on the weight, which the step moves by its learning rate; Lion's mean is of 100 steps
        tolerance = 0.03 if "Adafactor" in name else 0.01 if "Lion" in name else 1e-3
        torch.testing.assert_close(rate * gradient / metric, moved, rtol=tolerance, atol=2e-7)


def test_centered_rmsprop_divides_by_the_deviation() -> None:
    theta = nn.Parameter(torch.zeros(2))
    optimizer = RMSprop([theta], lr=0.01, centered=True, alpha=0.9, momentum=0.5)
    square, mean = torch.zeros(2), torch.zeros(2)
    for step in range(30):
        theta.grad = torch.tensor([1.0, 0.1]) * (-1.0) ** step + 0.3
        square, mean = 0.9 * square + 0.1 * theta.grad**2, 0.9 * mean + 0.1 * theta.grad
        optimizer.step()
    (metric,) = scaled_metric(optimizer, optimizer.param_groups[0], [theta], 1.0)
    torch.testing.assert_close(metric, ((square - mean**2).sqrt() + 1e-8) * 0.5)


def test_sparse_adam_rests_where_the_mean_gradient_balances_the_pull() -> None:
    """Row 0 has a gradient in every step, row 1 in every third: its mean gradient is a third."""
    table = nn.Embedding(2, 1, sparse=True)
    nn.init.zeros_(table.weight)
    plasticity = WeightPlasticity(table, alpha=1.0)
    plasticity.consolidate(table, {"weight": torch.tensor([[1.0], [1.0]])})
    optimizer = SparseAdam(table.parameters(), lr=2e-3)
    plasticity.attach(optimizer)
    means = torch.zeros(2)
    for step in range(3000):
        optimizer.zero_grad()
        rows = torch.tensor([0, 1] if step % 3 == 0 else [0])
        (0.5 * (table(rows) - 1).square()).sum().backward()
        optimizer.step()
        means += table.weight.detach()[:, 0] / 600 * (step >= 2400)
    torch.testing.assert_close(means, torch.tensor([0.5, 0.25]), rtol=0.02, atol=0)


def test_radam_without_its_second_moment_is_sgd() -> None:
    theta = nn.Parameter(torch.ones(2))
    optimizer = RAdam([theta], lr=0.01)
    theta.grad = torch.ones(2)
    for step in range(1, 8):
        optimizer.step()
        metric = scaled_metric(optimizer, optimizer.param_groups[0], [theta], 1.0)
        assert isinstance(metric, float) == (step <= 5)
    assert metric[0][0] > 1


# ---- unknown, refused, in wrappers ---------------------------------------------------------------------------------


class SignDescent(Optimizer):
    """Not known to the library."""

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad.sign(), alpha=-group["lr"])


@pytest.mark.parametrize("options", [{"alpha": 1.0}, {"alpha": None, "tolerance": 1e-9}])
def test_a_metric_may_be_given(options: dict[str, Any]) -> None:
    model = Holds(torch.zeros(2, 3))
    seen = []

    def metric(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> Tensor:
        seen.append((optimizer, group["lr"], parameter))
        return parameter.grad.abs()

    plasticity = held(model, **options).attach(optimizer := SignDescent(model.parameters(), lr=0.002), metric=metric)
    for _ in range(1500):
        model.theta.grad = (model.theta - 1).detach()
        optimizer.step()
    assert seen[-1][0] is optimizer
    assert seen[-1][1:] == (0.002, model.theta)
    right = 0.5 if plasticity.tolerance is None else math.sqrt(2e-9 / 6)
    assert float(model.theta.detach().mean()) == pytest.approx(right, rel=0.02 if plasticity.tolerance is None else 0.2)
    plasticity.detach(optimizer)
    with pytest.warns(UserWarning, match="does not know the metric of SignDescent"):
        plasticity.attach(optimizer)


@pytest.mark.filterwarnings("ignore:Shared weights have moved")
def test_a_metric_that_is_a_number_or_of_another_shape() -> None:
    model = Holds(torch.zeros(2, 3))
    plasticity = held(model)
    for value, right in ((0.5, 2 / 3), (torch.tensor(0.5), 2 / 3), (torch.full((2, 3), 0.5), 2 / 3)):
        optimizer = SignDescent(model.parameters(), lr=0.25)
        plasticity.attach(optimizer, metric=lambda *_, value=value: value)
        nn.init.constant_(model.theta, 1.0)
        model.theta.grad = torch.zeros(2, 3)
        optimizer.step()  # θ / (1 + lr / d)
        assert float(model.theta.detach()[1, 2]) == pytest.approx(right)
        plasticity.detach(optimizer)
    plasticity.attach(optimizer, metric=lambda *_: torch.ones(3))
    with pytest.raises(ValueError, match=r"Expected a metric in the weight's shape \(2, 3\), but got \(3,\)"):
        optimizer.step()


@pytest.mark.parametrize("kind", [LBFGS, Rprop])
def test_an_optimizer_that_no_step_can_follow_is_refused(kind: type[Optimizer]) -> None:
    model = Holds(torch.zeros(2))
    optimizer = kind(model.parameters())
    with pytest.raises(
        ValueError, match=f"Expected an optimizer that a proximal step can follow, but got {kind.__name__}"
    ):
        held(model).attach(optimizer)
    held(model).attach(optimizer, metric=lambda *_: 1.0)  # who gives one knows


def test_schedule_free_is_refused() -> None:
    model = Holds(torch.zeros(2))
    optimizer = installed("schedulefree", "AdamWScheduleFree")(model.parameters())
    with pytest.raises(ValueError, match="which evaluates an average of the weights"):
        held(model).attach(optimizer)


class NoHooks(Optimizer):
    """As accelerate's and others': an Optimizer by name, which forwards everything."""

    def __init__(self, optimizer: Any, name: str = "optimizer") -> None:
        setattr(self, name, optimizer)
        self.inner = optimizer

    @property
    def param_groups(self) -> Any:
        return self.inner.param_groups

    def step(self, closure: Any = None) -> None:
        self.inner.step()


class Sharp(Optimizer):
    """Sharpness-aware minimisation: up the gradient, then down from where it was with the gradient up there."""

    def __init__(self, parameters: Iterable[Tensor], **options: Any) -> None:
        super().__init__(parameters, options)
        self.base_optimizer = SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def first_step(self) -> None:
        self.old = [p.detach().clone() for p in self.param_groups[0]["params"]]
        for p in self.param_groups[0]["params"]:
            p.data.add_(p.grad, alpha=0.05)

    def second_step(self) -> None:
        for p, old in zip(self.param_groups[0]["params"], self.old, strict=True):
            p.data.copy_(old)
        self.base_optimizer.step()


@pytest.mark.filterwarnings("ignore:Shared weights have moved")
@pytest.mark.parametrize("wrap", [NoHooks, lambda o: NoHooks(o, "base_optimizer"), lambda o: NoHooks(NoHooks(o))])
def test_the_optimizer_in_a_wrapper_is_followed(wrap: Callable[[Optimizer], Any]) -> None:
    model = Holds(torch.zeros(2))
    plasticity = held(model)
    wrapper = wrap(inner := SGD(model.parameters(), lr=1.0))
    plasticity.attach(wrapper)
    with pytest.raises(ValueError, match="not attached yet"):
        plasticity.attach(inner)

    def step() -> float:
        nn.init.ones_(model.theta)
        model.theta.grad = torch.zeros(2)
        wrapper.step()
        return float(model.theta.detach()[0])

    assert step() == 0.5
    plasticity.detach(wrapper)
    assert step() == 1.0


def test_sharpness_aware_minimisation_is_drawn_by_its_second_step_alone() -> None:
    model = Holds(torch.zeros(3))
    optimizer = Sharp(model.parameters(), lr=0.05)
    held(model).attach(optimizer)
    for _ in range(400):
        model.theta.grad = (model.theta - 1).detach()
        optimizer.first_step()
        model.theta.grad = (model.theta - 1).detach()
        optimizer.second_step()
    # The gradient up there is (1 + 0.05) (θ − 1).
    torch.testing.assert_close(model.theta.detach(), torch.full((3,), 1.05 / 2.05), rtol=1e-4, atol=0)


def test_accelerates_optimizer_is_followed() -> None:
    accelerated = installed("accelerate.optimizer", "AcceleratedOptimizer")
    installed("accelerate", "PartialState")()
    installed("accelerate", "Accelerator")(cpu=True)
    model = Holds(torch.ones(2))
    plasticity = held(model)
    plasticity.attach(optimizer := accelerated(SGD(model.parameters(), lr=1.0)))
    model.theta.grad = torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(model.theta.detach(), torch.full((2,), 0.5))


def test_a_wrapper_of_other_weights_or_without_hooks_is_refused() -> None:
    model = Holds(torch.zeros(2))

    class Flat:  # steps a flat copy of the weights, as some sharded optimizers do
        def __init__(self) -> None:
            self.optimizer = SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
            self.param_groups = [{"params": list(model.parameters()), "lr": 0.1}]

    for wrong in (Flat(), object(), NoHooks(None)):
        with pytest.raises(ValueError, match=r"Expected a torch.optim.Optimizer with step hooks"):
            held(model).attach(wrong)


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Adam(p, lr=0.1)])
def test_a_compiled_step_is_compiled_once(make: Callable[..., Optimizer]) -> None:
    from torch._dynamo.utils import counters

    def graphs(*, is_attached: bool) -> int:
        torch._dynamo.reset()
        counters.clear()
        model = nn.Linear(3, 3)
        optimizer = make(model.parameters())
        if is_attached:
            held(model).attach(optimizer)
        step = torch.compile(optimizer.step, backend="eager")
        for _ in range(6):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            step()
        return counters["stats"]["unique_graphs"]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own
        assert graphs(is_attached=True) == graphs(is_attached=False)
