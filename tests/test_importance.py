"""The Fisher against slow references, closed forms and invariances, and what it must leave alone."""

import copy
import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cases import (
    BATCH,
    CLASSES,
    FEATURES,
    GENERAL_CASES,
    IMAGE,
    LAYER_CASES,
    LOOP_CASES,
    STEPS,
    Case,
    FunctionalWeight,
    TiedLanguageModel,
    TimeFirst,
    conv_case,
    features,
    labels,
    mlp,
    randn,
    squared_error,
    token_cross_entropy,
    with_statistics,
    words,
)
from forgetless import TrainingFisher, diagonal_fisher, reference
from forgetless.importance import layers, mean_absolute_gradient, method, request
from forgetless.importance.request import Method, Request

pytestmark = [
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    # Of the models that mix examples on purpose; that it is told has a test of its own.
    pytest.mark.filterwarnings("ignore:forgetless. the loss of an example in its batch"),
]

Fisher = dict[str, Tensor]
METHODS = ("by_layer", "by_vmap", "by_loop")


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that batches of more than the checked examples were computed with."""
    taken: list[str] = []
    for name in METHODS:
        compute = getattr(method, name)

        def spy(batch: Request, name: str = name, compute: Method = compute) -> Fisher:
            found = compute(batch)
            if len(batch.targets) > method.CHECKED_EXAMPLES:
                taken.append(name)
            return found

        monkeypatch.setattr(method, name, spy)
    return taken


def without_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(batch: Request) -> Fisher:
        raise layers.UnknownLayerError

    monkeypatch.setattr(method, "by_layer", refuse)


def assert_same(found: Fisher, expected: Fisher, tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m: f"{m}")


def named(cases: list[Case]) -> dict[str, object]:
    return {"argvalues": cases, "ids": [case.name for case in cases]}


# ---- against the reference -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", **named(LAYER_CASES + GENERAL_CASES))
def test_empirical_is_the_reference(case: Case, paths: list[str]) -> None:
    model, inputs, targets = case.build()
    batches = [(inputs, targets), (inputs[:4].flip(0), targets[:4])]
    assert_same(diagonal_fisher(model, batches, case.loss_fn), reference.diagonal_fisher(model, batches, case.loss_fn))
    assert paths == [case.path, case.path]


@pytest.mark.parametrize("case", **named(LAYER_CASES + GENERAL_CASES))
def test_mean_absolute_gradient_is_the_reference_on_the_same_path(case: Case, paths: list[str]) -> None:
    def squared_norm(outputs: object, targets: Tensor) -> Tensor:
        return sum(leaf.square().sum() for leaf in tree_leaves(outputs))

    model, inputs, targets = case.build()
    batches = [(inputs, targets), (inputs[:4].flip(0), targets[:4])]
    found = mean_absolute_gradient(model, batches, squared_norm)
    assert_same(found, reference.mean_absolute_gradient(model, batches, squared_norm))
    assert all((values >= 0).all() for values in found.values())
    assert paths == [case.path, case.path]


@pytest.mark.parametrize("case", **named(LOOP_CASES))
def test_a_model_that_nothing_can_follow_is_looped_over_with_a_warning(case: Case, paths: list[str]) -> None:
    model, inputs, targets = case.build()
    with pytest.warns(UserWarning, match="goes through the examples one by one") as caught:
        found = diagonal_fisher(model, [(inputs, targets)], case.loss_fn)
    assert caught[0].filename == __file__
    assert_same(found, reference.diagonal_fisher(model, [(inputs, targets)], case.loss_fn))
    assert paths == [case.path]


@pytest.mark.parametrize("case", **named(LAYER_CASES))
def test_the_general_path_agrees_with_the_fast_one(
    case: Case, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case.name in {"mlp, loss that calls item()", "sparse embedding"}:
        pytest.skip("torch.func cannot follow it")
    model, inputs, targets = case.build()
    fast = diagonal_fisher(model, [(inputs, targets)], case.loss_fn)
    without_fast_path(monkeypatch)
    assert_same(diagonal_fisher(model, [(inputs, targets)], case.loss_fn), fast)
    assert paths == ["by_layer", "by_vmap"]


@pytest.mark.parametrize(
    "case",
    **named([c for c in LAYER_CASES + GENERAL_CASES if c.loss_fn is F.cross_entropy and "BatchNorm1d" not in c.name]),
)
def test_exact_is_the_reference(case: Case) -> None:
    model, inputs, targets = case.build()
    batches = [(inputs, targets)]
    expected = reference.diagonal_fisher(model, batches, case.loss_fn, "exact")
    assert_same(diagonal_fisher(model, batches, case.loss_fn, "exact"), expected)


@pytest.mark.parametrize("case", **named(LAYER_CASES[:6] + GENERAL_CASES[:2]))
def test_batch_is_the_square_of_the_batch_mean(case: Case) -> None:
    model, inputs, targets = case.build()
    mean_loss = F.cross_entropy if "summed" in case.name else case.loss_fn
    if "item()" in case.name:
        pytest.skip("this loss is not a mean over examples")
    batches = [(inputs, targets), (inputs[:3], targets[:3])]
    expected = reference.diagonal_fisher(model, batches, mean_loss, "batch")
    assert_same(diagonal_fisher(model, batches, case.loss_fn, "batch"), expected)


class Unpacked(nn.Module):
    """Takes one tensor, as the reference wants it, and passes it on as a tuple or dict of two and what is no tensor."""

    def __init__(self, inner: nn.Module, form: type) -> None:
        super().__init__()
        self.inner, self.form = inner, form

    def packed(self, x: Tensor) -> tuple[Tensor, Tensor, str] | dict[str, object]:
        left, right = x[:, :3], x[:, 3:]
        return (left, right, "sum") if self.form is tuple else {"right": right, "left": left, "how": "sum"}

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed(x)
        return self.inner(**packed) if isinstance(packed, dict) else self.inner(*packed)


class TwoInputs(nn.Module):
    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, CLASSES), nn.Linear(FEATURES - 3, CLASSES)
        self.scale = nn.Parameter(torch.ones(CLASSES)) if bare else 1.0

    def forward(self, left: Tensor, right: Tensor, how: str) -> Tensor:
        assert how == "sum"
        return self.left(left) * self.scale + self.right(right)


@pytest.mark.parametrize("bare", [False, True], ids=["layers", "general"])
@pytest.mark.parametrize("form", [tuple, dict])
def test_inputs_may_be_tuples_and_dicts_with_other_things_in_them(form: type, bare: bool, paths: list[str]) -> None:
    model = Unpacked(TwoInputs(bare), form).double()
    inputs, targets = features(), labels()
    found = diagonal_fisher(model.inner, [(model.packed(inputs), targets)], F.cross_entropy)
    expected = reference.diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    assert_same({f"inner.{name}": value for name, value in found.items()}, expected)
    assert paths == ["by_vmap" if bare else "by_layer"]


class Outputs(nn.Module):
    """Wraps the logits of a model in a dict, beside a thing that is not there and a state that has no examples."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        return {"logits": self.inner(x), "loss": None, "state": x.new_zeros(2, len(x), 3)}


