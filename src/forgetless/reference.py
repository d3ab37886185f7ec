"""Slow and obvious versions of the package's formulas: the oracle of the tests, and nothing else.

Each is written from its formula, one example and one number at a time where that is clearest, and shares no code with
the version it checks.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def diagonal_fisher(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    loss_fn: Callable[[Any, Tensor], Tensor],
    kind: str = "empirical",
) -> dict[str, Tensor]:
    """F_i = 1/N Σ_n (∂ℓ_n/∂θ_i)², by one backward pass per example (and class) through a copy of the model.

    Args:
        model: Any module; its inputs are single tensors.
        batches: Pairs (inputs, targets), examples along dim 0.
        loss_fn: (outputs, targets) of a batch → scalar, the mean over examples.
        kind: `empirical`, `exact` (logits (B, C)) or `batch`.

    Returns:
        Parameter name → F.
    """
    model = copy.deepcopy(model).eval()
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    fisher = {name: torch.zeros_like(weight) for name, weight in model.named_parameters() if name in names}
    count = 0

    def add_square(inputs: Tensor, targets: Tensor, weight: float) -> None:
        model.zero_grad()
        loss_fn(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and name in fisher:
                fisher[name] += weight * parameter.grad**2

    for inputs, targets in batches:
        count += len(targets)
        if kind == "batch":
            add_square(inputs, targets, float(len(targets)))
            continue
        for n in range(len(targets)):
            x, y = inputs[n : n + 1], targets[n : n + 1]
            if kind == "empirical":
                add_square(x, y, 1.0)
            else:
                probabilities = torch.softmax(model(x).detach(), -1)[0]
                for label, probability in enumerate(probabilities):
                    add_square(x, torch.full_like(y, label), float(probability))
    return {name: total / count for name, total in fisher.items()}


def fisher_of_predictions(
    model: nn.Module,
    inputs: Tensor,
    loss_fn: Callable[[Any, Tensor], Tensor],
    labels: Callable[[Tensor], Iterable[tuple[Tensor, float]]],
) -> dict[str, Tensor]:
    """F_i = 1/N Σ_n Σ_y p(y | x_n) (∂ℓ_n(y)/∂θ_i)², by one backward pass per example and label.

    Args:
        model: Any module.
        inputs: Examples along dim 0.
        loss_fn: (outputs, targets) of one example → scalar.
        labels: Outputs of one example → its labels y and their p. Those of a normal distribution are the nodes and
            weights of a quadrature.

    Returns:
        Parameter name → F.
    """
    model = copy.deepcopy(model).eval()
    fisher = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for x in inputs.unsqueeze(1):
        for y, p in labels(model(x).detach()):
            model.zero_grad()
            loss_fn(model(x), y).backward()  # type: ignore[no-untyped-call]
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    fisher[name] += p * parameter.grad**2 / len(inputs)
    return fisher


def fisher_per_target(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss_fn: Callable[[Any, Tensor], Tensor],
    ignored: int = -100,
) -> dict[str, Tensor]:
    """F_i = Σ_n (Σ_t ∂ℓ_nt/∂θ_i)² / Σ_n T_n, by one backward pass per target.

    Args:
        model: Any module; its outputs are (B, T, …).
        inputs: Examples along dim 0.
        targets: (B, T).
        loss_fn: (outputs, targets) of one target, (1, …) and (1,) → scalar.
        ignored: A target that does not count.

    Returns:
        Parameter name → F.
    """
    model = copy.deepcopy(model).eval()
    fisher = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    count = 0
    for x, y in zip(inputs.unsqueeze(1), targets, strict=True):
        sums = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
        for t in range(len(y)):
            if int(y[t]) == ignored:
                continue
            count += 1
            model.zero_grad()
            loss_fn(model(x)[:, t], y[t : t + 1]).backward()  # type: ignore[no-untyped-call]
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    sums[name] += parameter.grad
        for name, total in sums.items():
            fisher[name] += total**2
    return {name: total / count for name, total in fisher.items()}


def mean_absolute_gradient(
    model: nn.Module, batches: Iterable[tuple[Any, Tensor]], function: Callable[[Any, Tensor], Tensor]
) -> dict[str, Tensor]:
    """1/N Σ_n |∂s_n/∂θ_i|, by one backward pass per example through a copy of the model.

    Args:
        model: Any module; its inputs are single tensors.
        batches: Pairs (inputs, targets), examples along dim 0.
        function: (outputs, targets) of one example → s, a scalar.

    Returns:
        Parameter name → mean.
    """
    model = copy.deepcopy(model).eval()
    mean = {name: torch.zeros_like(weight) for name, weight in model.named_parameters() if weight.requires_grad}
    examples = [(x[n : n + 1], y[n : n + 1]) for x, y in batches for n in range(len(y))]
    for x, y in examples:
        model.zero_grad()
        function(model(x), y).backward()  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                mean[name] += parameter.grad.abs() / len(examples)
    return mean


def quadratic_penalty(
    weights: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor], alpha: float
) -> float:
    """α/2 Σ_i F_i (θ_i − θ̂_i)², one weight at a time."""
    total = 0.0
    for weight, anchor, importance in zip(weights, anchors, importances, strict=True):
        triples = zip(weight.flatten().tolist(), anchor.flatten().tolist(), importance.flatten().tolist(), strict=True)
        for theta, theta_hat, fisher in triples:
            total += alpha / 2 * fisher * (theta - theta_hat) ** 2
    return total


def proximal_step(
    weight: Tensor,
    anchor: Tensor,
    importance: Tensor,
    *,
    alpha: float,
    learning_rate: float,
    metric: Tensor | float,
) -> Tensor:
    """(θ + s θ̂) / (1 + s) with s = lr·α·F/d, one weight at a time."""
    metric = torch.as_tensor(metric, dtype=weight.dtype).expand_as(weight)
    result = []
    for theta, theta_hat, fisher, d in zip(
        weight.flatten().tolist(),
        anchor.flatten().tolist(),
        importance.flatten().tolist(),
        metric.flatten().tolist(),
        strict=True,
    ):
        s = learning_rate * alpha * fisher / d
        result.append((theta + s * theta_hat) / (1 + s))
    return torch.tensor(result, dtype=weight.dtype).reshape(weight.shape)


def coupling(
    model: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    shared: Sequence[Tensor],
    prior: float,
    output_curvature: Callable[[Tensor], Tensor],
) -> Tensor:
    """Ω = H_ss − H_s1 H₁₁⁻¹ H_1s of H = 1/N Σ_n J_nᵀ A_n J_n + λI as a dense matrix, by explicit Jacobians.

    Args:
        model: Any module; its inputs are single tensors.
        batches: Pairs (inputs, targets), examples along dim 0.
        shared: The weights that Ω is for, in their order; all others are integrated out.
        prior: λ.
        output_curvature: Outputs of one example (C,) → A_n (C, C).

    Returns:
        Ω over all shared weights as one vector.
    """
    private = [p for p in model.parameters() if all(p is not q for q in shared)]
    weights = [*private, *shared]
    total: Tensor = torch.zeros(())
    count = 0
    for inputs, _ in batches:
        for x in inputs:
            outputs = model(x.unsqueeze(0)).flatten()
            jacobian = torch.stack(
                [
                    torch.cat([g.flatten() for g in torch.autograd.grad(output, weights, retain_graph=True)])
                    for output in outputs
                ]
            )
            total = total + jacobian.T @ output_curvature(outputs.detach()) @ jacobian
            count += 1
    h = total / count + prior * torch.eye(len(total), dtype=total.dtype)
    k = sum(p.numel() for p in private)
    schur: Tensor = h[k:, k:] - h[k:, :k] @ torch.linalg.solve(h[:k, :k], h[:k, k:])
    return schur


def projection(
    weights: Sequence[float],
    anchors: Sequence[float],
    importances: Sequence[float],
    metrics: Sequence[float],
    tolerance: float,
) -> tuple[list[float], float]:
    """The nearest point with ½ Σ F (θ' − θ̂)² ≤ tolerance, and its multiplier, found by halving an interval.

    Nearest is the smallest ½ Σ m (θ' − θ)², whose solution is θ' = θ̂ + (θ − θ̂) / (1 + α F / m).

    Args:
        weights: θ.
        anchors: θ̂.
        importances: F ≥ 0.
        metrics: m > 0.
        tolerance: Above 0.

    Returns:
        θ' and α.
    """

    def drawn(alpha: float) -> list[float]:
        rows = zip(weights, anchors, importances, metrics, strict=True)
        return [theta_hat + (theta - theta_hat) / (1 + alpha * f / m) for theta, theta_hat, f, m in rows]

    def increase(alpha: float) -> float:
        rows = zip(drawn(alpha), anchors, importances, strict=True)
        return sum(f * (theta - theta_hat) ** 2 for theta, theta_hat, f in rows) / 2

    if increase(0.0) <= tolerance:
        return list(weights), 0.0
    low, high = 0.0, 1.0
    while increase(high) > tolerance:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if increase(middle) > tolerance else (low, middle)
    return drawn(high), high
