"""The importance in people's own loops: frozen weights, other orders, containers, losses over pairs, odd models."""

from collections import UserDict
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from cases import BATCH, CLASSES, FEATURES, STEPS, BareParameter, TiedLanguageModel, features, labels, mlp, randn, words
from forgetless import diagonal_fisher, reference

Fisher = dict[str, Tensor]
MIXES = "the loss of an example in its batch is not the loss of the example alone"
NO_MEAN = "the loss of a batch is neither the mean nor the sum"
ALL_ZERO = "the importance of every weight is 0"


def assert_same(found: Fisher, expected: Fisher, tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m: f"{m}")


def without_prefix(fisher: Fisher, prefix: str) -> Fisher:
    return {name.removeprefix(prefix): value for name, value in fisher.items()}


# ---- frozen weights --------------------------------------------------------------------------------------------------


def frozen_mlp() -> tuple[nn.Sequential, Fisher, list[tuple[Tensor, Tensor]]]:
    """An MLP whose first layer is frozen, and the Fisher of all of its weights."""
    model, batches = mlp().double(), [(features(), labels())]
    expected = reference.diagonal_fisher(model, batches, F.cross_entropy)
    model[0].requires_grad_(False)
    return model, expected, batches


def test_frozen_weights_that_are_asked_for_are_computed_and_stay_frozen() -> None:
    model, expected, batches = frozen_mlp()
    for parameters in (model.parameters(), list(expected)):
        assert_same(diagonal_fisher(model, batches, F.cross_entropy, parameters=parameters), expected)
    found = diagonal_fisher(model, batches, F.cross_entropy, parameters=["0.bias", model[4].weight])
    assert_same(found, {name: expected[name] for name in ("0.bias", "4.weight")})
    assert [weight.requires_grad for weight in model.parameters()] == [False, False, True, True, True, True]
    assert all(weight.grad is None for weight in model.parameters())


def test_frozen_weights_stay_frozen_after_an_error() -> None:
    model, _, batches = frozen_mlp()
    with pytest.raises(ValueError, match="Expected logits with one row"):
        diagonal_fisher(model, batches, F.cross_entropy, "exact", class_dim=0, parameters=model.parameters())
    assert not model[0].weight.requires_grad


def test_a_tied_weight_may_be_asked_for_by_either_name() -> None:
    model, tokens = TiedLanguageModel().double(), words(BATCH, STEPS)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    found = diagonal_fisher(model, [(tokens, tokens)], loss, parameters=["decoder.weight"])
    assert_same(found, diagonal_fisher(model, [(tokens, tokens)], loss, parameters=["embedding.weight"]))
    with pytest.raises(ValueError, match=r"Expected names of the model's weights, but got 'decoder\.wait'"):
        diagonal_fisher(model, [(tokens, tokens)], loss, parameters=["decoder.wait"])


def test_frozen_weights_that_the_model_detaches_are_told() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.head = nn.Linear(FEATURES, 6).requires_grad_(False), nn.Linear(6, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.trunk(x)
            return self.head(x)

    model = Features().double()
    with pytest.warns(UserWarning, match=r"the frozen weight 'trunk\.weight' and 1 others is 0") as caught:
        diagonal_fisher(model, [(features(), labels())], F.cross_entropy, parameters=model.parameters())
    assert caught[0].filename == __file__


def test_weights_without_gradients_are_refused_by_name() -> None:
    model = nn.Linear(FEATURES, CLASSES).double()
    model.table = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"Expected weights of floating point, but got 'table' of torch\.int8"):
        diagonal_fisher(model, [(features(), labels())], F.cross_entropy, parameters=model.parameters())


# ---- models that reorder or mix examples -----------------------------------------------------------------------------


