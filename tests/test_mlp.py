import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forgetless.errors import InputError
from forgetless.experiments.two_model.config import MOST_SHARED, Wiring
from forgetless.experiments.two_model.mlp import DEPTH_A, DEPTH_B, MLP, chain_of_models, shared_parameters

SIZES = {"num_inputs": 12, "num_classes": 3, "width": 5}

wirings = st.sampled_from(Wiring).flatmap(
    lambda wiring: st.tuples(st.just(wiring), st.integers(1, MOST_SHARED[wiring]))
)


def same(layers, others):
    return {(i, j) for i, a in enumerate(layers, 1) for j, b in enumerate(others, 1) if a is b}


def test_prefix_shares_the_first_layers():
    for k in (1, 2, 3, 4):
        a, b = chain_of_models(Wiring.PREFIX, k, **SIZES)
        assert same(a.layers, b.layers) == {(i, i) for i in range(1, k + 1)}


def test_crossed_shares_at_other_depths_in_another_order():
    for k in (1, 2, 3):
        a, b = chain_of_models(Wiring.CROSSED, k, **SIZES)
        pairs = sorted(same(a.layers, b.layers))
        assert len(pairs) == k
        assert all(depth_a != depth_b for depth_a, depth_b in pairs)
        if k > 1:
            assert [depth_b for _, depth_b in pairs] != sorted(depth_b for _, depth_b in pairs)


@given(wirings, st.integers(2, 7))
def test_every_chain_runs_and_shares_with_a_and_with_each_other(wiring_and_shared, num_models):
    wiring, shared = wiring_and_shared
    models = chain_of_models(wiring, shared, num_models=num_models, **SIZES)
    assert [len(model.layers) for model in models] == [DEPTH_A] + [DEPTH_B] * (num_models - 1)
    for j, model in enumerate(models):
        assert model(torch.randn(4, 3, 4)).shape == (4, 3)
        for other in models[:j]:
            assert len(same(model.layers, other.layers)) >= shared
            assert model.classifier is not other.classifier
    expected = sum(p.numel() for m in models for p in m.parameters())
    unique = {p: p.numel() for m in models for p in m.parameters()}
    assert sum(unique.values()) < expected
    assert set(shared_parameters(models)) < set(unique)


def test_the_seed_decides_the_weights_and_the_global_state_is_left_alone():
    state = torch.get_rng_state()
    first, again, other = (chain_of_models(Wiring.CROSSED, 3, seed=s, **SIZES)[1] for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_forward_is_the_formula():
    a = chain_of_models(Wiring.PREFIX, 1, activation="sigmoid", **SIZES)[0]
    x = torch.randn(2, 1, 3, 4)
    h = x.reshape(2, 12)
    for layer in a.layers:
        h = 1 / (1 + torch.exp(-(h @ layer.weight.T + layer.bias)))
    torch.testing.assert_close(a(x), h @ a.classifier.weight.T + a.classifier.bias)


@pytest.mark.parametrize(("wiring", "shared"), [("prefix", 5), ("crossed", 4), ("crossed", 0)])
def test_more_shared_than_a_has(wiring, shared):
    with pytest.raises(InputError, match=rf"Expected shared between 1 and \d.*but got {shared}"):
        chain_of_models(Wiring(wiring), shared, **SIZES)


def test_an_mlp_holds_the_layers_it_was_given():
    layer = torch.nn.Linear(6, 6)
    assert MLP([layer], torch.nn.Linear(6, 2)).layers[0] is layer
    assert math.prod(layer.weight.shape) == 36
