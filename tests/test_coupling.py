"""The coupled form against closed forms, dense matrices and an independent reference, all in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Adam, AdamW

from forgetless import curvature, diagonal_fisher, reference
from forgetless.curvature import gauss_newton_factor, leading_rows, marginal_factor
from forgetless.errors import InputError
from forgetless.protection import Evidence, make_protection
from forgetless.protection.coupling import Coupling
from forgetless.training import train

PRIOR = 0.05


def randn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class TwoParts(nn.Module):
    """x (·, private + shared) → private(x₁) + shared(x₂); linear in its weights."""

    def __init__(self, shared, width, num_outputs=1, seed=0):
        super().__init__()
        self.private = nn.Linear(width, num_outputs, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.private.weight.copy_(randn(num_outputs, width, seed=seed))
        self.shared = shared

    def forward(self, x):
        width = self.private.in_features
        return self.private(x[:, :width]) + self.shared(x[:, width:])


class Deep(nn.Module):
    """A shared layer between two private ones."""

    def __init__(self, shared, num_classes=3, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        self.enter = nn.Linear(4, shared.in_features, dtype=torch.float64)
        self.shared = shared
        self.leave = nn.Linear(shared.out_features, num_classes, dtype=torch.float64)

    def forward(self, x):
        return self.leave(torch.tanh(self.shared(torch.tanh(self.enter(x)))))


def linear(num_inputs, num_outputs, seed=0, bias=False):
    torch.manual_seed(seed)
    return nn.Linear(num_inputs, num_outputs, bias=bias, dtype=torch.float64)


def squared_error(outputs, targets):
    return (outputs - targets).square().flatten(1).sum(1).mean() / 2


def evidence_of(batches, loss=F.cross_entropy):
    def unused():
        raise AssertionError

    return Evidence(fisher=unused, batches=lambda: batches, loss=loss, loss_of=unused)


def softmax_curvature(outputs):
    p = outputs.softmax(-1)
    return p.diag() - torch.outer(p, p)


def omega(protection, prior=PRIOR):
    """λI + LᵀL, dense."""
    rows = protection.state_dict()["rows"]
    return prior * torch.eye(rows.shape[1], dtype=rows.dtype) + rows.T @ rows


def consolidated(model, shared, batches, loss=F.cross_entropy, **options):
    protection = Coupling(shared, **{"prior": PRIOR, "num_examples": 10**6, "num_rows": 10**6, **options})
    protection.consolidate(model, evidence_of(batches, loss))
    return protection


def deep(num=12):
    layer = linear(5, 4, seed=2, bias=True)
    model = Deep(layer)
    return model, list(layer.parameters()), (randn(num, 4, seed=5), torch.arange(num) % 3)


# ---- closed forms ------------------------------------------------------------------------------------------------


def test_two_linear_gaussian_models_have_the_exact_posterior():
    """Of (θ₁, θ_s) given model 1's data, and of (θ_s, θ₂) given both, from the normal equations alone.

    y = X₁ θ₁ + X_s θ_s + noise of variance 1, priors N(0, 1/τ); mean losses, hence λ = τ/N₁ and α = N₁/N₂.
    """
    tau, n1, n2, width, ps = 0.7, 20, 30, 3, 4
    x1, y1, x2, y2 = randn(n1, width + ps, seed=1), randn(n1, 1, seed=2), randn(n2, width + ps, seed=3), randn(n2, 1)
    shared = linear(ps, 1)
    a, b = TwoParts(shared, width), TwoParts(shared, width, seed=1)
    # Model 1 alone: Gaussian with precision P and mean P⁻¹ X₁ᵀ y₁, marginalised by taking blocks of the covariance.
    precision = x1.T @ x1 + tau * torch.eye(width + ps, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ x1.T @ y1
    marginal = torch.linalg.inv(covariance[width:, width:])
    with torch.no_grad():
        a.private.weight.copy_(mean[:width].T)
        shared.weight.copy_(mean[width:].T)
    protection = consolidated(a, [shared.weight], [(x1, y1)], squared_error, prior=tau / n1, strength=n1 / n2)
    torch.testing.assert_close(n1 * omega(protection, tau / n1), marginal, atol=1e-9, rtol=1e-9)
    # All three blocks (θ₁, θ_s, θ₂) at once.
    wide = torch.zeros(n1 + n2, width + ps + width, dtype=torch.float64)
    wide[:n1, : width + ps] = x1
    wide[n1:, width:] = torch.cat([x2[:, width:], x2[:, :width]], 1)
    joint = torch.linalg.solve(
        wide.T @ wide + tau * torch.eye(2 * width + ps, dtype=torch.float64), wide.T @ torch.cat([y1, y2])
    )
    optimizer = SGD([{"params": b.private.parameters(), "weight_decay": tau / n2}, {"params": [shared.weight]}], lr=0.5)
    train([(x2, y2)] * 150, lambda batch: squared_error(b(batch[0]), batch[1]), optimizer, protection)
    assert (shared.weight.detach().T - joint[width : width + ps]).abs().max() < 1e-6
    assert (b.private.weight.detach().T - joint[width + ps :]).abs().max() < 1e-6


def test_a_softmax_regression_has_the_schur_complement_of_its_hessian():
    """There the Gauss-Newton matrix is the Hessian, which torch.func finds by differentiating the loss twice."""
    shared = linear(4, 3)
    model = TwoParts(shared, 2, num_outputs=3)
    x, y = randn(9, 6, seed=4), torch.arange(9) % 3

    def loss(flat):
        weights = {"private.weight": flat[:6].view(3, 2), "shared.weight": flat[6:].view(3, 4)}
        prior = PRIOR / 2 * flat.square().sum()
        return F.cross_entropy(torch.func.functional_call(model, weights, x), y) + prior

    at = torch.cat([model.private.weight.detach().flatten(), shared.weight.detach().flatten()])
    h = torch.autograd.functional.hessian(loss, at)
    dense = h[6:, 6:] - h[6:, :6] @ torch.linalg.inv(h[:6, :6]) @ h[:6, 6:]
    protection = consolidated(model, [shared.weight], [(x, y)])
    torch.testing.assert_close(omega(protection), dense, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    ("loss", "output_curvature"),
    [
        (F.cross_entropy, softmax_curvature),
        (lambda f, y: squared_error(f, F.one_hot(y, 3)), lambda f: torch.eye(3, dtype=f.dtype)),
    ],
    ids=["cross entropy", "squared error"],
)
def test_a_deep_model_is_the_reference(loss, output_curvature):
    model, shared, (x, y) = deep()
    expected = reference.coupling(model, [(x, y)], shared, PRIOR, output_curvature)
    torch.testing.assert_close(omega(consolidated(model, shared, [(x, y)], loss)), expected, atol=1e-10, rtol=1e-8)


def test_cross_entropy_has_the_exact_fisher_on_its_diagonal_if_nothing_is_private():
    model, _, (x, y) = deep()
    fisher = diagonal_fisher(model, [(x, y)], F.cross_entropy, "exact")
    protection = consolidated(model, list(model.parameters()), [(x, y)])
    diagonal = torch.cat([value.flatten() for value in fisher.values()])
    torch.testing.assert_close(omega(protection).diagonal() - PRIOR, diagonal)


def test_integrating_private_weights_out_leaves_less_than_holding_them():
    """0 ≼ λI ≼ Ω ≼ H_ss, strictly somewhere; the smaller the prior, the more private weights make up for."""
    model, shared, batch = deep()
    weights = [p for p in model.parameters() if all(p is not q for q in shared)]
    rows = gauss_newton_factor(
        model, ((x[None], y[None]) for x, y in zip(*batch, strict=True)), F.cross_entropy, [*weights, *shared],
        torch.Generator(),
    )  # fmt: skip
    width = sum(p.numel() for p in weights)
    held = rows[:, width:].T @ rows[:, width:]
    found = [marginal_factor(rows[:, :width], rows[:, width:], prior) for prior in (1e-3, 1e-1, 1e3)]
    grams = [factor.T @ factor for factor in found]
    for smaller, larger in [(grams[0], grams[1]), (grams[1], grams[2]), (grams[2], held)]:
        assert torch.linalg.eigvalsh(larger - smaller).min() > -1e-12
    assert torch.linalg.eigvalsh(held - grams[1]).max() > 0.05 * torch.linalg.eigvalsh(held).max()
    torch.testing.assert_close(grams[2], held, rtol=1e-2, atol=1e-4)


# ---- drawn labels ------------------------------------------------------------------------------------------------


def test_drawn_labels_converge_to_all_of_them(monkeypatch):
    """Chunks of 3 words over 4: the mean of many one-row estimates is the whole curvature of the mean loss."""
    model = nn.Linear(2, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(randn(4, 2, seed=3))
    x, y = randn(2, 3, 2, seed=4), torch.tensor([[0, 1, 2], [3, 0, 1]])

    def loss(f, t):
        return F.cross_entropy(f.flatten(0, -2), t.flatten())

    def factor(number):
        examples = [(x[n % 2, None], y[n % 2, None]) for n in range(number)]
        return gauss_newton_factor(model, examples, loss, [model.weight], torch.Generator().manual_seed(0))

    whole = factor(2)
    monkeypatch.setattr(curvature, "MOST_OUTPUTS", 1)
    few, many = (factor(number) for number in (60, 1500))
    assert many.shape == (1500, 8)
    exact = whole.T @ whole
    errors = [float((rows.T @ rows - exact).norm() / exact.norm()) for rows in (few, many)]
    assert errors[1] < 0.08 < errors[0]


def test_drawn_labels_leave_the_random_state_and_repeat(monkeypatch):
    monkeypatch.setattr(curvature, "MOST_OUTPUTS", 1)
    model, shared, batch = deep()
    state = torch.get_rng_state()
    first, second = (consolidated(model, shared, [batch], rule="replace") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(omega(first), omega(second))
    once = omega(first)
    first.consolidate(model, evidence_of([batch]))
    assert not torch.allclose(omega(first), once)  # other labels for another model


# ---- invariances -------------------------------------------------------------------------------------------------


def test_batches_order_of_examples_and_of_weights_do_not_matter():
    model, shared, (x, y) = deep()
    whole = omega(consolidated(model, shared, [(x, y)]))
    parts = omega(consolidated(model, shared, [(x[:5], y[:5]), (x[5:], y[5:])]))
    torch.testing.assert_close(whole, parts, atol=1e-12, rtol=1e-9)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(omega(consolidated(model, shared, [(x[order], y[order])])), whole)
    flipped = omega(consolidated(model, shared[::-1], [(x, y)]))
    first = shared[0].numel()
    place = [*range(first, len(whole)), *range(first)]
    torch.testing.assert_close(flipped, whole[place][:, place])


def test_as_many_examples_as_asked_and_the_mode_stays():
    model, shared, (x, y) = deep()
    model.enter.eval()
    few = consolidated(model, shared, [(x, y)], num_examples=4)
    torch.testing.assert_close(omega(few), omega(consolidated(model, shared, [(x[:4], y[:4])])))
    assert not torch.allclose(omega(few), omega(consolidated(model, shared, [(x, y)])))
    assert model.training
    assert not model.enter.training
    assert all(p.grad is None for p in model.parameters())


def test_truncation_keeps_the_leading_part():
    rows = randn(9, 20, seed=6)
    kept = leading_rows(rows, 4)
    _, s, v = torch.linalg.svd(rows, full_matrices=False)
    assert kept.shape == (4, 20)
    torch.testing.assert_close(kept.T @ kept, v[:4].T @ s[:4].square().diag() @ v[:4])
    model, shared, batch = deep()
    assert consolidated(model, shared, [batch], num_rows=3).state_dict()["rows"].shape == (3, 24)


# ---- several models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "kept", "added"), [("sum", 1, 1), ("ema", 0.8, 0.2), ("replace", 0, 1)])
def test_a_second_model_is_folded_in_for_the_weights_it_used(rule, kept, added):
    layer = linear(5, 4, seed=2, bias=True)
    unused = linear(2, 2)
    a, b = Deep(layer), Deep(layer, seed=7)
    a.register_parameter("own", unused.weight)  # among the shared ones, in a only
    shared = [*layer.parameters(), unused.weight]
    batch = deep()[2]
    protection = consolidated(a, shared, [batch], rule=rule, decay=0.8)
    first, before = omega(protection, 0), unused.weight.detach().clone()
    with torch.no_grad():
        for p in shared:
            p.add_(1)
    protection.consolidate(b, evidence_of([batch]))
    expected = first.clone()
    alone = consolidated(b, shared, [batch])
    expected[:24, :24] = kept * first[:24, :24] + added * omega(alone, 0)[:24, :24]
    torch.testing.assert_close(omega(protection, 0), expected)
    anchors = protection.state_dict()["anchors"]
    assert torch.equal(anchors[0], layer.weight)
    assert torch.equal(anchors[2], before)


# ---- the step ----------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda groups: SGD(groups, lr=0.1),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9, dampening=0.2),
    "adam": lambda groups: Adam(groups, lr=0.01),
    "adamw": lambda groups: AdamW(groups, lr=0.01, weight_decay=0.1),
}


def metric_of(optimizer, group, weight):
    """d, from the optimizer's documentation."""
    if isinstance(optimizer, SGD):
        return torch.full_like(weight, (1 - group["momentum"]) / (1 - group["dampening"]))
    state, t = optimizer.state[weight], float(optimizer.state[weight]["step"])
    return (state["exp_avg_sq"] / (1 - group["betas"][1] ** t)).sqrt() + group["eps"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e3, 1e12])