class Reorders(nn.Module):
    """Takes examples through a layer in another order the second time."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(FEATURES, FEATURES), how

    def order(self, x: Tensor) -> Tensor:
        match self.how:
            case "sorts":
                return x[:, 0].argsort()
            case "groups":
                return (x[:, 0] > 0).long().argsort(stable=True)
            case "rolls":
                return torch.arange(len(x)).roll(1)
            case _:
                return torch.arange(len(x)).flip(0)

    def forward(self, x: Tensor) -> Tensor:
        order = self.order(x)
        return self.layer(torch.tanh(self.layer(x))[order])[order.argsort()]


@pytest.mark.parametrize("num", [2, 4, 7, 50])
@pytest.mark.parametrize("how", ["sorts", "groups", "rolls", "flips"])
def test_a_model_that_reorders_its_batch_is_computed_example_by_example(how: str, num: int) -> None:
    torch.manual_seed(0)
    model, inputs, targets = Reorders(how).double(), randn(num, FEATURES), labels(num)
    inputs[:, 0] = torch.arange(num).flip(0) + 0.5
    inputs[: num - 1, 0] = inputs[: num - 1, 0].flip(0)
    inputs[: min(3, num - 1), 0] -= num  # the first are in order already, as a check of them alone would see them
    if how == "groups":
        inputs[-1, 0] = -num
    found = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    assert_same(found, reference.diagonal_fisher(model, [(inputs, targets)], F.cross_entropy))


@pytest.mark.parametrize("how", ["one moves to the end", "neighbours change places"])
def test_a_few_examples_that_move_among_many_are_found(how: str) -> None:
    class Moves(Reorders):
        def order(self, x: Tensor) -> Tensor:
            if how == "one moves to the end":
                return (x[:, 0] > 4).long().argsort(stable=True)
            return (torch.arange(len(x)) + 1.5 * (x[:, 0] > 4)).argsort(stable=True)

    torch.manual_seed(0)
    model, inputs, targets = Moves(how).double(), randn(300, FEATURES), labels(300)
    inputs[:, 0] = torch.where(torch.arange(300) == 200, 5, 0)
    batches = list(zip(inputs.split(100), targets.split(100), strict=True))
    found = diagonal_fisher(model, iter(batches), F.cross_entropy)
    assert_same(found, reference.diagonal_fisher(model, batches, F.cross_entropy))


@pytest.mark.filterwarnings("ignore:.*goes through the examples one by one")
@pytest.mark.parametrize("num_before", [1, 7])
def test_a_model_that_reorders_a_later_batch_is_found_out(num_before: int) -> None:
    class Rotates(Reorders):
        """Without an operation that takes rows by their numbers."""

        def forward(self, x: Tensor) -> Tensor:
            num = int((x[:, 0] > 0).sum()) % len(x)
            hidden = torch.tanh(self.layer(x))
            return self.layer(torch.cat([hidden[num:], hidden[:num]])).roll(num, 0)

    model = Rotates("").double()
    inputs, targets = randn(20, FEATURES), labels(20)
    equal = inputs.clone()
    equal[:, 0] = -1
    batches = [(equal, targets)] * num_before + [(inputs, targets)]
    assert_same(
        diagonal_fisher(model, batches, F.cross_entropy), reference.diagonal_fisher(model, batches, F.cross_entropy)
    )
    with pytest.raises(ValueError, match="Expected a model that keeps the examples of a batch in their order"):
        diagonal_fisher(model, iter(batches), F.cross_entropy)


def test_a_model_that_mixes_its_examples_is_told() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x - x.mean(0) + 1)

    with pytest.warns(UserWarning, match=MIXES) as caught:
        diagonal_fisher(Centred().double(), [(features(), labels())], F.cross_entropy)
    assert caught[0].filename == __file__


def test_an_input_of_the_whole_batch_that_looks_like_one_of_examples_is_told() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.layer(mask @ x).mean(1)

    inputs, mask = randn(BATCH, BATCH, FEATURES), torch.ones(BATCH, BATCH).tril().double()
    with pytest.warns(UserWarning, match=MIXES):
        diagonal_fisher(Masked().double(), [((inputs, mask), labels())], F.cross_entropy)


# ---- losses that are not of single examples --------------------------------------------------------------------------


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    outputs = F.normalize(outputs, dim=-1)
    return F.cross_entropy(5 * outputs @ outputs.T, torch.arange(len(outputs)))


def test_a_loss_over_the_pairs_of_a_batch_is_told_and_so_is_an_importance_of_0() -> None:
    with pytest.warns(UserWarning, match=NO_MEAN), pytest.warns(UserWarning, match=ALL_ZERO) as caught:
        diagonal_fisher(mlp().double(), [(features(), labels())], contrastive)
    assert all(warning.filename == __file__ for warning in caught)


def test_an_importance_of_0_is_told_whatever_the_loss() -> None:
    with pytest.warns(UserWarning, match=ALL_ZERO):
        diagonal_fisher(mlp().double(), [(features(), labels())], lambda o, t: 0 * o.sum())


def test_class_weights_under_a_mean_are_told() -> None:
    weights = torch.tensor([1.0, 5.0, 0.1, 2.0]).double()
    model, batches = mlp().double(), [(features(), torch.arange(BATCH) % CLASSES)]
    with pytest.warns(UserWarning, match=NO_MEAN):
        found = diagonal_fisher(model, batches, nn.CrossEntropyLoss(weights))
    assert_same(found, diagonal_fisher(model, batches, F.cross_entropy))
    summed = nn.CrossEntropyLoss(weights, reduction="sum")
    assert_same(diagonal_fisher(model, batches, summed), reference.diagonal_fisher(model, batches, summed))


# ---- containers ------------------------------------------------------------------------------------------------------


class TwoSides(nn.Module):
    """Of two inputs, as arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.layer(torch.cat([left, right], -1))


