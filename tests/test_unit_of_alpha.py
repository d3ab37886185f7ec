"""docs/mathematics.md, "The unit of alpha": per target, the posterior's own strength is T_A/T_B."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forgetless import WeightPlasticity, diagonal_fisher

NUM_INPUTS = 3


def chunks(num_chunks, num_targets, generator):
    """Chunks of targets y = x·w + noise, on inputs whose columns are orthogonal, so that the diagonal is all of F."""
    inputs, _ = torch.linalg.qr(torch.randn(num_chunks * num_targets, NUM_INPUTS, generator=generator).double())
    inputs = 5 * inputs * torch.tensor([1.0, 2.0, 0.5])
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5]).double() + torch.randn(len(inputs), generator=generator)
    return inputs.reshape(num_chunks, num_targets, NUM_INPUTS), targets.reshape(num_chunks, num_targets, 1)


def least_squares(inputs, targets):
    return torch.linalg.lstsq(inputs.reshape(-1, NUM_INPUTS), targets.reshape(-1, 1)).solution.T


def loss(outputs, targets):
    """Half the squared error: the negative log likelihood of unit variance, of each target."""
    return F.mse_loss(outputs, targets, reduction="none") / 2


@pytest.mark.parametrize(("chunks_a", "chunks_b", "length"), [(8, 8, 5), (12, 4, 5), (4, 12, 2), (20, 20, 1)])
def test_a_then_b_is_both_together_at_the_ratio_of_their_targets(chunks_a, chunks_b, length):
    generator = torch.Generator().manual_seed(chunks_a + length)
    a, b = chunks(chunks_a, length, generator), chunks(chunks_b, length, generator)
    model = nn.Linear(NUM_INPUTS, 1, bias=False).double()
    plasticity = WeightPlasticity(model, alpha=chunks_a / chunks_b)  # T_A/T_B, as chunks are equally long

    model.weight.data = least_squares(*a)
    importance = diagonal_fisher(model, [a], loss, kind="exact", likelihood="gaussian", per="target")
    plasticity.consolidate(model, importance)

    model.weight.data = least_squares(torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]]))
    (loss(model(b[0]), b[1]).mean() + plasticity.penalty()).backward()
    torch.testing.assert_close(model.weight.grad, torch.zeros_like(model.weight), atol=1e-9, rtol=0)


def test_an_example_of_many_targets_with_a_mean_loss_has_one_share_of_the_importance():
    length = 5
    batch = chunks(6, length, torch.Generator().manual_seed(0))
    model = nn.Linear(NUM_INPUTS, 1, bias=False).double()
    per_target = diagonal_fisher(model, [batch], loss, per="target")["weight"]
    per_example = diagonal_fisher(model, [batch], lambda outputs, targets: loss(outputs, targets).mean())["weight"]
    torch.testing.assert_close(per_example * length, per_target)