@pytest.mark.parametrize("kind", ["empirical", "batch"])
def test_outputs_may_be_dicts_with_other_things_in_them(kind: str) -> None:
    model, inputs, targets = Outputs().double(), features(), labels()
    found = diagonal_fisher(model, [(inputs, targets)], lambda o, t: F.cross_entropy(o["logits"], t), kind)
    expected = diagonal_fisher(model.inner, [(inputs, targets)], F.cross_entropy, kind)
    assert_same({name.removeprefix("inner."): value for name, value in found.items()}, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["empirical", "exact", "batch", "monte_carlo"])
def test_the_reduction_of_the_loss_does_not_matter(kind: str, reduction: str) -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    found = diagonal_fisher(model, [(inputs, targets)], loss_fn, kind)
    assert_same(found, diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind))


def test_a_sequence_is_one_example() -> None:
    model = TiedLanguageModel().double()
    tokens, targets = words(BATCH, STEPS), words(BATCH, STEPS)
    mean = diagonal_fisher(model, [(tokens, targets)], token_cross_entropy)
    summed = diagonal_fisher(
        model, [(tokens, targets)], lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten(), reduction="sum")
    )
    assert_same({name: value * STEPS**2 for name, value in mean.items()}, summed)


# ---- closed forms ----------------------------------------------------------------------------------------------------