def test_the_step_is_that_of_a_dense_solve(optimizer, alpha):
    """With two learning rates that change, a weight that gets no gradient, and one that gets none at the end."""
    model, _, batch = deep()
    shared = [model.shared.weight, model.enter.weight, model.leave.bias]
    protection = consolidated(model, shared, [batch], strength=alpha)
    anchors = [p.detach().clone() for p in shared]
    dense = omega(protection)
    with torch.no_grad():
        for p in shared:
            p.add_(0.1 * randn(*p.shape, seed=9))
    shared[2].requires_grad_(False)
    opt = OPTIMIZERS[optimizer]([{"params": [shared[0]]}, {"params": shared[1:], "lr": 0.03}])
    free, found = [], []
    opt.register_step_post_hook(lambda *_: free.append([p.detach().clone() for p in shared]))

    def note(step):
        metrics = [metric_of(opt, g, p) / g["lr"] for g, p in zip(opt.param_groups, shared[:2], strict=True)]
        found.append(([p.detach().clone() for p in shared], metrics))
        opt.param_groups[0]["lr"] *= 3  # a schedule
        if step == 2:
            shared[1].requires_grad_(False)

    train([batch] * 3, lambda b: F.cross_entropy(model(b[0]), b[1]), opt, protection, after_step=note)
    for before, (after, metrics), num_moving in zip(free, found, (2, 2, 1), strict=True):
        u, v = (torch.cat([(p - q).flatten() for p, q in zip(ps, anchors, strict=True)]) for ps in (before, after))
        d = torch.cat([m.flatten() for m in metrics[:num_moving]])
        n = len(d)
        wanted = torch.linalg.solve(d.diag() + alpha * dense[:n, :n], d * u[:n] - alpha * dense[:n, n:] @ u[n:])
        torch.testing.assert_close(v[:n], wanted, atol=1e-9, rtol=1e-7)
        assert torch.equal(u[n:], v[n:])


