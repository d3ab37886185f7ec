"""Labels of the model's own prediction: their distribution, where the loss reads them, and inputs without targets."""

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases import BATCH, CLASSES, FEATURES, STEPS, WORDS, Loss, TiedLanguageModel, features, labels, mlp, randn, words
from forgetless import diagonal_fisher, importance, reference

Fisher = dict[str, Tensor]


def assert_same(found: Fisher, expected: Fisher, tolerance: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m: f"{m}")


def perceptron(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs)).double()


# ---- bernoulli -------------------------------------------------------------------------------------------------------


def binary_vectors(outputs: Tensor) -> Iterator[tuple[Tensor, float]]:
    """All vectors of 0 and 1 in the shape of the outputs, with Π p^y (1 − p)^(1 − y)."""
    p = outputs.sigmoid()
    for bits in itertools.product((0.0, 1.0), repeat=p.numel()):
        y = torch.tensor(bits, dtype=p.dtype).view(p.shape)
        yield y, float((p * y + (1 - p) * (1 - y)).prod())


def summed_binary(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="sum")


@pytest.mark.parametrize("form", ["(B, 1) numbers", "(B,) classes", "(B,) numbers", "named"])
def test_exact_of_a_head_of_one_logit_is_the_sum_over_both_labels(form: str) -> None:
    model, inputs = perceptron(1), features()
    expected = reference.fisher_of_predictions(model, inputs, summed_binary, binary_vectors)
    targets = torch.randint(2, (BATCH,))

    def flat(outputs: Tensor, targets: Tensor) -> Tensor:
        return summed_binary(outputs.squeeze(1), targets)

    if form == "(B,) classes":
        found = diagonal_fisher(model, [(inputs, targets)], flat, "exact")
    elif form == "(B,) numbers":
        found = diagonal_fisher(model, [(inputs, targets.double())], flat, "exact")
    else:
        named = {"likelihood": "bernoulli"} if form == "named" else {}
        found = diagonal_fisher(model, [(inputs, targets.double().unsqueeze(1))], summed_binary, "exact", **named)
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.long])
def test_exact_of_several_labels_is_the_sum_over_all_combinations(dtype: torch.dtype) -> None:
    model, inputs = perceptron(3), features()
    expected = reference.fisher_of_predictions(model, inputs, summed_binary, binary_vectors)
    targets = torch.randint(2, (BATCH, 3)).to(dtype)
    assert_same(diagonal_fisher(model, [(inputs, targets)], summed_binary, "exact"), expected)


def test_where_the_loss_reads_probabilities_labels_are_drawn_from_the_outputs_themselves() -> None:
    inner, inputs = perceptron(1), features()
    expected = reference.fisher_of_predictions(inner, inputs, summed_binary, binary_vectors)
    targets = torch.randint(2, (BATCH, 1)).double()
    found = diagonal_fisher(nn.Sequential(inner, nn.Sigmoid()), [(inputs, targets)], F.binary_cross_entropy, "exact")
    assert_same({name.removeprefix("0."): value for name, value in found.items()}, expected)


@pytest.mark.parametrize("outputs", [1, 3])
def test_monte_carlo_of_binary_labels_converges_to_exact(outputs: int) -> None:
    model, inputs = perceptron(outputs), features()
    targets = torch.randint(2, (BATCH, outputs)).double()
    expected = diagonal_fisher(model, [(inputs, targets)], summed_binary, "exact")
    batches = [(inputs.repeat(4000, 1), targets.repeat(4000, 1))]
    found = diagonal_fisher(model, batches, summed_binary, "monte_carlo")
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0.1, atol=0.02 * float(expected[name].max()))


def test_a_softmax_of_one_class_is_refused() -> None:
    model, inputs = perceptron(1), features()
    targets = torch.zeros(BATCH, dtype=torch.long)
    for kind in ("exact", "monte_carlo"):
        with pytest.raises(ValueError, match="Expected a loss whose likelihood can be told"):
            diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind)
        with pytest.raises(ValueError, match=r"softmax of one class is always 1. Use likelihood='bernoulli'"):
            diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind, likelihood="categorical")