def test_linear_gaussian_closed_form() -> None:
    """ℓ = ½ |Wx + b − t|²: F_W = mean (r² xᵀ²) with residuals r, F_b = mean r²."""
    linear = nn.Linear(FEATURES, 3).double()
    x, t = randn(20, FEATURES), randn(20, 3)
    residuals = (linear(x) - t).detach()
    expected = {"weight": residuals.square().T @ x.square() / 20, "bias": residuals.square().mean(0)}
    assert_same(diagonal_fisher(linear, [(x, t)], squared_error), expected)


def softmax_regression() -> tuple[nn.Linear, Tensor, Fisher]:
    """F_{W, c j} = mean p_c (1 − p_c) x_j², F_{b, c} = mean p_c (1 − p_c)."""
    linear = nn.Linear(FEATURES, CLASSES).double()
    x = randn(20, FEATURES)
    p = linear(x).softmax(-1).detach()
    variance = p * (1 - p)
    return linear, x, {"weight": variance.T @ x.square() / 20, "bias": variance.mean(0)}


def test_softmax_regression_closed_form() -> None:
    linear, x, expected = softmax_regression()
    assert_same(diagonal_fisher(linear, [(x, labels(20))], F.cross_entropy, "exact"), expected)


def test_monte_carlo_converges_to_exact() -> None:
    """The error shrinks like 1/√n: √(mean squared error) · √n is the same for all n, up to its own noise."""
    linear, x, expected = softmax_regression()
    generator = torch.Generator().manual_seed(0)
    scaled_errors = []
    for num_draws in (4, 64, 1024):
        repeated = x.repeat(num_draws, 1)
        errors = []
        for _ in range(8):
            batches = [(repeated, labels(len(repeated)))]
            found = diagonal_fisher(linear, batches, F.cross_entropy, "monte_carlo", generator=generator)
            errors.append(torch.cat([(found[name] - expected[name]).flatten() for name in expected]))
        scaled_errors.append(torch.stack(errors).square().mean().mul(num_draws).sqrt().item())
        bias = torch.stack(errors).mean(0)
        assert bias.abs().max() < 5 * torch.stack(errors).std() / math.sqrt(8)
    assert max(scaled_errors) < 1.5 * min(scaled_errors)


def test_monte_carlo_of_a_sequence_is_that_of_its_sum_over_steps() -> None:
    """Softmax regression on two steps: the labels are independent, so that the variances of the steps add up."""
    linear, x, _ = softmax_regression()
    x = x.view(10, 2, FEATURES)
    p = linear(x).softmax(-1).detach()
    expected = ((p * (1 - p)).unsqueeze(-1) * x.unsqueeze(-2).square()).sum(1).mean(0)

    def summed(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    batches = [(x.repeat(2000, 1, 1), labels(20000, 2))]
    found = diagonal_fisher(linear, batches, summed, "monte_carlo")["weight"]
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.01)


@pytest.mark.parametrize("kind", ["monte_carlo", "exact"])
def test_a_label_that_is_ignored_stays_ignored(kind: str) -> None:
    linear, x, _ = softmax_regression()
    targets = labels(20).where(torch.arange(20) < 5, -100)

    def masked(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, ignore_index=-100, reduction="sum")

    found = diagonal_fisher(linear, [(x, targets)], masked, kind)
    first = diagonal_fisher(linear, [(x[:5], targets[:5])], masked, kind)
    assert_same(found, {name: value * 5 / 20 for name, value in first.items()})


def test_class_dim_says_where_the_classes_lie() -> None:
    class ClassesFirst(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).movedim(-1, 1)  # (B, C, T)

    linear = nn.Linear(FEATURES, CLASSES).double()
    x, targets = randn(BATCH, STEPS, FEATURES), labels(BATCH, STEPS)
    found = diagonal_fisher(ClassesFirst(linear), [(x, targets)], F.cross_entropy, "monte_carlo", class_dim=1)
    last = diagonal_fisher(linear, [(x, targets)], token_cross_entropy, "monte_carlo")
    assert_same(found, {f"linear.{name}": value for name, value in last.items()})