def test_the_step_is_stable_at_every_strength_in_float32():
    for alpha in [*(10.0**k for k in range(-12, 13, 3)), 1e-300, 1e300]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
        x, y = 30 * randn(12, 4).float(), torch.arange(12) % 3
        protection = Coupling(list(model[0].parameters()), strength=alpha, prior=1e-8)
        protection.consolidate(model, evidence_of([(x, y)]))
        weight = model[0].weight.detach()
        anchor, weights = weight.clone(), []
        train(
            [(x, y.flip(0))] * 20,
            lambda b, model=model: F.cross_entropy(model(b[0]), b[1]),
            SGD(model.parameters(), lr=0.5, momentum=0.9),
            protection,
            after_step=lambda _, weight=weight, weights=weights: weights.append(weight.clone()),
        )
        norms = [float((weight - anchor).norm()) for weight in weights]
        assert all(math.isfinite(norm) for norm in norms)
        assert alpha < 1e12 or max(norms) < 1e-3
        assert alpha > 1e-6 or max(norms) > 0.1


def test_penalty_is_the_quadratic_form():
    model, shared, batch = deep()
    protection = consolidated(model, shared, [batch], strength=3.0)
    assert protection.penalty() == 0
    moves = [randn(*p.shape, seed=i) for i, p in enumerate(shared)]
    with torch.no_grad():
        for p, move in zip(shared, moves, strict=True):
            p.add_(move)
    v = torch.cat([move.flatten() for move in moves])
    assert protection.penalty() == pytest.approx(1.5 * float(v @ omega(protection) @ v))
    protection.reset()
    assert protection.penalty() == 0


