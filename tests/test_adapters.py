"""Adapters of PEFT as protections: what they train, what they keep, and what is refused before any training."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam

from configs import search_config, two_model_config
from forgetless.errors import InputError
from forgetless.protection import PROTECTIONS, make_protection
from forgetless.training import train

pytest.importorskip("peft", reason="needs the extra `transformers`")
TOKENS = torch.randint(20, (8, 6), generator=torch.Generator().manual_seed(0))
STRENGTHS = {"lora": 2, "osf": 0.5}


class Small(nn.Module):
    """An embedding, two linear layers, and an output layer tied to the embedding."""

    def __init__(self, width=12):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.output = nn.Linear(width, 20, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.narrow(self.wide(self.embedding(tokens)).relu()))


def gpt2():
    transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
    size = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=20, **size))


def llama():
    transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
    size = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **size))


def logits(model):
    found = model(TOKENS)
    return getattr(found, "logits", found)


def loss_of(model):
    return lambda tokens: F.cross_entropy(logits(model)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def fit(protection, trained, steps=5, optimizer=None):
    optimizer = optimizer or SGD([p for p in trained.parameters() if p.requires_grad], lr=0.5)
    train([TOKENS] * steps, loss_of(trained), optimizer, protection)


def weight_of(layer, width):
    """The matrix that a layer without bias multiplies by, from what it does to unit vectors; (outputs, inputs)."""
    zero = layer(torch.zeros(1, width))
    return (layer(torch.eye(width)) - zero).T.detach()


@pytest.mark.parametrize(
    ("name", "make", "layers"),
    [
        ("lora", Small, {"wide", "narrow"}),
        ("osf", Small, {"wide", "narrow"}),
        ("lora", gpt2, 4),
        ("lora", llama, 7),
        ("osf", llama, 7),
    ],
)
def test_a_copy_starts_as_the_model_and_trains_an_adapter_in_every_linear_layer(name, make, layers):
    model = make().eval()
    before = copy.deepcopy(model.state_dict())
    protection = make_protection(name, list(model.parameters()), strength=STRENGTHS[name])
    protection.check_model(model, protection.options)
    trained = protection.adapted(model)
    assert type(trained) is type(model)
    assert not trained.training
    torch.testing.assert_close(logits(trained), logits(model))
    fit(protection, trained)
    assert not torch.allclose(logits(trained), logits(model))
    with_adapter = {n.split(".lora_")[0].split(".osf_")[0] for n, p in trained.named_parameters() if p.requires_grad}
    assert with_adapter == layers if isinstance(layers, set) else len(with_adapter) == layers
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    bases = {n.replace(".base_layer", ""): value for n, value in trained.state_dict().items()}
    assert all(torch.equal(bases[key], value) for key, value in before.items())


def test_lora_adds_a_product_of_its_rank_times_its_scale():
    model = Small()
    protection = make_protection("lora", [], strength=3, scale=0.5)
    trained = protection.adapted(model)
    fit(protection, trained)
    state = protection.state_dict()
    for name in ("wide", "narrow"):
        added = weight_of(getattr(trained, name), model.get_submodule(name).in_features) - getattr(model, name).weight
        a, b = (state[f"{name}.lora_{factor}.default.weight"] for factor in "AB")
        torch.testing.assert_close(added, 0.5 * b @ a, atol=1e-6, rtol=1e-4)
        assert int((torch.linalg.svdvals(added) > 1e-5).sum()) == 3


def test_osf_keeps_the_leading_singular_directions_exactly_under_sgd():
    model = Small()
    protection = make_protection("osf", [], strength=0.25)
    trained = protection.adapted(model)
    fit(protection, trained)
    for name in ("wide", "narrow"):
        before = getattr(model, name).weight.detach()
        after = weight_of(getattr(trained, name), before.shape[1])
        u, s, v = torch.linalg.svd(before, full_matrices=False)
        torch.testing.assert_close(u[:, :3].T @ after, s[:3, None] * v[:3], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(after @ v[:3].T, u[:, :3] * s[:3], atol=1e-5, rtol=1e-4)
        assert (u[:, 3:].T @ (after - before) @ v[3:].T).norm() > 1e-2  # and the others move


def test_the_initial_weights_of_an_adapter_follow_the_global_seed():
    model, found = Small(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made = make_protection("lora", [], strength=2).adapted(model)
        found.append(made.get_parameter("wide.lora_A.default.weight"))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("is_first", [True, False])
def test_training_goes_on_from_a_state_bit_for_bit(name, is_first):
    def adam(trained):
        return Adam([p for p in trained.parameters() if p.requires_grad], lr=0.01)

    model = Small()
    whole = make_protection(name, [], strength=STRENGTHS[name])
    trained = whole.adapted(model)
    optimizer = adam(trained)
    fit(whole, trained, 3, optimizer)
    state, of_optimizer = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    fit(whole, trained, 3, optimizer)

    resumed = make_protection(name, [], strength=STRENGTHS[name])
    if is_first:  # a state may come before the model or after it
        resumed.load_state_dict(state)
    again = resumed.adapted(model)
    if not is_first:
        resumed.load_state_dict(state)
    optimizer = adam(again)
    optimizer.load_state_dict(of_optimizer)
    fit(resumed, again, 3, optimizer)
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), again.parameters(), strict=True))


# ---- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "strength", "told"),
    [
        ("lora", 0, "Expected the rank of lora to be a whole number of at least 1, but got 0"),
        ("lora", 1.5, "a whole number of at least 1, but got 1.5"),
        ("lora", float("inf"), "a whole number of at least 1, but got inf"),
        ("lora", float("nan"), "a whole number of at least 1, but got nan"),
        ("osf", 0, "Expected the kept share of osf to be above 0 and below 1, but got 0"),
        ("osf", 1, "above 0 and below 1, but got 1"),
        ("osf", float("nan"), "above 0 and below 1, but got nan"),
    ],
)
def test_a_strength_out_of_range_is_refused(name, strength, told):
    with pytest.raises(InputError, match=told):
        PROTECTIONS[name].Options(strength=strength)


def check(name, model, strength=None):
    options = PROTECTIONS[name].Options(strength=strength or STRENGTHS[name])
    PROTECTIONS[name].check_model(model, options)


def test_models_that_cannot_be_adapted_are_refused():
    check("lora", gpt2())
    with pytest.raises(InputError, match=r"by osf \(Linear\), but got GPT2LMHeadModel with Conv1D. Leave osf out"):
        check("osf", gpt2())
    with pytest.raises(InputError, match=r"but got Embedding with no linear layers. Leave lora out"):
        check("lora", nn.Embedding(4, 3))
    with pytest.raises(InputError, match=r"but got 0.05, which keeps none of the 12 of wide. Choose more than 0.0833"):
        check("osf", Small(), 0.05)


@pytest.mark.parametrize("name", STRENGTHS)
def test_without_peft_one_sentence_names_the_extra(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=rf"the package peft for {name}, but got none. .*forgetless\[transformers\]"):
        check(name, Small())


@pytest.mark.parametrize("name", STRENGTHS)
@pytest.mark.parametrize("read", [two_model_config, search_config])
def test_models_that_share_layers_refuse_what_replaces_them(name, read):
    with pytest.raises(InputError, match=f"keep shared weights in place, but got {name}, which trains other layers"):
        read(f"--protection none {name}")