# ---- invariances -----------------------------------------------------------------------------------------------------


def in_batches(inputs: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(inputs.split(size), targets.split(size), strict=True)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("case", **named([LAYER_CASES[0], GENERAL_CASES[0], GENERAL_CASES[3]]))
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_the_batch_size_does_not_matter(case: Case, size: int, kind: str) -> None:
    model, inputs, targets = case.build()
    whole = diagonal_fisher(model, [(inputs, targets)], case.loss_fn, kind)
    assert_same(diagonal_fisher(model, in_batches(inputs, targets, size), case.loss_fn, kind), whole, 1e-12)


def test_the_batch_size_does_not_matter_to_monte_carlo() -> None:
    """With a model whose gradient is the same for each label, there is nothing random left."""
    linear = nn.Linear(FEATURES, 2).double()
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)  # p = ½: both labels give gradients ± ½ x
    x, targets = randn(12, FEATURES), torch.zeros(12, dtype=torch.long)
    for size in (1, 5, 12):
        found = diagonal_fisher(linear, in_batches(x, targets, size), F.cross_entropy, "monte_carlo")
        torch.testing.assert_close(found["weight"], x.square().mean(0).expand(2, -1) / 4)


def test_the_batch_size_matters_to_the_square_of_the_batch_mean() -> None:
    """It shrinks like 1/B where the examples' gradients are independent with mean 0."""
    linear = nn.Linear(FEATURES, 2).double()
    nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
    x, targets = randn(1024, FEATURES), torch.randint(2, (1024,))
    mean = {
        size: diagonal_fisher(linear, in_batches(x, targets, size), F.cross_entropy, "batch")["weight"].mean().item()
        for size in (1, 16)
    }
    empirical = diagonal_fisher(linear, [(x, targets)], F.cross_entropy)["weight"].mean().item()
    assert mean[1] == pytest.approx(empirical)
    assert mean[16] == pytest.approx(empirical / 16, rel=0.3)


@pytest.mark.parametrize("case", **named([LAYER_CASES[0], GENERAL_CASES[0]]))
def test_the_order_of_the_data_does_not_matter(case: Case) -> None:
    model, inputs, targets = case.build()
    order = torch.randperm(BATCH)
    found = diagonal_fisher(model, in_batches(inputs[order], targets[order], 3), case.loss_fn)
    assert_same(found, diagonal_fisher(model, in_batches(inputs, targets, 3), case.loss_fn), 1e-12)


def test_the_order_of_the_parameters_does_not_matter() -> None:
    class Reordered(nn.Module):
        def __init__(self, inner: FunctionalWeight) -> None:
            super().__init__()
            self.outer, self.inner = inner.outer, inner.inner

        forward = FunctionalWeight.forward

    model = FunctionalWeight().double()
    inputs, targets = features(), labels()
    found = diagonal_fisher(Reordered(model), [(inputs, targets)], F.cross_entropy)
    expected = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    assert list(found) != list(expected)
    assert_same(found, expected, 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["empirical", "exact", "batch"])
def test_the_device_does_not_matter(kind: str) -> None:
    for case in (LAYER_CASES[0], GENERAL_CASES[0], conv_case("conv", IMAGE, lambda: [nn.Conv2d(2, 3, 3)])):
        model, inputs, targets = case.build()
        expected = diagonal_fisher(model, [(inputs, targets)], case.loss_fn, kind)
        found = diagonal_fisher(copy.deepcopy(model).cuda(), [(inputs.cuda(), targets.cuda())], case.loss_fn, kind)
        assert all(value.is_cuda for value in found.values())
        assert_same({name: value.cpu() for name, value in found.items()}, expected, 1e-8)


@pytest.mark.parametrize("batches", ["a list", "a generator"])
def test_batches_may_be_a_one_shot_generator(batches: str) -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    given = in_batches(inputs, targets, 2)
    found = diagonal_fisher(model, given if batches == "a generator" else list(given), F.cross_entropy)
    assert_same(found, diagonal_fisher(model, [(inputs, targets)], F.cross_entropy))