def test_a_state_goes_on_bit_for_bit_also_with_further_models(monkeypatch):
    monkeypatch.setattr(curvature, "MOST_OUTPUTS", 1)

    def whole(interrupted):
        model, shared, batch = deep()
        protection = consolidated(model, shared, [batch], rule="ema", strength=10.0, num_rows=20)
        optimizer = Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            if interrupted:
                state = copy.deepcopy(protection.state_dict())
                protection = Coupling(shared, strength=10.0, prior=PRIOR, num_examples=10**6, num_rows=20, rule="ema")
                protection.load_state_dict(state)
            train([batch] * 5, lambda b: F.cross_entropy(model(b[0]), 2 - b[1]), optimizer, protection)
            protection.consolidate(model, evidence_of([batch]))
        return [p.detach() for p in model.parameters()]

    assert all(torch.equal(p, q) for p, q in zip(whole(False), whole(True), strict=True))


def test_a_diverged_model_ends_in_numbers_that_are_none_not_in_an_error():
    model, shared, batch = deep()
    protection = consolidated(model, shared, [batch])
    optimizer = Adam(model.parameters())
    train([batch], lambda b: model(b[0]).sum() * math.nan, optimizer, protection)
    assert not torch.isfinite(shared[0]).any()


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": 0.0}, "Expected prior to be finite and above 0, but got 0.0"),
        ({"prior": math.nan}, "Expected prior to be finite"),
        ({"num_examples": 0}, "Expected num_examples to be at least 1"),
        ({"num_rows": 0}, "Expected num_rows to be at least 1"),
        ({"rule": "merge"}, "Expected rule to be one of sum, ema, replace"),
        ({"decay": 1.5}, r"Expected decay in \[0, 1\]"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        make_protection("coupling", [], **options)


def test_bad_evidence_and_states(monkeypatch):
    model, shared, (x, y) = deep()
    with pytest.raises(InputError, match="Expected at least one example"):
        consolidated(model, shared, [])
    with pytest.raises(InputError, match="Expected finite outputs and derivatives"):
        consolidated(model, shared, [(x * math.nan, y)])
    with pytest.raises(InputError, match="Expected anchors of 1 shared weights"):
        Coupling(shared[:1]).load_state_dict(consolidated(model, shared, [(x, y)]).state_dict())
    monkeypatch.setattr(curvature, "MOST_OUTPUTS", 1)
    with pytest.raises(InputError, match="Expected at most 1 outputs per example, or logits"):
        consolidated(model, shared, [(x, x[:, :3])], squared_error)


def test_a_model_without_shared_weights_changes_nothing():
    _, shared, batch = deep()
    protection = Coupling(shared)
    protection.consolidate(linear(4, 3), evidence_of([batch]))
    assert protection.state_dict()["rows"] is None
