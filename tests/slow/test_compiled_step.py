"""The compiled pass of a step is compiled once, and draws as the chunks do; it takes a compiler some seconds."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.optim import SGD, Adam, AdamW

from forgetless import WeightPlasticity


@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, lr=0.1), lambda p: Adam(p, lr=0.01), lambda p: AdamW(p, lr=0.01, fused=True)]
)
def test_a_compiled_pass_draws_as_chunks_do_and_is_compiled_once(make, monkeypatch) -> None:
    monkeypatch.setattr("forgetless.plasticity.block._MOST_KEPT", 0)
    torch._dynamo.reset()
    counters.clear()
    start = nn.ModuleList([nn.Linear(300, 200), nn.Linear(500, 700)])
    models = [copy.deepcopy(start), copy.deepcopy(start)]
    for model, compiled in zip(models, (False, True), strict=True):
        torch.manual_seed(0)
        plasticity = WeightPlasticity(model, alpha=10.0, compiled=compiled)
        plasticity.consolidate(model, {name: torch.rand_like(w) for name, w in model.named_parameters()})
        plasticity.attach(optimizer := make(model.parameters()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler's own
            for step in range(6):
                optimizer.param_groups[0]["lr"] *= 0.9
                for weight in model.parameters():
                    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
                optimizer.step()
    for left, right in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 1