def test_chunks_of_examples_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    for case in (LAYER_CASES[15], *GENERAL_CASES[:1], conv_case("conv", IMAGE, lambda: [nn.Conv2d(2, 3, 3)])):
        model, inputs, targets = case.build()
        whole = diagonal_fisher(model, [(inputs, targets)], case.loss_fn, "empirical")
        with monkeypatch.context() as small:
            small.setattr(request, "_CHUNK_NUMBERS", 120)
            assert_same(diagonal_fisher(model, [(inputs, targets)], case.loss_fn, "empirical"), whole, 1e-12)


# ---- the choice of the method ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["empirical", "exact", "monte_carlo"])
def test_a_convnet_and_a_language_model_take_the_fast_path(kind: str, paths: list[str]) -> None:
    convnet, images, targets = next(c for c in LAYER_CASES if c.name == "BatchNorm2d").build()
    diagonal_fisher(convnet, [(images, targets)], F.cross_entropy, kind)
    if kind != "exact":
        tokens = words(BATCH, STEPS)
        diagonal_fisher(TiedLanguageModel().double(), [(tokens, tokens)], token_cross_entropy, kind)
    assert set(paths) == {"by_layer"}


def test_examples_that_are_fitted_perfectly_do_not_hide_a_model_that_is_not_understood(paths: list[str]) -> None:
    model = FunctionalWeight().double()
    inputs, targets = features(), labels()
    weights = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)  # no loss on those checked
    stacked = torch.cat([inputs, weights.unsqueeze(1)], 1)

    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.inner(x[:, :-1]), x[:, -1:]], 1)

    def loss_fn(outputs: Tensor, target: Tensor) -> Tensor:
        return (F.cross_entropy(outputs[:, :-1], target, reduction="none") * outputs[:, -1]).sum()

    found = diagonal_fisher(Weighted(), [(stacked, targets)], loss_fn)
    expected = reference.diagonal_fisher(Weighted(), [(stacked, targets)], loss_fn)
    assert_same(found, expected)
    assert paths == ["by_vmap"]


def test_a_first_batch_of_one_example_does_not_hide_that_examples_are_mixed(paths: list[str]) -> None:
    """One example by itself is centred to 0, as the general path sees each; the fast path would see a batch's mean."""

    class Centred(nn.Linear):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x - x.mean(0) + 1)

    model, inputs, targets = Model().double(), features(), labels()
    batches = [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]
    found = diagonal_fisher(model, batches, F.cross_entropy)
    assert_same(found, reference.diagonal_fisher(model, batches, F.cross_entropy))
    assert paths == ["by_vmap"]


def test_a_later_batch_may_take_another_way_through_the_model(paths: list[str]) -> None:
    class LongSequencesTimeFirst(TimeFirst):
        def forward(self, tokens: Tensor) -> Tensor:
            if tokens.shape[1] > 2:
                return super().forward(tokens)
            return self.decoder(self.mix(self.embedding(tokens))).sum(1)

    model = LongSequencesTimeFirst().double()
    batches = [(words(BATCH, 2), labels()), (words(BATCH, STEPS), labels())]
    found = diagonal_fisher(model, batches, F.cross_entropy)
    assert_same(found, reference.diagonal_fisher(model, batches, F.cross_entropy))
    assert paths == ["by_layer", "by_vmap"]


# ---- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_is_summed_in_float32_on_the_fast_path(dtype: torch.dtype, paths: list[str]) -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    expected = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    found = diagonal_fisher(model.to(dtype), [(inputs.to(dtype), targets)], F.cross_entropy)
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert paths == ["by_layer", "by_layer"]
    for name in expected:
        error = (found[name] - expected[name]).abs().max() / expected[name].max()
        assert error < {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]