class OneList(TwoSides):
    """Of two inputs, in a list."""

    def forward(self, sides: list[Tensor]) -> Tensor:
        return super().forward(*sides)


class OneAndMaybeMore(TwoSides):
    """Of one input or two."""

    def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
        return self.layer(left if right is None else torch.cat([left, right], -1))


def sides() -> tuple[Tensor, Tensor]:
    left, right = features().split([2, FEATURES - 2], 1)
    return left, right


def test_a_mapping_that_is_no_dict_is_taken_apart() -> None:
    model, (left, right), targets = TwoSides().double(), sides(), labels()
    expected = diagonal_fisher(model, [((left, right), targets)], F.cross_entropy)
    batch = UserDict({"left": left, "right": right})
    assert_same(diagonal_fisher(model, [(batch, targets)], F.cross_entropy), expected)
    outer = nn.Module()
    outer.inner = model
    outer.forward = lambda sides: model(**sides)
    found = diagonal_fisher(outer, [({"sides": batch}, targets)], F.cross_entropy)
    assert_same(without_prefix(found, "inner."), expected)


def test_a_list_is_one_argument_or_several_as_the_model_takes_it() -> None:
    (left, right), targets = sides(), labels()
    model = TwoSides().double()
    expected = diagonal_fisher(model, [((left, right), targets)], F.cross_entropy)
    pairs = [((left[n], right[n]), targets[n]) for n in range(BATCH)]
    assert_same(diagonal_fisher(model, DataLoader(pairs, batch_size=4), F.cross_entropy), expected)
    model.__class__ = OneList
    assert_same(diagonal_fisher(model, [([left, right], targets)], F.cross_entropy), expected)
    model.__class__ = OneAndMaybeMore
    with pytest.raises(ValueError, match=r"Expected inputs .* but got a list of 2, which OneAndMaybeMore can take"):
        diagonal_fisher(model, [([left, right], targets)], F.cross_entropy)
    assert_same(diagonal_fisher(model, [((left, right), targets)], F.cross_entropy), expected)


TARGETS = {
    "dict": (lambda y: {"label": y, "weight": torch.ones(len(y)), "nothing": None}, lambda t: t["label"]),
    "tuple": (lambda y: (y, y + 1), lambda t: t[0]),
    "list": (lambda y: [y, y + 1], lambda t: t[0]),
}