def test_a_weighted_binary_loss_needs_a_name() -> None:
    model, inputs, targets = perceptron(1), features(), torch.randint(2, (BATCH, 1)).double()
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0))
    with pytest.raises(ValueError, match=r"neither a binary cross entropy nor a squared error\. Set likelihood"):
        diagonal_fisher(model, [(inputs, targets)], weighted, "exact")
    found = diagonal_fisher(model, [(inputs, targets)], weighted, "exact", likelihood="bernoulli")
    assert_same(found, reference.fisher_of_predictions(model, inputs, weighted, binary_vectors))
    with pytest.raises(ValueError, match="Expected likelihood to be one of categorical, bernoulli, gaussian"):
        diagonal_fisher(model, [(inputs, targets)], weighted, "exact", likelihood="normal")


# ---- categorical -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["exact", "monte_carlo"])
def test_where_the_loss_reads_probabilities_of_classes_these_are_drawn_from(kind: str) -> None:
    inner, inputs, targets = perceptron(3), features(), torch.randint(3, (BATCH,))

    def of_probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.nll_loss(outputs.log(), targets)

    found = diagonal_fisher(nn.Sequential(inner, nn.Softmax(-1)), [(inputs, targets)], of_probabilities, kind)
    expected = diagonal_fisher(inner, [(inputs, targets)], F.cross_entropy, kind)
    assert_same({name.removeprefix("0."): value for name, value in found.items()}, expected)


def one_against_all(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, F.one_hot(targets, 3).to(outputs.dtype))


@pytest.mark.parametrize("kind", ["exact", "monte_carlo"])
@pytest.mark.parametrize(
    "loss",
    [one_against_all, lambda o, t: F.cross_entropy(o / 2, t), nn.CrossEntropyLoss(label_smoothing=0.1)],
    ids=["one against all", "temperature", "smoothing"],
)
def test_a_loss_that_is_not_of_the_softmax_is_told(loss: Loss, kind: str) -> None:
    batches = [(features(), torch.randint(3, (BATCH,)))]
    with pytest.warns(UserWarning, match="the loss is not the cross entropy of it") as caught:
        diagonal_fisher(perceptron(3), batches, loss, kind)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "loss",
    [
        F.cross_entropy,
        lambda o, t: F.nll_loss(o.log_softmax(-1), t),
        lambda o, t: 3 * F.cross_entropy(o, t),
        nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0]).double(), reduction="sum"),
    ],
)
def test_losses_of_the_softmax_are_let_through(loss: Loss) -> None:
    assert diagonal_fisher(perceptron(3), [(features(), torch.randint(3, (BATCH,)))], loss, "exact")["0.bias"].any()


# ---- gaussian --------------------------------------------------------------------------------------------------------


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().sum() / 2


GAUSSIAN = {  # loss, and the variance σ² of the distribution exp(−ℓ) per output, of which there are 3
    "half the squared error": (squared, 1.0),
    "squared error": (lambda o, t: (o - t).square().sum(), 0.5),
    "mean squared error": (F.mse_loss, 1.5),
    "weighted": (lambda o, t: (torch.tensor([1.0, 2.0, 4.0]) * (o - t).square()).sum() / 2, None),
}


@pytest.mark.parametrize("name", GAUSSIAN)
@pytest.mark.parametrize("kind", ["exact", "monte_carlo"])
def test_gaussian_is_the_integral_over_the_distribution_that_the_loss_stands_for(name: str, kind: str) -> None:
    loss, variance = GAUSSIAN[name]
    variances = torch.tensor([1.0, 0.5, 0.25] if variance is None else [variance] * 3).double()

    def nodes(outputs: Tensor) -> Iterator[tuple[Tensor, float]]:
        """Gauss and Hermite's three nodes per output, exact for polynomials up to degree 5."""
        for steps in itertools.product((-1, 0, 1), repeat=3):
            step = torch.tensor(steps).double()
            yield outputs + step * (3 * variances).sqrt(), math.prod(1 / 6 if s else 2 / 3 for s in steps)

    model, inputs, targets = perceptron(3), features(), randn(BATCH, 3)
    expected = reference.fisher_of_predictions(model, inputs, loss, nodes)
    if kind == "exact":
        assert_same(diagonal_fisher(model, [(inputs, targets)], loss, kind), expected)
        return
    found = diagonal_fisher(model, [(inputs.repeat(4000, 1), targets.repeat(4000, 1))], loss, kind)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=0.1, atol=0.02 * float(expected[key].max()))