@pytest.mark.parametrize("general", [False, True], ids=["layers", "general"])
def test_small_half_precision_gradients_do_not_vanish_when_squared(
    general: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if general:
        without_fast_path(monkeypatch)
    linear = nn.Linear(1, 1, bias=False).half()
    nn.init.zeros_(linear.weight)
    batches = [(torch.ones(4, 1).half(), torch.full((4, 1), 1e-4).half())]  # gradients of −1e-4
    found = diagonal_fisher(linear, batches, squared_error)["weight"]
    torch.testing.assert_close(found, torch.tensor([[1e-8]]), rtol=0.01, atol=0)


def test_autocast_takes_the_fast_path(paths: list[str]) -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    model, inputs = model.float(), inputs.float()
    expected = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    assert paths == ["by_layer", "by_layer"]
    for name in expected:
        assert (found[name] - expected[name]).abs().max() < 0.1 * expected[name].max()


# ---- which parameters ------------------------------------------------------------------------------------------------


def test_frozen_parameters_are_absent() -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    whole = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    model[0].requires_grad_(False)
    model[2].bias.requires_grad_(False)
    found = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    assert list(found) == ["2.weight", "4.weight", "4.bias"]
    assert_same(found, {name: whole[name] for name in found})


@pytest.mark.parametrize("case", **named([LAYER_CASES[0], GENERAL_CASES[0]]))
def test_parameters_restricts_the_result_by_identity(case: Case, paths: list[str]) -> None:
    model, inputs, targets = case.build()
    whole = diagonal_fisher(model, [(inputs, targets)], case.loss_fn)
    last = list(model.children())[-1]
    others = nn.Linear(FEATURES, CLASSES)
    found = diagonal_fisher(
        model, [(inputs, targets)], case.loss_fn, parameters=iter([*others.parameters(), *last.parameters()])
    )
    assert len(found) == 2
    assert_same(found, {name: whole[name] for name in found}, 1e-12)
    # A layer that no method needs to look into does not stand in the way of the fast path.
    assert paths[1] == "by_layer"


def test_a_tied_weight_has_one_entry_by_its_first_name() -> None:
    model = TiedLanguageModel().double()
    tokens = words(BATCH, STEPS)
    found = diagonal_fisher(model, [(tokens, tokens)], token_cross_entropy)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert "decoder.weight" not in found


def test_a_weight_that_the_output_does_not_depend_on_has_importance_zero() -> None:
    model, inputs, targets = next(c for c in LAYER_CASES if c.name == "layer unused").build()
    found = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    assert not found["unused.weight"].any()
    assert found["used.weight"].all()


# ---- what is left alone ----------------------------------------------------------------------------------------------


def everything_about(model: nn.Module) -> dict[str, object]:
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "gradients": {
            name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in model.named_parameters()
        },
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "random": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
    }


def equal(left: object, right: object) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, tuple) and isinstance(right, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def model_in_mixed_modes(general: bool) -> nn.Module:
    layers = [nn.Conv2d(2, 3, 3), with_statistics(nn.BatchNorm2d(3)), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(4)]
    if general:
        layers.insert(0, nn.InstanceNorm2d(2, affine=True))
    model = nn.Sequential(*layers)
    model(torch.zeros(1, *IMAGE))
    model = model.double().train()
    model[1].eval()
    model[-1].eval()
    model[-1].bias.requires_grad_(False)
    model(randn(BATCH, *IMAGE)).sum().backward()
    next(model.parameters()).grad = None
    return model


@pytest.mark.parametrize("general", [False, True], ids=["layers", "general"])
@pytest.mark.parametrize("kind", ["empirical", "monte_carlo", "exact", "batch"])
def test_the_model_and_the_random_state_are_left_alone(kind: str, general: bool, paths: list[str]) -> None:
    model = model_in_mixed_modes(general)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(randn(BATCH, *IMAGE), labels()), batch_size=5, shuffle=True
    )
    before = everything_about(model)
    found = diagonal_fisher(model, loader, F.cross_entropy, kind)
    after = everything_about(model)
    for what in before:
        assert equal(before[what], after[what]), what
    assert all(not value.requires_grad for value in found.values())
    assert set(paths) == (set() if kind == "batch" else {"by_vmap" if general else "by_layer"})