@pytest.mark.parametrize("kind", ["empirical", "batch"])
@pytest.mark.parametrize("bare", [False, True], ids=["layers", "general"])
@pytest.mark.parametrize("form", TARGETS)
def test_targets_may_be_trees(form: str, bare: bool, kind: str) -> None:
    pack, unpack = TARGETS[form]
    model, inputs, targets = (BareParameter() if bare else mlp()).double(), features(), labels()
    found = diagonal_fisher(model, [(inputs, pack(targets))], lambda o, t: F.cross_entropy(o, unpack(t)), kind)
    assert_same(found, reference.diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind))


def test_targets_may_be_missing() -> None:
    class Reconstructs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), x

    model, inputs = Reconstructs().double(), features()
    found = diagonal_fisher(model, [(inputs, None)], lambda outputs, _: F.mse_loss(*outputs))
    expected = reference.diagonal_fisher(model.inner, [(inputs, inputs)], F.mse_loss)
    assert_same(without_prefix(found, "inner."), expected)


class Cache:
    def __init__(self) -> None:
        self.keys = [torch.zeros(BATCH, 2)]


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        (np.zeros((BATCH, 2)), r"a numpy\.ndarray"),
        (Cache(), r"a test_importance_loops\.Cache"),
        (["text"] * BATCH, "a list of 7 str"),
        (torch.eye(BATCH).to_sparse(), "a sparse one"),
        (torch.zeros(()), r"inputs of shape \(\)"),
        (torch.zeros(2, BATCH, 3), r"inputs of shape \(2, 7, 3\)"),
    ],
)
def test_what_examples_cannot_be_taken_from_is_named(extra: Any, name: str) -> None:
    model = mlp().double()
    with pytest.raises(ValueError, match=f"Expected .* but got {name}"):
        diagonal_fisher(model, [({"input": features(), "extra": extra}, labels())], F.cross_entropy)


def test_targets_that_are_no_tensors_are_named() -> None:
    for targets, name in ((labels().numpy(), "ndarray"), (labels().tolist(), "list")):
        with pytest.raises(ValueError, match=f"but got a tuple of 2 whose targets are a {name} in it"):
            diagonal_fisher(mlp().double(), [(features(), targets)], F.cross_entropy)


def test_offsets_as_many_as_examples_are_told() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = nn.EmbeddingBag(9, CLASSES)

        def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
            return self.bags(tokens, offsets)

    with pytest.raises(ValueError, match=r"Expected a model that can be evaluated on one example, .* \(offsets,"):
        diagonal_fisher(Bags().double(), [((words(BATCH), torch.arange(BATCH)), labels())], F.cross_entropy)


# ---- models and modes that failed ------------------------------------------------------------------------------------


def test_a_layer_that_needs_the_batch_is_refused_by_what_it_says() -> None:
    model = nn.Sequential(nn.Linear(FEATURES, 4), nn.BatchNorm1d(4, track_running_stats=False)).double()
    with pytest.raises(
        ValueError, match=r"evaluated on one example, but got ValueError .* \(BatchNorm without running statistics\)"
    ):
        diagonal_fisher(model, [(features(), labels())], F.cross_entropy)


