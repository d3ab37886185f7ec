"""What training loops do to shared weights beside a step: buffers, parts, replacements, averages, other types."""

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.plasticity.merging import used_part

RULES = ["replace", "sum", "joint", "ema", "merge"]


def ones(model: nn.Module, value: float = 1.0) -> dict[str, Tensor]:
    return {name: torch.full_like(p, value) for name, p in model.named_parameters()}


def warnings_of(act: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    return [str(warning.message) for warning in caught]


class Weight(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


# ---- buffers of shared modules -------------------------------------------------------------------------------------


class Scaler(nn.Module):
    """Divides by a running size of its inputs: state that trains, without a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("size", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.size.lerp_(x.detach().abs().mean(), 0.1)
        return x / self.size


def two_models(state: str) -> tuple[nn.Module, nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = {"batchnorm": nn.BatchNorm1d(8), "batchnorm without weights": nn.BatchNorm1d(8, affine=False)}
    trunk = nn.Sequential(nn.Linear(4, 8), layer.get(state) or Scaler(), nn.ReLU())
    x = torch.randn(64, 4)
    a, b = nn.Sequential(trunk, nn.Linear(8, 2)), nn.Sequential(trunk, nn.Linear(8, 2))
    for _ in range(30):
        a(x)
    return trunk, a.eval(), b, x, (x[:, 0] > 0).long()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, num_steps: int = 30) -> None:
    model.train()
    for _ in range(num_steps):
        optimizer.zero_grad()
        F.cross_entropy(model(4 * x + 5), y).backward()
        optimizer.step()
    model.eval()


every_state = pytest.mark.parametrize("state", ["batchnorm", "batchnorm without weights", "scaler"])


@every_state
@pytest.mark.parametrize("alpha", [1e12, 0.0])
def test_buffers_of_shared_modules_are_held(state: str, alpha: float) -> None:
    trunk, a, b, x, y = two_models(state)
    plasticity = WeightPlasticity(trunk, alpha=alpha, damping=0.1)
    plasticity.consolidate(a, diagonal_fisher(a, [(x, y)], F.cross_entropy))
    before, buffers = a(x).detach(), [buffer.clone() for buffer in trunk.buffers() if buffer.is_floating_point()]
    plasticity.attach(optimizer := SGD(b.parameters(), 0.1))
    with pytest.warns(UserWarning, match=r"Buffers of shared modules .* are held") as caught:
        train(b, optimizer, x, y)
    assert len(caught) == 1
    assert caught[0].filename.endswith("torch/optim/optimizer.py") or caught[0].filename == __file__
    found = [buffer for buffer in trunk.buffers() if buffer.is_floating_point()]
    assert all(torch.equal(left, right) for left, right in zip(found, buffers, strict=True))
    if alpha:
        torch.testing.assert_close(a(x), before, rtol=0, atol=1e-4)


@every_state
def test_each_model_has_its_own_buffers_in_the_context(state: str) -> None:
    """B trains as it would alone, and A computes what it did, without a warning."""
    trunk, a, b, x, y = two_models(state)
    twin = copy.deepcopy(b)
    train(twin, SGD(twin[1].parameters(), 0.1), x, y)
    plasticity = WeightPlasticity(trunk, alpha=1.0)
    plasticity.consolidate(a, ones(a))
    before = a(x).detach()
    plasticity.attach(SGD(trunk.parameters(), 0.0))
    optimizer = SGD(b[1].parameters(), 0.1)
    with plasticity.buffers_of(b):
        train(b, optimizer, x, y, 15)
        with plasticity.buffers_of(a):
            assert torch.equal(a(x), before)
    assert torch.equal(a(x), before)
    with plasticity.buffers_of(b):
        train(b, optimizer, x, y, 15)
        right = twin(4 * x + 5)
        torch.testing.assert_close(b(4 * x + 5), right)
        plasticity.consolidate(b, ones(b))
    assert torch.equal(a(x), before)
    assert not torch.allclose(b(4 * x + 5), right)
    with plasticity.buffers_of(b):
        torch.testing.assert_close(b(4 * x + 5), right)
    with plasticity.buffers_of(nn.ModuleList([a])):  # a wrapper of it
        assert torch.equal(a(x), before)


def test_the_first_model_may_train_in_its_context() -> None:
    trunk, a, _, x, y = two_models("batchnorm")
    plasticity = WeightPlasticity(trunk)
    with plasticity.buffers_of(a):
        train(a, SGD(a.parameters(), 0.1), x, y, 5)
        before = a(x).detach()
        plasticity.consolidate(a, ones(a))
    assert torch.equal(a(x), before)
    trunk[1].running_mean.add_(1.0)
    with plasticity.buffers_of(nn.Linear(1, 1)):  # of nobody: as they are, then held
        assert not torch.equal(a(x), before)
    assert torch.equal(a(x), before)


def test_buffers_are_saved_moved_and_copied_with_the_rest() -> None:
    trunk, a, *_ = two_models("batchnorm")
    plasticity = WeightPlasticity([trunk[0].bias, trunk])
    plasticity.consolidate(a, ones(a))
    mean = trunk[1].running_mean.clone()
    copied = copy.deepcopy(plasticity)
    state = pickle.loads(pickle.dumps(plasticity.state_dict()))
    other = WeightPlasticity([trunk[0].bias, trunk])
    other.load_state_dict(state)
    for held in (copied, other, plasticity.to(dtype=torch.float32)):
        values = held.state_dict()["buffers"]
        assert len(values) == 2
        assert torch.equal(values[0], mean)
        assert held.shared_parameters[0].shape == (8,)
    other.load_state_dict({key: value for key, value in state.items() if key not in {"buffers", "used"}})
    with pytest.raises(ValueError, match="Expected the state of 2 buffers of shared modules, but got 1, or others"):
        other.load_state_dict(state | {"buffers": [mean]})
    plasticity.reset()
    trunk[1].running_mean.add_(1.0)
    plasticity.attach(optimizer := SGD(trunk.parameters(), 0.1))
    optimizer.step()
    assert torch.equal(trunk[1].running_mean, mean + 1)


@every_state
def test_parameters_alone_warn_of_buffers_beside_them(state: str) -> None:
    trunk, a, b, x, y = two_models(state)
    plasticity = WeightPlasticity(trunk.parameters(), alpha=1e12)
    plasticity.attach(optimizer := SGD(b.parameters(), 0.1))

    def act() -> None:
        plasticity.consolidate(a, ones(a))
        train(b, optimizer, x, y)
        plasticity.consolidate(b, ones(b))

    (message,) = warnings_of(act)
    name = "Scaler.size" if state == "scaler" else "BatchNorm1d.running_mean"
    assert message.startswith(f"forgetless holds the shared parameters, but {name} beside them is changed by training")


def test_constants_and_private_statistics_do_not_warn() -> None:
    trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    trunk.register_buffer("scale", torch.ones(8))
    a, b = (nn.Sequential(trunk, nn.BatchNorm1d(8), nn.Linear(8, 2)) for _ in range(2))
    x, y = torch.randn(16, 4), torch.zeros(16).long()
    a(x)
    plasticity = WeightPlasticity(trunk.parameters())
    plasticity.consolidate(a, ones(a))
    plasticity.attach(optimizer := SGD(b.parameters(), 0.1))
    train(b, optimizer, x, y)


# ---- parts of a tensor ---------------------------------------------------------------------------------------------


def reference_rule(rule: str, old: float, at: float, new: float, theta: float, decay: float, *, first: bool) -> tuple:
    """(F, θ̂) of one weight after one more model that used it; the table of the class, one number at a time."""
    if first or rule == "replace":
        return new, theta
    if rule == "sum":
        return old + new, theta
    if rule == "ema":
        return decay * old + (1 - decay) * new, theta
    kept = old if rule == "joint" else decay * old
    return kept + new, (kept * at + new * theta) / (kept + new)


@pytest.mark.parametrize("how", ["masks", "zeros"])
@pytest.mark.parametrize("rule", RULES)
def test_outside_of_the_part_that_a_model_uses_nothing_changes(rule: str, how: str) -> None:
    """Widths 4, 2, 3, 1 of a 4 × 4 matrix, against the rules one number at a time."""
    torch.manual_seed(0)
    model = Weight(torch.randn(4, 4).double())
    plasticity = WeightPlasticity(model.parameters(), rule=rule, decay=0.7, damping=0.5)
    expected: dict[tuple[int, int], tuple[float, float]] = {}
    for width in (4, 2, 3, 1):
        with torch.no_grad():
            model.weight.normal_()
        theta, value, mask = model.weight.detach().clone(), torch.rand(4, 4).double() + 0.1, torch.zeros(4, 4).bool()
        mask[:width, :width] = True
        value = value * mask
        floor = 0.5 * float(value[mask].mean())
        plasticity.consolidate(model, {"weight": value}, where={"weight": mask} if how == "masks" else None)
        for i in range(width):
            for j in range(width):
                old = expected.get((i, j))
                arguments = (0.0, 0.0) if old is None else old
                expected[i, j] = reference_rule(
                    rule, *arguments, float(value[i, j]) + floor, float(theta[i, j]), 0.7, first=old is None
                )
        for (i, j), (importance, anchor) in expected.items():
            assert float(plasticity.importance(model.weight)[i, j]) == pytest.approx(importance)
            assert float(plasticity.anchor(model.weight)[i, j]) == pytest.approx(anchor)
        assert torch.equal(model.weight.detach()[~mask], theta[~mask])


@pytest.mark.parametrize("rule", RULES)
def test_what_no_model_used_is_free_though_there_is_damping(rule: str) -> None:
    """Growing widths: the part that comes is the first of its kind, and F is not a mean with nothing."""
    model = Weight(torch.zeros(3))
    plasticity = WeightPlasticity(model.parameters(), rule=rule, damping=1.0, alpha=1e9)
    narrow, wide = torch.tensor([True, False, False]), torch.tensor([True, True, False])
    plasticity.consolidate(model, {"weight": torch.tensor([2.0, 9.0, 9.0])}, where={"weight": narrow})
    assert plasticity.importance(model.weight).tolist() == [4.0, 0.0, 0.0]
    saved = plasticity.state_dict()
    plasticity = WeightPlasticity(model.parameters())
    plasticity.load_state_dict(saved)
    nn.init.ones_(model.weight)
    plasticity.consolidate(model, {"weight": torch.tensor([2.0, 4.0, 0.0])}, where={"weight": wide})
    assert plasticity.importance(model.weight).tolist()[1:] == [7.0, 0.0]
    assert plasticity.anchor(model.weight).tolist()[1] == 1.0
    plasticity.attach(optimizer := SGD(model.parameters(), lr=1.0))
    model.weight.grad = torch.tensor([0.0, 0.0, -1.0])
    optimizer.step()
    assert model.weight.tolist()[2] == 2.0
    plasticity.consolidate(model, {"weight": torch.ones(3)})  # all of it: nothing is left out any more
    assert plasticity.state_dict()["used"] == [None]


def test_importance_outside_of_a_width_does_not_fade_under_twenty_narrow_models() -> None:
    model = Weight(torch.ones(4))
    plasticity = WeightPlasticity(model.parameters(), rule="ema")
    plasticity.consolidate(model, {"weight": torch.full((4,), 0.41)})
    for _ in range(20):
        plasticity.consolidate(model, {"weight": torch.tensor([0.41, 0.41, 0.0, 0.0])})
    torch.testing.assert_close(plasticity.importance(model.weight), torch.full((4,), 0.41))


def test_rows_of_an_embedding_that_did_not_occur_keep_anchor_and_importance() -> None:
    table = nn.Embedding(3, 2)
    plasticity = WeightPlasticity(table)
    plasticity.consolidate(table, ones(table))
    before = table.weight.detach().clone()
    nn.init.zeros_(table.weight)
    plasticity.consolidate(table, {"weight": torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 3.0]])})
    assert torch.equal(plasticity.anchor(table.weight)[1], before[1])
    assert plasticity.anchor(table.weight)[0].tolist() == [0.0, 0.0]  # a zero in a row that occurs is a number
    assert plasticity.importance(table.weight).tolist() == [[2, 1], [1, 1], [1, 4]]


def test_a_silent_unit_of_the_first_model_is_damped() -> None:
    """Its F is 0 throughout, too, and waking it would change the model."""
    model = Weight(torch.zeros(2, 2))
    plasticity = WeightPlasticity(model.parameters(), damping=0.5)
    plasticity.consolidate(model, {"weight": torch.tensor([[1.0, 1.0], [0.0, 0.0]])})
    assert plasticity.importance(model.weight).tolist() == [[1.25, 1.25], [0.25, 0.25]]


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 2, 2)])
def test_the_used_part_is_what_no_zero_slice_covers(shape: tuple[int, ...]) -> None:
    for seed in range(20):
        value = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.7).float()
        right = torch.ones(shape, dtype=torch.bool)
        for dim, size in enumerate(shape):
            for k in range(size):
                if not value.select(dim, k).any():
                    right.select(dim, k).fill_(False)
        if not shape:
            right = value != 0
        found = used_part(value)
        assert torch.equal(torch.ones(shape, dtype=torch.bool) if found is None else found, right)


def test_bad_masks_are_refused_and_nothing_is_changed() -> None:
    model = Weight(torch.ones(2, 3))
    plasticity = WeightPlasticity(model.parameters())
    for where, words in (
        ({"weights": torch.ones(2, 3).bool()}, "Expected masks by the parameter names of the model, but got 'weights'"),
        (
            {"weight": torch.ones(2, 3)},
            r"Expected a boolean mask of 'weight' for its shape \(2, 3\), but got torch.float32",
        ),
        ({"weight": torch.ones(2).bool()}, r"but got torch.bool in \(2,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            plasticity.consolidate(model, ones(model), where=where)
        assert plasticity.anchor(model.weight) is None
    plasticity.consolidate(model, ones(model), where={"weight": torch.tensor([[True], [False]])})  # expands
    assert plasticity.importance(model.weight).tolist() == [[1, 1, 1], [0, 0, 0]]


# ---- weights that were replaced, resized or moved ------------------------------------------------------------------


@pytest.mark.parametrize("given", ["module", "parameters", "parameters, consolidated before"])
def test_a_replaced_weight_is_told_of_once(given: str) -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    plasticity = WeightPlasticity(model if given == "module" else model.parameters())
    if "before" in given:
        plasticity.consolidate(model, ones(model))
    model[1] = nn.Linear(3, 4)
    (message,) = warnings_of(lambda: [plasticity.consolidate(model, ones(model)) for _ in range(2)])
    assert message.startswith("Shared weights are no longer in the model that had them (1.weight, 1.bias)")


def test_resized_embeddings_tied_to_the_output_are_told_of() -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(4, 2), "layer": nn.Linear(2, 2), "output": nn.Linear(2, 4, bias=False)}
    )
    model["output"].weight = model["table"].weight
    plasticity = WeightPlasticity(model.parameters())
    old = model["table"].weight
    model["table"] = nn.Embedding(6, 2)
    model["output"].weight = model["table"].weight
    with pytest.warns(UserWarning, match=r"no longer in the model that had them \(table.weight\)"):
        plasticity.consolidate(model, ones(model))
    plasticity.replace(old, model["table"].weight)
    plasticity.consolidate(model, ones(model))
    assert plasticity.importance(model["output"].weight).shape == (6, 2)


def test_a_replaced_weight_in_a_shared_module_is_told_of() -> None:
    trunk = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    model = nn.Sequential(trunk, nn.Linear(2, 1))
    plasticity = WeightPlasticity(trunk)
    trunk[0] = nn.Linear(2, 3)
    with pytest.warns(UserWarning, match=r"no longer in the model"):
        plasticity.consolidate(model, ones(model))


def test_models_that_use_other_parts_do_not_warn() -> None:
    layers = [nn.Linear(2, 2) for _ in range(3)]
    plasticity = WeightPlasticity(layers)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        model = nn.Sequential(layers[i], layers[j], nn.Linear(2, 2))
        plasticity.consolidate(model, ones(model))
    assert len(plasticity.shared_parameters) == 6


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(3, 4), (5, 4), (2, 4), (5, 2), (3, 6)])
def test_a_weight_in_place_of_another_takes_over_what_both_have(shape: tuple[int, int], rule: str) -> None:
    model = Weight(torch.randn(3, 4))
    plasticity = WeightPlasticity(model.parameters(), rule=rule, damping=0.5)
    plasticity.consolidate(model, ones(model))
    old, before = model.weight, model.weight.detach().clone()
    model.weight = nn.Parameter(torch.randn(shape))
    plasticity.replace(old, model.weight)
    assert plasticity.shared_parameters == (model.weight,)
    rows, columns = min(3, shape[0]), min(4, shape[1])
    right = torch.zeros(shape)
    right[:rows, :columns] = 1.5
    assert torch.equal(plasticity.importance(model.weight), right)
    assert torch.equal(plasticity.anchor(model.weight)[:rows, :columns], before[:rows, :columns])
    plasticity.attach(optimizer := Adam(model.parameters(), lr=0.1))
    model.weight.grad = torch.ones(shape)
    optimizer.step()
    plasticity.consolidate(model, ones(model))  # what is new is used for the first time
    new = plasticity.importance(model.weight)
    assert (new[rows:] == 1.5).all()
    assert (new[:, columns:] == 1.5).all()


def test_replacements_that_are_none_are_refused() -> None:
    layer = nn.Linear(2, 2)
    plasticity = WeightPlasticity(layer)
    with pytest.raises(ValueError, match=r"Expected a shared weight .* but got another weight"):
        plasticity.replace(nn.Linear(2, 2).weight, layer.weight)
    with pytest.raises(ValueError, match="but got two shared ones"):
        plasticity.replace(layer.weight, layer.bias)
    with pytest.raises(ValueError, match="Expected a weight of 2 dimensions in place of the old one, but got 1"):
        plasticity.replace(layer.weight, nn.Parameter(torch.ones(2)))


def test_a_changed_shape_is_found_before_the_step() -> None:
    model = Weight(torch.ones(2))
    plasticity = WeightPlasticity(model)
    plasticity.consolidate(model, ones(model))
    plasticity.attach(optimizer := SGD(model.parameters(), lr=1.0))
    model.weight.data = torch.ones(3)
    model.weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match=r"Expected an anchor in its weight's shape \(3,\), but got \(2,\)"):
        optimizer.step()
    assert model.weight.tolist() == [1.0, 1.0, 1.0]
    plasticity.replace(model.weight, model.weight)
    optimizer.step()
    assert model.weight.tolist()[2] == 0.0


@pytest.mark.parametrize("when", ["step", "attach", "asked"])
def test_weights_averaged_after_they_were_consolidated_are_told_of(when: str) -> None:
    model = Weight(torch.ones(3))
    plasticity = WeightPlasticity(model)
    optimizer = SGD(model.parameters(), lr=0.1)
    if when == "step":
        plasticity.attach(optimizer)
    plasticity.consolidate(model, ones(model))
    model.weight.grad = torch.zeros(3)
    with torch.no_grad():
        model.weight.mul_(0.72)

    def act() -> None:
        if when == "asked":
            plasticity.warn_if_moved()
        if when != "step":
            plasticity.attach(optimizer)
        optimizer.step()
        optimizer.step()

    (message,) = warnings_of(act)
    assert message.startswith("Shared weights have moved by 0.28 of their norm since they were consolidated")


def test_training_on_under_protection_does_not_warn() -> None:
    model = nn.Linear(2, 2)
    for rule in RULES:
        plasticity = WeightPlasticity(model, rule=rule, alpha=1e-3)
        plasticity.attach(optimizer := SGD(model.parameters(), lr=0.5))
        for _ in range(3):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            plasticity.consolidate(model, ones(model))
            plasticity.follow_weights()


# ---- other types and modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p: SGD(p, lr=0.05), lambda p: Adam(p, lr=0.02)])
def test_complex_weights_rest_where_their_parts_would(make: Any) -> None:
    torch.manual_seed(0)
    centre, importance = torch.randn(4, dtype=torch.complex128), torch.rand(4).double()
    model = Weight(torch.zeros(4, dtype=torch.complex128))
    plasticity = WeightPlasticity(model, alpha=3.0)
    plasticity.consolidate(model, {"weight": importance})
    optimizer = make(model.parameters())
    plasticity.attach(optimizer)
    for _ in range(1000):
        optimizer.zero_grad()
        (0.5 * (model.weight - centre).abs().square().sum()).backward()
        optimizer.step()
    theta = model.weight.detach()
    torch.testing.assert_close(theta, centre / (1 + 3 * importance), rtol=1e-3, atol=1e-3)
    increase = float(0.5 * (importance * theta.abs().square()).sum())
    assert plasticity.expected_increase() == pytest.approx(increase)
    penalty = plasticity.penalty()
    assert float(penalty.detach()) == pytest.approx(3 * increase)
    (gradient,) = torch.autograd.grad(penalty, model.weight)
    torch.testing.assert_close(gradient, 3 * importance * theta)
    for rule in RULES:
        again = WeightPlasticity(model, rule=rule)
        again.consolidate(model, {"weight": importance})
        again.consolidate(model, {"weight": importance})
        torch.testing.assert_close(again.anchor(model.weight), theta)
    with pytest.raises(ValueError, match=r"Expected a real importance of 'weight', but got torch\.complex128"):
        plasticity.consolidate(model, {"weight": torch.ones(4, dtype=torch.complex128)})


def test_a_tolerance_holds_complex_weights() -> None:
    model = Weight(torch.zeros(3, dtype=torch.complex64))
    plasticity = WeightPlasticity(model, tolerance=0.01)
    plasticity.consolidate(model, {"weight": torch.ones(3)})
    plasticity.attach(optimizer := SGD(model.parameters(), lr=0.1))
    for _ in range(20):
        model.weight.grad = torch.full((3,), 1 + 2j)
        optimizer.step()
    assert 0.008 <= plasticity.expected_increase() <= 0.0101
    assert float(model.weight.detach().imag.mean()) == pytest.approx(2 * float(model.weight.detach().real.mean()))


def test_anchors_taken_in_inference_mode_serve_training() -> None:
    model = nn.Linear(2, 2)
    plasticity = WeightPlasticity(model, alpha=1.0, rule="joint")
    importance = ones(model)
    with torch.inference_mode():
        plasticity.consolidate(model, importance)
        state = plasticity.state_dict()
        plasticity.load_state_dict(state)
        plasticity.to(dtype=torch.float64).to(dtype=torch.float32)
    plasticity.consolidate(model, importance)
    plasticity.penalty().backward()
    plasticity.attach(optimizer := SGD(model.parameters(), lr=1.0))
    optimizer.step()
    assert not plasticity.anchor(model.weight).is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_anchors_follow_weights_to_another_type(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 2)
    plasticity = WeightPlasticity(model)
    plasticity.consolidate(model, ones(model))
    plasticity.attach(optimizer := SGD(model.parameters(), lr=0.1))
    model.to(dtype)
    model.weight.grad = torch.zeros(2, 2, dtype=dtype)
    with pytest.raises(ValueError, match="Expected an anchor like its weight"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plasticity.follow_weights()
        optimizer.step()
    assert plasticity.anchor(model.weight).dtype == dtype