@pytest.mark.parametrize("where", ["in the batches", "in the loss"])
def test_the_model_is_left_alone_after_an_error(where: str) -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield randn(BATCH, *IMAGE), labels()
        if where == "in the batches":
            raise RuntimeError("no more data")

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    model = model_in_mixed_modes(general=False)
    before = everything_about(model)
    with pytest.raises(RuntimeError, match=r"no more data|no loss"):
        diagonal_fisher(model, batches(), F.cross_entropy if where == "in the batches" else loss_fn)
    after = everything_about(model)
    for what in before:
        assert equal(before[what], after[what]), what


def test_gradients_are_computed_where_they_are_switched_off() -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    expected = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    with torch.no_grad():
        assert_same(diagonal_fisher(model, [(inputs, targets)], F.cross_entropy), expected)


def test_the_model_is_evaluated_in_eval_mode() -> None:
    model, inputs, targets = next(c for c in LAYER_CASES if c.name == "mlp, dropout").build()
    trained = diagonal_fisher(model.train(), [(inputs, targets)], F.cross_entropy)
    assert_same(trained, diagonal_fisher(model.eval(), [(inputs, targets)], F.cross_entropy))


def test_the_labels_of_monte_carlo_come_from_the_generator() -> None:
    model, inputs, targets = LAYER_CASES[0].build()

    def fisher(generator: torch.Generator | None) -> Tensor:
        found = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, "monte_carlo", generator=generator)
        return found["0.weight"]

    generator = torch.Generator().manual_seed(1)
    first, second = fisher(generator), fisher(generator)
    assert not torch.equal(first, second)
    assert torch.equal(first, fisher(torch.Generator().manual_seed(1)))
    copied = fisher(None)
    assert torch.equal(copied, fisher(None))
    assert torch.equal(copied, fisher(torch.Generator().manual_seed(0).set_state(torch.get_rng_state())))
    torch.randn(3)
    assert not torch.equal(copied, fisher(None))


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected kind of Fisher to be one of .*'empirical'"):
        diagonal_fisher(mlp(), [], F.cross_entropy, "emprical")


@pytest.mark.parametrize("batches", [[], iter(()), [(torch.zeros(0, FEATURES), torch.zeros(0, dtype=torch.long))]])
def test_no_examples_are_refused(batches: object) -> None:
    with pytest.raises(ValueError, match="Expected at least one example"):
        diagonal_fisher(mlp(), batches, F.cross_entropy)


def test_an_empty_batch_among_others_counts_nothing() -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    found = diagonal_fisher(model, [(inputs[:0], targets[:0]), (inputs, targets)], F.cross_entropy)
    assert_same(found, diagonal_fisher(model, [(inputs, targets)], F.cross_entropy), 1e-12)


@pytest.mark.parametrize("parameters", [[], [torch.zeros(3)]])
def test_a_model_that_holds_none_of_the_parameters_is_refused(parameters: list[Tensor]) -> None:
    with pytest.raises(ValueError, match="Expected a model that holds weights to compute the Fisher of"):
        diagonal_fisher(mlp(), [(features(), labels())], F.cross_entropy, parameters=parameters)


def test_inputs_and_targets_of_different_lengths_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"examples along dim 0, but got inputs of shape \(6, 7\) and targets .*\(7,\)"
    ):
        diagonal_fisher(TimeFirst().double(), [(words(STEPS, BATCH), labels())], F.cross_entropy)


@pytest.mark.parametrize("where", [0, BATCH - 1], ids=["first example", "last example"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("kind", ["empirical", "exact", "batch"])
def test_a_gradient_that_is_not_finite_is_refused_by_name(kind: str, value: float, where: int) -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    inputs[where, 2] = value
    with pytest.raises(ValueError, match=r"Expected finite gradients .* inf or nan in parameter '0.weight'"):
        diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind)


def test_an_infinite_gradient_that_the_fast_path_does_not_see_is_refused() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.unseen = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            large = 1e200 * F.linear(x, self.unseen.weight)
            return self.seen(x) + (large - large.detach())  # adds nothing but a gradient

    model = Model().double()
    with pytest.raises(ValueError, match=r"inf or nan in parameter 'unseen.weight'"):
        diagonal_fisher(model, [(features(), labels())], F.cross_entropy)


def test_kinds_that_do_not_fit_the_targets_are_refused() -> None:
    model, inputs, targets = LAYER_CASES[0].build()
    for kind in ("monte_carlo", "exact"):
        with pytest.raises(ValueError, match=f"Expected a loss whose likelihood can be told for kind='{kind}'"):
            diagonal_fisher(model, [(inputs, randn(BATCH, CLASSES))], F.smooth_l1_loss, kind)
        with pytest.raises(ValueError, match=f"Expected class logits and integer targets for kind='{kind}'"):
            diagonal_fisher(model, [(inputs, randn(BATCH))], lambda o, t: F.mse_loss(o.sum(1), t), kind)
    tokens = words(BATCH, STEPS)
    with pytest.raises(ValueError, match="Expected one label per example for kind='exact'"):
        diagonal_fisher(TiedLanguageModel().double(), [(tokens, tokens)], token_cross_entropy, "exact")
    with pytest.raises(ValueError, match=r"per target of shape \(7,\), but got \(4, 7\). Set class_dim"):
        diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, "monte_carlo", class_dim=0)