class Squeezes(nn.Module):
    """Loses the dims of length 1 at its end, among them that of a batch of one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).squeeze()


@pytest.mark.parametrize("bare", [False, True], ids=["layers", "general"])
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_a_model_that_loses_a_batch_of_one_is_right(kind: str, bare: bool) -> None:
    inner = (BareParameter() if bare else mlp()).double()
    inputs, targets = features(), labels()
    batches = [(inputs[:-1], targets[:-1]), (inputs[-1:], targets[-1:])]
    found = diagonal_fisher(Squeezes(inner), batches, F.cross_entropy, kind)
    expected = reference.diagonal_fisher(inner, batches, F.cross_entropy, kind)
    assert_same(without_prefix(found, "inner."), expected)


def test_a_model_that_squeezes_its_one_output_is_right() -> None:
    inner, inputs, targets = nn.Linear(FEATURES, 1).double(), features(), randn(BATCH)
    found = diagonal_fisher(Squeezes(inner), [(inputs, targets)], F.mse_loss)
    expected = reference.diagonal_fisher(inner, [(inputs, targets.unsqueeze(1))], F.mse_loss)
    assert_same(without_prefix(found, "inner."), expected)


class Complex(nn.Module):
    def __init__(self, layer: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES, dtype=torch.complex128)
        self.scale = nn.Parameter(torch.ones(CLASSES).double()) if layer else None

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x.to(torch.complex128)).abs()
        return outputs if self.scale is None else outputs * self.scale


@pytest.mark.parametrize("kind", ["empirical", "exact"])
@pytest.mark.parametrize("layer", [False, True])
def test_of_complex_weights_the_parts_squares_add_up(layer: bool, kind: str) -> None:
    """The same model with real and imaginary parts as weights of their own."""

    class Parts(nn.Module):
        def __init__(self, model: Complex) -> None:
            super().__init__()
            self.real, self.imag = nn.Parameter(model.layer.weight.real), nn.Parameter(model.layer.weight.imag)
            self.bias = model.layer.bias.detach()

        def forward(self, x: Tensor) -> Tensor:
            return torch.hypot(F.linear(x, self.real, self.bias.real), F.linear(x, self.imag, self.bias.imag))

    model, batches = Complex(layer), [(features(), labels())]
    found = diagonal_fisher(model, batches, F.cross_entropy, kind)["layer.weight"]
    expected = reference.diagonal_fisher(Parts(model), batches, F.cross_entropy, kind)
    torch.testing.assert_close(found, expected["real"] + expected["imag"], rtol=1e-9, atol=1e-12)
    batch = diagonal_fisher(model, batches, F.cross_entropy, "batch")["layer.weight"]
    expected = reference.diagonal_fisher(Parts(model), batches, F.cross_entropy, "batch")
    torch.testing.assert_close(batch, expected["real"] + expected["imag"], rtol=1e-9, atol=1e-12)


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Sequential) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, True

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner[0](x)
        return self.inner[4](checkpoint(self.inner[1:4], x, use_reentrant=self.reentrant))


@pytest.mark.filterwarnings("ignore:.*goes through the examples one by one")
@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_reentrant_checkpoints_are_gone_through_and_gradients_left_alone(kind: str) -> None:
    inner, batches = mlp().double(), [(features(), labels())]
    expected = reference.diagonal_fisher(inner, batches, F.cross_entropy, kind)
    seen = []
    inner[4].weight.register_post_accumulate_grad_hook(seen.append)
    found = diagonal_fisher(Checkpointed(inner), batches, F.cross_entropy, kind)
    assert_same(without_prefix(found, "inner."), expected)
    assert not seen
    assert all(weight.grad is None for weight in inner.parameters())


@pytest.mark.parametrize("kind", ["empirical", "exact", "batch"])
def test_inference_mode_is_left_for_the_computation(kind: str) -> None:
    model, inputs, targets = mlp().double(), features(), labels()
    expected = reference.diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind)
    with torch.inference_mode():
        found = diagonal_fisher(model, [(inputs * 1, targets * 1)], F.cross_entropy, kind)
        assert torch.is_inference_mode_enabled()
    assert_same(found, expected)


def test_a_model_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = mlp().double()
    with pytest.raises(ValueError, match=r"made outside of torch\.inference_mode, but got '0\.weight'"):
        diagonal_fisher(model, [(features(), labels())], F.cross_entropy)


def test_buffers_that_a_forward_pass_changes_are_put_back() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(FEATURES, CLASSES)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("last", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x.detach()
            return self.layer(x)

    model = Counts().double()
    last = model.last
    diagonal_fisher(model, [(features(), labels())], F.cross_entropy)
    assert float(model.calls) == 0
    assert model.last is last
    assert not last.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_differentiated_in_eval_mode_on_a_gpu(layer: type[nn.RNNBase]) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer(FEATURES, CLASSES, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0][:, -1]

    model, inputs, targets = Last().double(), randn(BATCH, STEPS, FEATURES), labels()
    expected = diagonal_fisher(model, [(inputs, targets)], F.cross_entropy)
    found = diagonal_fisher(model.cuda(), [(inputs.cuda(), targets.cuda())], F.cross_entropy)
    assert_same({name: value.cpu() for name, value in found.items()}, expected, 1e-8)
