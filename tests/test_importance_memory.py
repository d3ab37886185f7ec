"""The Fisher in parts that fit into a stated memory: the same numbers, nothing left behind, and what is refused."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cases import (
    BATCH,
    CLASSES,
    FEATURES,
    GENERAL_CASES,
    LAYER_CASES,
    LOOP_CASES,
    STEPS,
    WORDS,
    Case,
    features,
    labels,
    mlp,
)
from forgetless import diagonal_fisher, reference
from forgetless.importance import budget, layers, totals
from forgetless.importance.budget import Parts
from forgetless.importance.labels import Labels
from forgetless.importance.request import Request
from forgetless.progress import Progress, shown

Fisher = dict[str, Tensor]
CASES = {case.name: case for case in (*LAYER_CASES, *GENERAL_CASES, *LOOP_CASES)}


def assert_same(found: Fisher, expected: Fisher, tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance, msg=lambda m: f"{m}")


def in_parts(monkeypatch: pytest.MonkeyPatch, num_examples: int, num_blocks: int) -> None:
    """So many parts, whatever the memory."""

    def parts(request: Request, memory: float) -> Parts:
        names = list(request.named)
        size = -(-len(names) // num_blocks)
        groups = [names[start : start + size] for start in range(0, len(names), size)]
        return Parts(num_examples, [{name: request.named[name] for name in group} for group in groups], 50)

    monkeypatch.setattr(totals, "parts", parts)


KINDS_OF_MODELS = ["tied language model", "GroupNorm", "matrices", "LSTM batch_first=True"]


@pytest.mark.filterwarnings("ignore:diagonal_fisher goes through the examples one by one")
@pytest.mark.parametrize(
    ("name", "num_examples"),
    [*((name, 3) for name in KINDS_OF_MODELS), *((name, 1) for name in (*KINDS_OF_MODELS, "branches by value"))],
)
def test_parts_are_the_reference(name: str, num_examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case: Case = CASES[name]
    model, inputs, targets = case.build()
    frozen = next(model.parameters()).requires_grad_(False)
    wanted = [weight for weight in model.parameters() if weight is not frozen]
    batches = [(inputs, targets), (inputs[:4], targets[:4])]
    expected = reference.diagonal_fisher(model, batches, case.loss_fn)
    in_parts(monkeypatch, num_examples, 3)
    assert_same(diagonal_fisher(model, batches, case.loss_fn, memory=1e9), expected)
    assert not frozen.requires_grad
    assert all(weight.requires_grad and weight.grad is None for weight in wanted)


def test_blocks_of_weights_see_the_same_drawn_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = mlp().double(), [(features(), labels()) for _ in range(2)]
    found = []
    for num_blocks in (1, 4):
        in_parts(monkeypatch, 2, num_blocks)
        generator = torch.Generator().manual_seed(1)
        found.append(diagonal_fisher(model, batches, F.cross_entropy, "monte_carlo", memory=1e9, generator=generator))
    assert_same(*found, 0)


def test_a_memory_decides_on_examples_and_weights() -> None:
    model, inputs = mlp().double(), features()
    request = Request(
        model, dict(model.named_parameters()), inputs, labels(), F.cross_entropy, Labels("empirical", torch.Generator())
    )
    kept, largest = budget.kept_bytes(request), max(weight.numel() for weight in model.parameters())
    least = 3 * kept + 24 * largest
    tight, ample = budget.parts(request, least), budget.parts(request, 1e9)
    assert tight.num_examples == 1
    assert all(sum(w.numel() for w in block.values()) <= largest for block in tight.blocks)
    assert [name for block in tight.blocks for name in block] == list(request.named)
    assert ample.num_examples > 1000
    assert len(ample.blocks) == 1
    with pytest.raises(ValueError, match=f"Expected memory of at least {least:,} bytes, for one example"):
        budget.parts(request, least - 1)


class Checkpointed(nn.Module):
    """A residual network, each layer of which is checkpointed or not."""

    def __init__(self, is_checkpointed: bool) -> None:
        super().__init__()
        self.is_checkpointed = is_checkpointed
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(FEATURES, 8 * FEATURES), nn.Tanh(), nn.Linear(8 * FEATURES, FEATURES))
            for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + (checkpoint(layer, x, use_reentrant=False) if self.is_checkpointed else layer(x))
        return x[:, :CLASSES]


@pytest.mark.parametrize("kind", ["empirical", "exact"])
def test_checkpoints_stay_on_the_fast_path_and_keep_less(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, targets = Checkpointed(False).double(), features(), labels()
    expected = reference.diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind)
    request = Request(
        model, dict(model.named_parameters()), inputs, targets, F.cross_entropy, Labels("empirical", torch.Generator())
    )
    plain = budget.kept_bytes(request)
    model.is_checkpointed = True
    assert budget.kept_bytes(request) < plain / 3
    kept = []
    within = layers.by_layer

    def spy(request: Request) -> Fisher:
        def note(tensor: Tensor) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return within(request)

    def refuse(request: Request) -> Fisher:
        raise NotImplementedError  # the general path, so that a warning would tell of a loop

    monkeypatch.setattr("forgetless.importance.method.by_layer", spy)
    monkeypatch.setattr("forgetless.importance.method.by_vmap", refuse)
    assert_same(diagonal_fisher(model, [(inputs, targets)], F.cross_entropy, kind), expected)
    assert kept


def language_model() -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
    sizes = {"vocab_size": WORDS, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 3}
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, attention_dropout=0.5)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_training_mode_are_made_where_memory_is_stated(
    reentrant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = language_model(), torch.randint(WORDS, (BATCH, STEPS))

    def loss(outputs: object, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)

    batches = [({"input_ids": tokens}, tokens)]
    expected = diagonal_fisher(model, batches, loss, per="target")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    functions = [module.__dict__.get("_gradient_checkpointing_func") for module in model.modules()]
    kept = []
    measured: Callable[[Request], int] = budget.kept_bytes
    monkeypatch.setattr(budget, "kept_bytes", lambda request: kept.append(measured(request)) or kept[-1])
    model.train()
    assert_same(diagonal_fisher(model, batches, loss, per="target", memory=1e9), expected, 1e-5)
    assert all(module.training for module in model.modules())
    assert [module.__dict__.get("_gradient_checkpointing_func") for module in model.modules()] == functions
    model.gradient_checkpointing_disable()
    diagonal_fisher(model, batches, loss, per="target", memory=1e9)
    assert kept[0] < 0.7 * kept[1]


def test_what_cannot_be_gone_through_in_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = mlp().double(), [(features(), labels())]
    with pytest.raises(ValueError, match="Expected another kind than 'batch' with memory"):
        diagonal_fisher(model, batches, F.cross_entropy, "batch", memory=1e9)
    with pytest.raises(ValueError, match="Expected at least one example"):
        diagonal_fisher(model, [], F.cross_entropy, memory=1e9)
    found = diagonal_fisher(model, iter(batches), F.cross_entropy, memory=1e9)
    assert_same(found, diagonal_fisher(model, batches, F.cross_entropy))
    in_parts(monkeypatch, 2, 3)
    with pytest.raises(ValueError, match="Expected batches that can be gone through 3 times"):
        diagonal_fisher(model, iter(batches), F.cross_entropy, memory=1e9)


def test_progress_is_told_after_each_batch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, batches = mlp().double(), [(features(), labels()) for _ in range(3)]
    seen: list[Progress] = []
    diagonal_fisher(model, batches, F.cross_entropy, progress=seen.append)
    assert [(at.done, at.total, at.label) for at in seen] == [(n, 3, "Fisher") for n in (1, 2, 3)]
    seen.clear()
    in_parts(monkeypatch, 2, 2)
    diagonal_fisher(model, batches, F.cross_entropy, memory=1e9, progress=seen.append)
    assert [at.done for at in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1] == Progress(6, 6, "Fisher, weights 2 of 2")
    assert capsys.readouterr().err == ""
    diagonal_fisher(model, iter(batches), F.cross_entropy, progress=True)
    assert capsys.readouterr().err == "Fisher: 1\nFisher: 2\nFisher: 3\n"
    for done in range(1, 31):
        shown(Progress(done, 30, "Fisher"))
    assert capsys.readouterr().err.splitlines() == [f"Fisher: {3 * n} of 30" for n in range(1, 11)]