def test_a_loss_that_is_no_squared_error_is_refused() -> None:
    model, inputs, targets = perceptron(3), features(), randn(BATCH, 3)
    with pytest.raises(ValueError, match="Expected a squared error of floating-point targets"):
        diagonal_fisher(model, [(inputs, targets)], F.l1_loss, "exact", likelihood="gaussian")


# ---- where the loss reads labels -------------------------------------------------------------------------------------


class WithLoss(nn.Module):
    """Computes the loss itself where labels are among its inputs, as models of Hugging Face do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.inner(inputs)
        return {"logits": logits, "loss": F.cross_entropy(logits.flatten(0, -2), labels.flatten())}


@pytest.mark.parametrize("kind", ["monte_carlo", "exact"])
def test_a_loss_that_does_not_read_the_targets_is_refused(kind: str) -> None:
    model = WithLoss(TiedLanguageModel() if kind == "monte_carlo" else mlp()).double()
    inputs, targets = (words(BATCH, STEPS), words(BATCH, STEPS)) if kind == "monte_carlo" else (features(), labels())
    with pytest.raises(ValueError, match=f"Expected a loss that depends on the targets for kind='{kind}'"):
        diagonal_fisher(model, [({"inputs": inputs, "labels": targets}, targets)], lambda o, t: o["loss"], kind)


def test_the_loss_that_a_model_computes_itself_is_right_at_the_true_labels() -> None:
    model, tokens = WithLoss(TiedLanguageModel()).double(), words(BATCH, STEPS)
    found = diagonal_fisher(model, [({"inputs": tokens, "labels": tokens}, None)], lambda o, _: o["loss"])
    expected = reference.diagonal_fisher(
        model.inner, [(tokens, tokens)], lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten())
    )
    assert_same({name.removeprefix("inner."): value for name, value in found.items()}, expected)


def summed_tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum")


@pytest.mark.parametrize("shift", [1, 2, -1])
def test_labels_are_put_where_a_shifting_loss_reads_them(shift: int) -> None:
    """Of the same draws, the gradient is that of the loss of shifted targets."""
    torch.manual_seed(0)
    model, tokens = TiedLanguageModel(tied=False).double(), words(BATCH, STEPS)
    with torch.no_grad():
        model.decoder.weight.mul_(4)  # confident, as a trained model is

    def shifting(outputs: Tensor, targets: Tensor) -> Tensor:
        if shift > 0:
            return summed_tokens(outputs[:, :-shift], targets[:, shift:])
        return summed_tokens(outputs[:, -shift:], targets[:, :shift])

    shifted = torch.full_like(tokens, -100)
    if shift > 0:
        shifted[:, :-shift] = tokens[:, shift:]
    else:
        shifted[:, -shift:] = tokens[:, :shift]
    found = diagonal_fisher(model, [(tokens, tokens)], shifting, "monte_carlo")
    assert_same(found, diagonal_fisher(model, [(tokens, shifted)], summed_tokens, "monte_carlo"))


def test_targets_that_act_on_several_outputs_are_refused() -> None:
    def twice(outputs: Tensor, targets: Tensor) -> Tensor:
        return summed_tokens(outputs, targets) + summed_tokens(outputs[:, :-1], targets[:, 1:])

    model, tokens = TiedLanguageModel().double(), words(BATCH, STEPS)
    with pytest.raises(ValueError, match="Expected a loss that compares each output with one target"):
        diagonal_fisher(model, [(tokens, tokens)], twice, "monte_carlo")


TOKEN_LOSSES = {
    "mean": lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()),
    "the last only": lambda o, t: F.cross_entropy(o[:, -1], t[:, -1]),
    "one word ignored": lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten(), ignore_index=1),
    "weights of words": lambda o, t: F.cross_entropy(
        o.flatten(0, 1), t.flatten(), torch.linspace(0.1, 2, WORDS).double()
    ),
    "weights of places": lambda o, t: (
        F.cross_entropy(o.mT, t, reduction="none") * torch.logspace(-3, 0, STEPS).double()
    ).sum(),
}


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_losses_that_read_each_label_at_its_output_are_let_through(name: str) -> None:
    model, tokens = TiedLanguageModel().double(), words(BATCH, STEPS)
    assert diagonal_fisher(model, [(tokens, tokens)], TOKEN_LOSSES[name], "monte_carlo")["decoder.bias"].any()


# ---- inputs alone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["tensor", "list of one", "dict", "no targets"])
def test_of_inputs_alone_exact_is_that_of_any_targets(form: str) -> None:
    model, inputs = mlp().double(), features()
    expected = reference.diagonal_fisher(model, [(inputs, labels())], F.cross_entropy, "exact")
    if form == "no targets":
        assert_same(diagonal_fisher(model, [(inputs, None)], F.cross_entropy, "exact"), expected)
        return
    batch = {"tensor": inputs, "list of one": [inputs], "dict": {"input": inputs}}[form]
    assert_same(diagonal_fisher(model, [batch], kind="exact"), expected)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_of_inputs_alone_the_likelihood_has_a_name(likelihood: str) -> None:
    model, inputs = perceptron(2), features()
    loss = summed_binary if likelihood == "bernoulli" else squared
    expected = diagonal_fisher(model, [(inputs, randn(BATCH, 2).gt(0).double())], loss, "exact", likelihood=likelihood)
    assert_same(diagonal_fisher(model, [inputs], kind="exact", likelihood=likelihood), expected)


def test_of_inputs_alone_monte_carlo_draws_a_label_for_every_step() -> None:
    model, tokens = TiedLanguageModel().double(), words(BATCH, STEPS)
    found = diagonal_fisher(model, [tokens], kind="monte_carlo")
    assert_same(found, diagonal_fisher(model, [(tokens, tokens)], summed_tokens, "monte_carlo"))


def test_of_inputs_alone_padding_has_no_labels() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TiedLanguageModel()

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.inner(input_ids)

    model, tokens = Padded().double(), words(BATCH, STEPS)
    mask = (torch.arange(STEPS) < torch.randint(1, STEPS, (BATCH, 1))).long()
    found = diagonal_fisher(model, [{"input_ids": tokens, "attention_mask": mask}], kind="monte_carlo")
    expected = diagonal_fisher(
        model.inner, [(tokens, tokens.masked_fill(mask == 0, -100))], summed_tokens, "monte_carlo"
    )
    assert_same({name.removeprefix("inner."): value for name, value in found.items()}, expected)


def test_inputs_alone_that_tell_too_little_are_refused() -> None:
    model, inputs = mlp().double(), features()
    with pytest.raises(ValueError, match="Expected a loss_fn for kind='empirical', but got none"):
        diagonal_fisher(model, [inputs])
    with pytest.raises(ValueError, match=r"Expected batches of inputs alone, .* Leave the targets out"):
        diagonal_fisher(model, [(inputs, labels())], kind="exact")
    with pytest.raises(ValueError, match="Expected at least two classes where no targets are given"):
        diagonal_fisher(perceptron(1), [inputs], kind="exact")


# ---- per target ------------------------------------------------------------------------------------------------------


def every_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.mT, targets, reduction="none")


@pytest.mark.parametrize("padded", [False, True])
def test_per_target_is_the_reference(padded: bool) -> None:
    model, tokens, targets = TiedLanguageModel().double(), words(BATCH, STEPS), words(BATCH, STEPS)
    if padded:
        targets[torch.arange(STEPS) >= torch.randint(1, STEPS, (BATCH, 1))] = -100
    found = diagonal_fisher(model, [(tokens[:3], targets[:3]), (tokens[3:], targets[3:])], every_token, per="target")
    assert_same(found, reference.fisher_per_target(model, tokens, targets, F.cross_entropy))


def test_per_target_does_not_depend_on_the_length_of_a_chunk_where_targets_are_independent() -> None:
    """Softmax regression at every step: the gradients of drawn labels are independent, so that squares add up."""
    linear, x = nn.Linear(FEATURES, CLASSES).double(), randn(4000, 6, FEATURES)
    found = [
        diagonal_fisher(linear, [x.reshape(-1, length, FEATURES)], kind="monte_carlo", per="target")["weight"]
        for length in (1, 2, 6)
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0.1, atol=0.01)


def test_per_target_of_numbers_counts_what_the_loss_counts() -> None:
    model, inputs, targets = perceptron(3), features(), randn(BATCH, 3)
    each = diagonal_fisher(model, [(inputs, targets)], nn.MSELoss(reduction="none"), per="target")
    summed = diagonal_fisher(model, [(inputs, targets)], nn.MSELoss(reduction="sum"))
    assert_same(each, {name: value / 3 for name, value in summed.items()})
    one = diagonal_fisher(model, [(inputs, targets)], lambda o, t: (o - t).square().sum(-1), per="target")
    assert_same(one, summed)


def test_per_target_refuses_a_loss_of_all_targets() -> None:
    model, tokens = TiedLanguageModel().double(), words(BATCH, STEPS)
    for loss in (summed_tokens, TOKEN_LOSSES["mean"]):
        with pytest.raises(ValueError, match="Expected a loss_fn that gives one loss per target"):
            diagonal_fisher(model, [(tokens, tokens)], loss, per="target")
    with pytest.raises(ValueError, match="Expected a loss_fn that gives one loss per target"):
        diagonal_fisher(perceptron(3), [(features(), randn(BATCH, 3))], F.mse_loss, per="target")
    with pytest.raises(ValueError, match="Expected per to be one of example, target"):
        diagonal_fisher(model, [(tokens, tokens)], every_token, per="token")


# ---- own text --------------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """A language model that looks at the last word only."""

    def __init__(self, transitions: Tensor) -> None:
        super().__init__()
        self.logits, self.dropout = nn.Parameter(transitions.log()), nn.Dropout(0.9)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.logits[tokens])


def test_text_is_drawn_with_the_models_own_probabilities() -> None:
    transitions = torch.tensor([[0.1, 0.9, 0.0], [0.3, 0.3, 0.4], [0.5, 0.0, 0.5]])
    model = Chain(transitions).train()
    generator = torch.Generator().manual_seed(0)
    text = importance.sample_text(model, torch.zeros(500, 1, dtype=torch.long), 40, generator=generator)
    assert text.shape == (500, 41)
    pairs = text[:, :-1] * 3 + text[:, 1:]
    counts = torch.bincount(pairs.flatten(), minlength=9).view(3, 3).double()
    torch.testing.assert_close(counts / counts.sum(1, keepdim=True), transitions.double(), rtol=0, atol=0.03)
    assert model.training
    again = importance.sample_text(
        model, torch.zeros(500, 1, dtype=torch.long), 40, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(text, again)


def test_text_sees_no_more_than_its_context() -> None:
    seen = []

    class Watched(Chain):
        def forward(self, tokens: Tensor) -> Tensor:
            seen.append(tokens.shape[1])
            return super().forward(tokens)

    importance.sample_text(Watched(torch.full((3, 3), 1 / 3)), torch.zeros(2, 2, dtype=torch.long), 4, context=3)
    assert seen == [2, 3, 3, 3]


def test_what_is_no_prompt_or_no_language_model_is_refused() -> None:
    model = Chain(torch.full((3, 3), 1 / 3))
    for prompts in (torch.zeros(2, 0, dtype=torch.long), torch.zeros(2).long(), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="Expected prompts as integers"):
            importance.sample_text(model, prompts, 3)
    with pytest.raises(ValueError, match="Expected num_tokens and context of at least 1"):
        importance.sample_text(model, torch.zeros(2, 1, dtype=torch.long), 0)
    classifier = nn.Sequential(nn.Embedding(3, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"Expected logits \(texts, tokens, words\)"):
        importance.sample_text(classifier, torch.zeros(2, 2, dtype=torch.long), 1)