@pytest.mark.parametrize("batches", [(torch.ones(4, 2), torch.zeros(4).long()), [{"inputs": 1}], [(1, 2, 3)]])
def test_what_is_no_pair_is_told(batches):
    with pytest.raises(ValueError, match=r"Expected batches to be an iterable of pairs \(inputs, targets\)"):
        diagonal_fisher(nn.Linear(2, 3), batches, F.cross_entropy)


# ---- from training batches -------------------------------------------------------------------------------------------


def added(model: nn.Module, batches: list[Tensor]) -> TrainingFisher:
    """The estimate from batches on which the loss is the mean output."""
    estimate = TrainingFisher(dict(model.named_parameters()))
    for inputs in batches:
        model.zero_grad()
        model(inputs).mean().backward()
        estimate.add()
    return estimate


@pytest.mark.parametrize("size", [1, 5])
def test_the_estimate_from_training_is_the_formula_of_the_batches_gradients(size: int) -> None:
    batches = [randn(size, FEATURES) for _ in range(4)]
    gradients = torch.stack([inputs.mean(0) for inputs in batches])
    expected = (size - 1 / 4) * gradients.var(0) + gradients.mean(0).square()
    found = added(nn.Linear(FEATURES, 1).double(), batches).fisher(size)
    torch.testing.assert_close(found["weight"], expected.unsqueeze(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["bias"], torch.ones(1).double(), rtol=1e-12, atol=1e-12)


def test_of_batches_of_one_example_the_estimate_from_training_is_the_empirical_fisher() -> None:
    model, inputs = nn.Linear(FEATURES, 1).double(), randn(6, FEATURES)
    found = added(model, list(inputs.split(1))).fisher(1)
    expected = diagonal_fisher(model, [(inputs, torch.zeros(6))], lambda outputs, _: outputs.mean())
    assert_same(found, expected)


def test_of_fewer_than_two_batches_there_is_no_estimate_from_training() -> None:
    model = nn.Linear(FEATURES, 1).double()
    for num_batches in (0, 1):
        estimate = added(model, [randn(2, FEATURES)] * num_batches)
        assert not estimate.suffice
        assert estimate.fisher(2) == {}


def test_an_estimate_from_training_is_of_the_weights_that_the_loss_depends_on() -> None:
    model = nn.ModuleDict({"used": nn.Linear(2, 1), "unused": nn.Linear(2, 1)})
    model.forward = model["used"].forward
    found = added(model, [torch.ones(3, 2), torch.zeros(3, 2)]).fisher(3)
    assert found.keys() == {"used.weight", "used.bias"}


def test_an_estimate_from_training_refuses_gradients_of_other_weights_and_impossible_batches() -> None:
    model = nn.Linear(FEATURES, 1).double()
    estimate = added(model, [randn(2, FEATURES), randn(2, FEATURES)])
    before = estimate.fisher(2)
    model.bias.grad = None
    with pytest.raises(
        ValueError, match="Expected gradients of the same weights in every batch, but got 'bias' in some"
    ):
        estimate.add()
    assert_same(estimate.fisher(2), before, 0)
    with pytest.raises(ValueError, match="Expected batch_size to be at least 1, but got 0"):
        estimate.fisher(0)
