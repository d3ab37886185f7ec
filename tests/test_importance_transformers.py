"""The Fisher of the layouts of Hugging Face's causal language models, against slow references and on the fast path."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless import diagonal_fisher, reference
from forgetless.importance import method, request, uses
from forgetless.importance.request import Method, Request

transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

Fisher = dict[str, Tensor]
WORDS, BATCH, STEPS, PADDING = 13, 5, 6, 0


def gpt2(**options: Any) -> nn.Module:
    sizes = {"vocab_size": WORDS, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    tokens = {"bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **tokens, **options))


def llama(**options: Any) -> nn.Module:
    sizes = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, **options))


class Logits(nn.Module):
    """The logits of a model for tokens, called in one of the ways that people call it."""

    def __init__(self, model: nn.Module, how: str = "plain") -> None:
        super().__init__()
        self.model, self.how = model, how

    def forward(self, tokens: Tensor) -> Tensor:
        given: dict[str, Tensor] = {}
        if self.how == "padded":
            given["attention_mask"] = (tokens != PADDING).long()
        elif self.how == "positions":
            given["position_ids"] = torch.arange(tokens.shape[1]).expand(tokens.shape)
        elif self.how == "mask":
            given["attention_mask"] = torch.ones_like(tokens)
        return self.model(input_ids=tokens, **given).logits


def build(make: Callable[..., nn.Module], how: str = "plain", **options: Any) -> tuple[nn.Module, Tensor, Tensor]:
    """A model of random weights in float64, tokens and targets; padding at the end where there is any."""
    torch.manual_seed(0)
    model = Logits(make(**options), how).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    tokens, targets = (torch.randint(1, WORDS, (BATCH, STEPS)) for _ in range(2))
    if how == "padded":
        for row, length in enumerate((6, 4, 5, 2, 6)):
            tokens[row, length:], targets[row, length:] = PADDING, -100
    return model, tokens, targets


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


def summed(logits: Tensor, targets: Tensor) -> Tensor:
    return token_loss(logits, targets).sum()


def assert_same(found: Fisher, expected: Fisher, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            found[name], expected[name], rtol=tolerance, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that batches of more than the checked examples were computed with."""
    taken: list[str] = []
    for name in ("by_layer", "by_vmap", "by_loop", "by_backward"):
        compute = getattr(method, name)

        def spy(batch: Request, name: str = name, compute: Method = compute) -> Fisher:
            found = compute(batch)
            if batch.num_examples > method.CHECKED_EXAMPLES:
                taken.append(name)
            return found

        monkeypatch.setattr(method, name, spy)
    return taken


# Llama's norms and rotary embeddings compute in float32 whatever the weights are.
LAYOUTS = {
    "GPT-2": (gpt2, {}, 1e-9),
    "GPT-2, untied": (gpt2, {"tie_word_embeddings": False}, 1e-9),
    "Llama": (llama, {}, 1e-5),
    "Llama, tied": (llama, {"tie_word_embeddings": True}, 1e-5),
}


@pytest.mark.parametrize("how", ["plain", "padded", "positions", "mask"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_take_the_fast_path_and_are_the_reference(layout: str, how: str, paths: list[str]) -> None:
    make, options, tolerance = LAYOUTS[layout]
    model, tokens, targets = build(make, how, **options)
    expected = reference.diagonal_fisher(model, [(tokens, targets)], summed)
    assert_same(diagonal_fisher(model, [(tokens, targets)], summed), expected, tolerance)
    assert paths == ["by_layer"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_per_target_is_the_reference(layout: str, paths: list[str]) -> None:
    make, options, tolerance = LAYOUTS[layout]
    model, tokens, targets = build(make, "padded", **options)
    expected = reference.fisher_per_target(model, tokens, targets, F.cross_entropy)
    found = diagonal_fisher(model, [(tokens, targets)], token_loss, per="target")
    assert_same(found, expected, tolerance)
    assert paths == ["by_layer"]


@pytest.mark.parametrize("make", [gpt2, llama])
def test_outputs_as_the_library_gives_them_and_inputs_by_name(make: Callable[..., nn.Module], paths: list[str]) -> None:
    model, tokens, targets = build(make, "padded")
    inputs = {"input_ids": tokens, "attention_mask": (tokens != PADDING).long()}

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        return summed(outputs.logits, targets)

    found = diagonal_fisher(model.model, [(inputs, targets)], loss)
    expected = reference.diagonal_fisher(model, [(tokens, targets)], summed)
    assert_same({f"model.{name}": value for name, value in found.items()}, expected, 1e-5)
    own = diagonal_fisher(model.model, [inputs], kind="monte_carlo", per="target")
    assert own.keys() == found.keys()
    assert paths == ["by_layer", "by_layer"]


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_loss_inside_the_model_is_that_of_each_example(make: Callable[..., nn.Module], paths: list[str]) -> None:
    model, tokens, targets = build(make)
    inputs = {"input_ids": tokens, "labels": targets}
    found = diagonal_fisher(model.model, [(inputs, None)], lambda outputs, _: outputs.loss)

    def shifted(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    expected = reference.diagonal_fisher(model, [(tokens, targets)], shifted)
    # The library computes this loss in float32.
    assert_same({f"model.{name}": value for name, value in found.items()}, expected, 1e-4)
    assert paths == ["by_vmap"]


@pytest.mark.parametrize("power", [1, 2])
def test_rows_of_a_vocabulary_a_few_at_a_time_change_nothing(power: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    words = torch.randint(WORDS, (BATCH, STEPS), generator=generator)
    lookup = uses.Lookup(words, randn(BATCH, STEPS, 3))
    outers = [uses.Outer(randn(BATCH, 1, STEPS, 3), randn(BATCH, 1, STEPS, WORDS)) for _ in range(2)]
    expected = torch.zeros(WORDS, 3, dtype=torch.float64)
    for n in range(BATCH):
        one = sum(outer.gradients[n, 0].T @ outer.inputs[n, 0] for outer in outers)
        for t, word in enumerate(words[n].tolist()):
            one[word] += lookup.gradients[n, t]
        expected += one.abs() ** power
    for limit in (10, 2**18):
        monkeypatch.setattr(uses, "_CACHED_NUMBERS", limit)
        monkeypatch.setattr(request, "_CHUNK_NUMBERS", 100)
        found = torch.zeros_like(expected)
        uses.add_powers(found, [lookup, *outers], power)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
