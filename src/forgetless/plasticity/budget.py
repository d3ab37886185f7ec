"""A limit on what earlier models may lose, in place of a strength: the multiplier α is found, not chosen.

    minimise L₂(θ₂, θ_s)   subject to   ½ Σ_i F_i (θ_s,i − θ̂_s,i)² ≤ tolerance

The left side is the quadratic form of the weight plasticity loss without its α: the increase of the earlier models'
mean loss that their Fisher information predicts. Its Lagrange function is the loss of arXiv:1902.08232, eq. 8, with
the multiplier as α. Each step of an optimizer is followed by a projection in the optimizer's own metric d,

    minimise ½ Σ_i d_i/lr_i (θ'_i − θ_i)²   subject to the same,

whose solution is the proximal step of one multiplier for all weights, θ'_i − θ̂_i = v_i / (1 + α lr_i F_i / d_i) with
v = θ − θ̂. What is left of the quadratic form, c(α), falls with α, and c(α)^(−½) is concave: it is a norm of the kind
that trust regions have, whose Newton iteration (Moré and Sorensen, SIAM Journal on Scientific and Statistical Computing
4(3), 1983) never passes the root from the left and rarely takes more than one or two steps from the last multiplier.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from forgetless.plasticity.metric import TINY, wide
from forgetless.sharding import Sums, local

LEAST_TOLERANCE = 1e-30
"""Below it, squares of what weights may move underflow in float32."""

# Between two measurements of what earlier models lost, the quadratic form may shrink to or grow by so much.
_LEAST_CHANGE, _MOST_CHANGE = 0.25, 2.0
# It may not shrink below this share of the tolerance. Fishers of models that fit their examples all but perfectly are
# so small that the form is 10⁻¹⁴ of what is lost (squared batch means on MNIST); every measurement doubles it again.
_SMALLEST_BUDGET = 1e-20
# The multiplier stays what it was while c lies between this share of the tolerance and the tolerance.
USED_SHARE = 0.8
# Where others take nearly all of the tolerance, a multiplier that leaves less than this share of the rest used falls.
_LEAST_SHARE = 0.1
# How far inside this range a new multiplier aims, as a share of its width.
_INSIDE = 0.1
# Newton's iteration takes a few steps; this many are needed only where numbers overflow on the way.
_MOST_STEPS = 100
_SMALLEST, _LARGEST, _GROWTH, _NEXT = 1e-30, 1e30, 16.0, 1 - 1e-12


@torch.no_grad()
def expected_increase(parameters: Sequence[Tensor], anchors: Sequence[Tensor], importances: Sequence[Tensor]) -> float:
    """½ Σ_i F_i (θ_i − θ̂_i)²: by how much the loss of earlier models has grown, as their Fisher predicts.

    Args:
        parameters: The shared weights θ. Where they are DTensors, the sum is that over all processes.
        anchors: θ̂, in the same order and shapes.
        importances: F ≥ 0, in the same order and shapes.

    Returns:
        The increase, in the unit of the loss; 0 for no parameters.

    >>> expected_increase([torch.tensor([1.0, 3.0])], [torch.zeros(2)], [torch.tensor([2.0, 0.0])])
    1.0
    """
    if not parameters:
        return 0.0
    weights = _weights(parameters, anchors, importances, [1.0] * len(parameters))
    return _draw(weights, 0.0).increase


@torch.no_grad()
def tolerance_step(
    parameters: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor],
    metrics: Sequence[float | Tensor],
    *,
    tolerance: float,
    others: float = 0.0,
    alpha: float = 0.0,
    share: float = USED_SHARE,
) -> float:
    """Draw the parameters towards their anchors, in place, until ½ Σ_i F_i (θ_i − θ̂_i)² ≤ tolerance.

    They become θ̂_i + (θ_i − θ̂_i) / (1 + α F_i / m_i), one multiplier α ≥ 0 for all. It stays what it was as long as
    the quadratic form then lies in [share · tolerance − others, tolerance − others] (of which a tenth is the least
    lower end), or below where α is 0; otherwise it is set such that the form lies just inside the end that it passed.
    With a share close to 1 this is the projection in the metric m; with a smaller one the multiplier changes less from
    step to step, and most steps need one evaluation.

    Parameters are left bit for bit where α or F is 0, and everything is left where a weight is not a number.

    Args:
        parameters: The shared weights θ after the optimizer's own step. Changed in place. Where they are DTensors, the
            quadratic form is that over all processes.
        anchors: θ̂, in the same order, shapes, types and devices.
        importances: F ≥ 0, in the same order and shapes.
        metrics: m = d/lr > 0, the optimizer's preconditioner over its learning rate: for each parameter a number or a
            tensor.
        tolerance: What the quadratic form may be, above 0, in the unit of the loss.
        others: What other weights take of the tolerance, less than all of it.
        alpha: The multiplier of the step before.
        share: In (0, 1).

    Returns:
        The multiplier.

    >>> theta = torch.tensor([1.0, 1.0])
    >>> alpha = tolerance_step([theta], [torch.zeros(2)], [torch.tensor([2.0, 0.0])], [1.0], tolerance=0.0625)
    >>> 0.8 * 0.0625 <= theta[0] ** 2 <= 0.0625, theta[1].item()
    (tensor(True), 1.0)
    """
    if not parameters:
        return alpha
    weights = _weights(parameters, anchors, importances, metrics)
    room = tolerance - others
    low = max(share * tolerance - others, _LEAST_SHARE * room)
    drawn = _drawn_within(weights, low, room, min(max(alpha, 0.0), _LARGEST))
    if drawn.alpha > 0 and not math.isnan(drawn.increase):
        # In a half type the pulls themselves would be rounded too coarsely.
        own = [local(p) for p in parameters]
        ends = torch._foreach_lerp([wide(p) for p in own], [wide(local(anchor)) for anchor in anchors], drawn.pulls)
        torch._foreach_copy_(own, list(ends))
    return drawn.alpha


class Limit:
    """How much of a tolerance the quadratic form may take, as measured losses have it, and the multiplier α for that.

    It is the state of `WeightPlasticity` under a tolerance.

    Args:
        tolerance: What earlier models may lose, above 0, in the unit of the loss.

    Attributes:
        limit: What ½ Σ F_i (θ_i − θ̂_i)² may be, at most the tolerance.
        multiplier: α of the last step.

    Raises:
        ValueError: If the tolerance is not finite and at least `LEAST_TOLERANCE`.

    >>> limit = Limit(0.02)
    >>> limit.adapt(increase=0.04, present=0.02)  # twice as much was lost as the form predicts
    True
    >>> limit.limit
    0.01
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = self.limit = _checked(tolerance)
        self.multiplier = 0.0

    @classmethod
    def restored(cls, tolerance: float, limit: Any, multiplier: float) -> Self:
        """A limit as it was saved.

        Args:
            tolerance: See above.
            limit: See above.
            multiplier: See above.

        Raises:
            ValueError: If the tolerance is refused, or the limit not above 0 and at most the tolerance.
        """
        if not (isinstance(limit, float) and 0 < limit <= _checked(tolerance)):
            raise ValueError(
                f"Expected a budget above 0 and at most the tolerance {tolerance}, but got {limit}. "
                "The state is damaged."
            )
        restored = cls(tolerance)
        restored.limit, restored.multiplier = limit, multiplier
        return restored

    @property
    def tolerance(self) -> float:
        """What earlier models may lose. Setting it keeps the ratio of limit to tolerance, which `adapt` found out."""
        return self._tolerance

    @tolerance.setter
    def tolerance(self, value: float) -> None:
        value = _checked(value)
        self.limit = min(self.limit * (value / self._tolerance), value)
        self._tolerance = value

    def reset(self) -> None:
        """Forget multiplier and measurements."""
        self.limit, self.multiplier = self._tolerance, 0.0

    def adapt(self, increase: float, present: float) -> bool:
        """Shrink the limit where too much was lost, and let it grow where less was and it is used up.

        Where the increase is above the tolerance, the limit becomes the form's present value (if that is less) times
        tolerance/increase, at least 1/4. Where it is below and 0.8 of the limit are used, the limit grows by
        tolerance/increase, at most 2, up to the tolerance itself.

        Args:
            increase: What earlier models lost, as measured, in the unit of the tolerance.
            present: The quadratic form at that measurement.

        Returns:
            Whether too much was lost.
        """
        if not increase <= self._tolerance:  # also where it is not a number
            share = self._tolerance / increase if math.isfinite(increase) else 0.0
            used = min(present, self.limit) if math.isfinite(present) else self.limit
            self.limit = max(max(share, _LEAST_CHANGE) * used, _SMALLEST_BUDGET * self._tolerance, LEAST_TOLERANCE)
            return True
        if present >= USED_SHARE * self.limit:
            share = self._tolerance / increase if increase > 0 else math.inf
            self.limit = min(self.limit * min(share, _MOST_CHANGE), self._tolerance)
        return False

    def draw(
        self,
        parameters: Sequence[Tensor],
        anchors: Sequence[Tensor],
        importances: Sequence[Tensor],
        metrics: Sequence[float | Tensor],
        others: float,
    ) -> None:
        """Draw weights back, in place, by one multiplier, until the quadratic form is within the limit.

        Args:
            parameters: As in `tolerance_step`, as are anchors, importances and metrics.
            anchors: See above.
            importances: See above.
            metrics: See above.
            others: What other weights take of the limit. Where that is all of it, it cannot be given back here: these
                weights go half of their way.
        """
        room = self.limit
        if not others < room:  # also where others are not numbers
            # A quarter of the form is half of the way. It may be too little to subtract from others: they are left out.
            room, others = max(expected_increase(parameters, anchors, importances) / 4, TINY), 0.0
        self.multiplier = tolerance_step(
            parameters, anchors, importances, metrics, tolerance=room, others=others, alpha=self.multiplier
        )


def _checked(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(
            f"Expected tolerance to be finite and above 0, but got {value}. "
            "It is what earlier models may lose; freeze the weights where that is nothing."
        )
    if value < LEAST_TOLERANCE:
        raise ValueError(
            f"Expected tolerance to be at least {LEAST_TOLERANCE:g}, but got {value}. float32 cannot tell less from 0. "
            "Freeze the weights instead."
        )
    return float(value)


class _Weights(NamedTuple):
    """v = θ − θ̂, F and m of each parameter, in one type that is at least float32; m may be numbers.

    Of DTensors they are this process's parts, and sums are those over all processes.
    """

    ways: list[Tensor]
    importances: list[Tensor]
    metrics: list[Tensor] | list[float]
    sums: Sums


def _weights(
    parameters: Sequence[Tensor],
    anchors: Sequence[Tensor],
    importances: Sequence[Tensor],
    metrics: Sequence[float | Tensor],
) -> _Weights:
    ways = _ways(parameters, anchors)
    importances = [local(importance).to(way.dtype) for importance, way in zip(importances, ways, strict=True)]
    sums = Sums(parameters)
    numbers = [metric for metric in metrics if not isinstance(metric, Tensor)]
    if len(numbers) == len(metrics):
        return _Weights(ways, importances, numbers, sums)
    pairs = zip((local(m) if isinstance(m, Tensor) else m for m in metrics), ways, strict=True)
    tensors = [torch.as_tensor(m, dtype=way.dtype, device=way.device) for m, way in pairs]
    return _Weights(ways, importances, tensors, sums)


class _Drawn(NamedTuple):
    """What a multiplier makes of the weights.

    Attributes:
        alpha: The multiplier.
        increase: c(α) = ½ Σ F v'², with v' = v m / (m + αF).
        pulls: αF / (m + αF), by parameter; empty if α is 0.
        forces: F v', by parameter.
        denominators: F + m/α, by parameter, which does not overflow where αF does; m if α is 0.
        sums: Over the weights.
    """

    alpha: float
    increase: float
    pulls: list[Tensor]
    forces: list[Tensor]
    denominators: list[Tensor] | list[float]
    sums: Sums

    def slope(self) -> float:
        """dc/dα = −Σ (F v')² / (m + αF)."""
        shares = torch._foreach_div(self.forces, self.denominators)
        return -_sum_of_products(shares, self.forces, self.sums) / (self.alpha or 1.0)


def _draw(weights: _Weights, alpha: float) -> _Drawn:
    ways, importances, metrics, sums = weights
    if alpha == 0:
        forces = list(torch._foreach_mul(importances, ways))
        return _Drawn(0.0, _sum_of_products(forces, ways, sums) / 2, [], forces, metrics, sums)
    scaled: Any = [metric / alpha + TINY for metric in metrics]  # numbers or tensors
    denominators = list(torch._foreach_add(importances, scaled))
    pulls = list(torch._foreach_div(importances, denominators))
    drawn = torch._foreach_addcmul(ways, ways, pulls, value=-1)
    forces = list(torch._foreach_mul(importances, drawn))
    return _Drawn(alpha, _sum_of_products(forces, drawn, sums) / 2, pulls, forces, denominators, sums)


def _drawn_within(weights: _Weights, low: float, high: float, alpha: float) -> _Drawn:
    """The weights drawn such that c lies in [low, high], or below where the multiplier is 0."""
    below, above = 0.0, math.inf  # the multipliers that are known to be too small and too large
    safe: _Drawn | None = None
    for _ in range(_MOST_STEPS):
        drawn = _draw(weights, alpha)
        if math.isnan(drawn.increase) or (drawn.increase <= high and (alpha == 0 or drawn.increase >= low)):
            return drawn
        if drawn.increase > high:
            below = alpha
        else:
            above, safe = alpha, drawn
        if below >= min(above, _LARGEST) * _NEXT:
            break  # rounding leaves nothing in between
        # Just inside the nearer end: from the middle, the multiplier would swing between too much and too little.
        alpha = _newton(drawn, high - _INSIDE * (high - low) if below == alpha else low + _INSIDE * (high - low))
        if not (below < alpha < above or alpha == 0 == below):
            # Rounding, or a number that overflowed.
            alpha = max(below, _SMALLEST) * _GROWTH if above == math.inf else math.sqrt(max(below, _SMALLEST) * above)
            alpha = min(alpha, _LARGEST)
    return drawn if safe is None else safe


def _newton(drawn: _Drawn, target: float) -> float:
    """The root of the tangent of c(α)^(−½) − target^(−½), at least 0; NaN where it cannot be told."""
    if drawn.increase == 0:
        return 0.0
    slope = drawn.slope()
    if not (math.isfinite(drawn.increase) and math.isfinite(slope) and slope < 0):
        return math.nan
    # (target^(−½) − c^(−½)) / (−½ c^(−3/2) dc/dα)
    return max(drawn.alpha + 2 * drawn.increase / slope * (1 - math.sqrt(drawn.increase / target)), 0.0)


def _ways(parameters: Sequence[Tensor], anchors: Sequence[Tensor]) -> list[Tensor]:
    """θ − θ̂."""
    return list(torch._foreach_sub([wide(local(p)) for p in parameters], [wide(local(anchor)) for anchor in anchors]))


def _sum_of_products(left: Sequence[Tensor], right: Sequence[Tensor], sums: Sums) -> float:
    """Σ of the elementwise products; one number is waited for."""
    device = left[0].device
    products = [torch.dot(a.flatten(), b.flatten()).to(device) for a, b in zip(left, right, strict=True)]
    if not sums.is_local:
        return float(sums(torch.stack(products).double()))
    return float(torch.stack(products).sum(dtype=torch.float64 if device.type != "mps" else None))
