"""The coupled Laplace form: α/2 vᵀ Ω v with the Schur complement Ω of an earlier model's curvature, in low rank."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.curvature import flat, gauss_newton_factor, leading_rows, marginal_factor, spectrum
from forgetless.errors import InputError
from forgetless.importance import unwrapped
from forgetless.plasticity import scaled_metric

# Keeps 1/(lr·α) finite in float32.
_LEAST_STRENGTH = 1e-30


class CoupledPlasticity:
    """Draws the shared weights back along the directions that an earlier model needs, its private weights refitted.

    With θ̂ where model 1 left the shared weights, v = θ_s − θ̂ and α a strength, the penalty is

        α/2 vᵀ Ω v,    Ω = H_ss − H_s1 H₁₁⁻¹ H_1s,    H = GᵀG + λ I

    H is the curvature of model 1's mean loss plus the prior's, in its private weights θ₁ and the shared ones θ_s; Ω is
    the precision that the Laplace approximation leaves to θ_s after θ₁ is integrated out. Ω never exceeds H_ss, which
    holds model 1 with its private weights as they are: where a private weight can make up for a change of shared ones,
    that change is free.

    **Gauss-Newton.** GᵀG is that of `forgetless.curvature`, over N held-out examples: r ≤ N · outputs rows. Where an
    example has more than 100 outputs (a chunk of text: words × vocabulary) its one row is √(T/N) times the gradient of
    its mean loss over T targets, at labels drawn from the model's own prediction: an unbiased estimate, for cross
    entropy. Labels come from a generator of their own, seeded by how many models were consolidated before.

    **Low rank.** With G = (G₁, G_s), r rows, and I − G₁ (G₁ᵀG₁ + λI)⁻¹ G₁ᵀ = (I + G₁G₁ᵀ/λ)⁻¹ (Woodbury),

        Ω = λ I + Lᵀ L,    L = (I + G₁G₁ᵀ/λ)^(−1/2) G_s

    which costs an eigendecomposition of an r × r matrix. The step after each of the optimizer's, in its metric d, is

        θ_s ← argmin 1/(2 lr) Σ d_i (θ_i − θ_i,new)² + α/2 (θ − θ̂)ᵀ Ω (θ − θ̂)

    over the weights that moved, another r × r system, and finite for every α in [0, ∞).

    **Prior.** λ is per example, as the loss is: a coefficient of weight decay in L₂ form, or the prior's precision
    divided by the number of examples. It makes H₁₁ invertible and belongs to H_ss as well, so that α λ/2 ‖v‖² holds
    each used weight a little along directions that no example shows. With α = 1 the prior of the shared weights is all
    in Ω: weight decay of the next model on them would count it twice.

    **More than two models.** Ω_j is folded into the stored factor for the weights that model j used, by a rule: `sum`
    (Ω + Ω_j), `ema` (decay Ω + (1 − decay) Ω_j, the first time Ω_j) or `replace`; the anchor of these weights moves to
    their present values. λ counts once, however many models there were. Of the stacked rows at most R stay, the leading
    ones of their singular value decomposition: what is cut off is the least of LᵀL. That the anchor moves is an
    approximation (each model had its own); where weights were held well, a good one.

    Source: Benyahia et al. 2019, arXiv:1902.08232, section 3. Their eq. 8 replaces Ω by the diagonal of an empirical
    Fisher and leaves out H_s1 H₁₁⁻¹ H_1s; here neither is done. For two linear-Gaussian models the result is the exact
    posterior.

    Args:
        shared_parameters: The weights that several models use.
        alpha: Strength α; 1 is the posterior of two models of equally many examples.
        prior: λ, above 0.
        num_rows: R, at least 1.
        rule: See above.
        decay: Of the rule `ema`, in [0, 1].

    Attributes:
        alpha: α; may be set at any time.
    """

    def __init__(
        self,
        shared_parameters: Iterable[Tensor],
        alpha: float,
        *,
        prior: float,
        num_rows: int,
        rule: Literal["sum", "ema", "replace"],
        decay: float,
    ) -> None:
        self.shared_parameters = list(shared_parameters)
        self.alpha, self.prior, self.num_rows, self.rule, self.decay = alpha, prior, num_rows, rule, decay
        self._sizes = [parameter.numel() for parameter in self.shared_parameters]
        self._index = {id(parameter): i for i, parameter in enumerate(self.shared_parameters)}
        self._anchors: list[Tensor | None] = [None] * len(self._sizes)
        self._rows: Tensor | None = None  # L (≤ R, all shared weights)
        self._num_models = 0
        self._moving: _Moving | None = None
        self._system: tuple[Any, _System] | None = None

    # ---- while another model trains --------------------------------------------------------------------------

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which each step of the optimizer is followed by the proximal step."""
        self._moving = self._system = None
        handle = optimizer.register_step_post_hook(self._after_step)
        try:
            yield
        finally:
            handle.remove()
            self._moving = self._system = None

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        if self._rows is None:
            return
        places: list[int] = []
        metrics: list[float | Tensor] = []
        for group in optimizer.param_groups:
            strength = self.alpha * float(group["lr"])  # α lr
            if strength == 0:
                continue
            found = [i for p in group["params"] if p.grad is not None and (i := self._held_place(p)) is not None]
            if found:
                scale = 1 / max(strength, _LEAST_STRENGTH)
                metric = scaled_metric(optimizer, group, [self.shared_parameters[i] for i in found], scale)
                places += found
                metrics += metric if isinstance(metric, list) else [metric] * len(found)
        if not places:
            return
        if self._moving is None or self._moving.places != places:
            self._moving, self._system = self._moving_of(places), None
        if any(isinstance(metric, Tensor) and not bool(torch.isfinite(metric).all()) for metric in metrics):
            return  # the model has diverged
        signature = None if any(isinstance(metric, Tensor) for metric in metrics) else metrics
        if self._system is None or signature is None or self._system[0] != signature:
            self._system = (signature, _System.of(self._moving.rows, self._joined(places, metrics), self.prior))
        weights = [self.shared_parameters[i] for i in places]
        change = self._system[1].change(flat(weights) - self._moving.anchor, self._moving.rows, self._moving.rest)
        parts = torch.split(change, [self._sizes[i] for i in places])
        for weight, part in zip(weights, parts, strict=True):
            weight.add_(part.view_as(weight).to(weight.dtype))

    def _held_place(self, weight: Tensor) -> int | None:
        i = self._index.get(id(weight))
        return None if i is None or self._anchors[i] is None else i

    def _moving_of(self, places: list[int]) -> "_Moving":
        """Factor and anchor of the weights that move, and L v of those held that do not."""
        assert self._rows is not None
        blocks = torch.split(self._rows, self._sizes, dim=1)
        rest = self._rows.new_zeros(len(self._rows))
        for i, anchor in enumerate(self._anchors):
            if anchor is not None and i not in places:
                rest += blocks[i] @ (self.shared_parameters[i] - anchor).flatten().to(rest.dtype)
        anchors = [anchor for i in places if (anchor := self._anchors[i]) is not None]
        return _Moving(places, torch.cat([blocks[i] for i in places], dim=1), flat(anchors), rest)

    def _joined(self, places: list[int], metrics: Sequence[float | Tensor]) -> Tensor:
        """The metric of the moving weights as one vector."""
        assert self._rows is not None
        return torch.cat(
            [
                metric.flatten() if isinstance(metric, Tensor) else self._rows.new_full((self._sizes[i],), metric)
                for i, metric in zip(places, metrics, strict=True)
            ]
        )

    # ---- after a model ---------------------------------------------------------------------------------------

    def consolidate(
        self,
        model: nn.Module,
        examples: Iterable[tuple[Any, Tensor]],
        loss: Callable[[Any, Tensor], Tensor],
    ) -> None:
        """Fold the model's factor on held-out examples into the stored one, and anchor the weights it used.

        Args:
            model: The model just trained.
            examples: Held-out pairs (input, target), each a batch of one.
            loss: Maps (outputs, targets) to a mean loss.

        Raises:
            InputError: If there are no examples, or a derivative is not finite.
        """
        weights = list(dict.fromkeys(p for p in unwrapped(model).parameters() if p.requires_grad))
        shared = [p for p in weights if id(p) in self._index]
        if not shared:
            return
        private = [p for p in weights if id(p) not in self._index]
        rows = gauss_newton_factor(
            unwrapped(model),
            examples,
            loss,
            [*private, *shared],
            torch.Generator().manual_seed(self._num_models),
        )
        width = sum(p.numel() for p in private)
        self._fold([self._index[id(p)] for p in shared], marginal_factor(rows[:, :width], rows[:, width:], self.prior))

    @torch.no_grad()
    def _fold(self, places: list[int], factor: Tensor) -> None:
        """Take Ω_j's factor in the weights of some places into the stored one, and move their anchors."""
        new = factor.new_zeros(len(factor), sum(self._sizes))
        old = new[:0] if self._rows is None else self._rows
        starts = [0, *itertools.accumulate(self._sizes)]
        kept, added = {"sum": (1.0, 1.0), "replace": (0.0, 1.0)}.get(self.rule, (self.decay, 1 - self.decay))
        for i, block in zip(places, torch.split(factor, [self._sizes[i] for i in places], dim=1), strict=True):
            columns = slice(starts[i], starts[i + 1])
            is_first = self._anchors[i] is None
            # Scaling columns keeps Ω's form, D Ω D.
            old[:, columns] *= math.sqrt(kept)
            new[:, columns] = block if is_first else block * math.sqrt(added)
            self._anchors[i] = self.shared_parameters[i].detach().clone()
        self._rows = leading_rows(torch.cat([old, new]), self.num_rows)
        self._num_models += 1

    @torch.no_grad()
    def penalty(self) -> float:
        """α/2 vᵀ Ω v at the present weights."""
        if self._rows is None:
            return 0.0
        moved = [
            weight.new_zeros(weight.shape) if anchor is None else weight - anchor
            for weight, anchor in zip(self.shared_parameters, self._anchors, strict=True)
        ]
        v = flat(moved)
        return self.alpha / 2 * float(self.prior * v.square().sum() + (self._rows @ v).square().sum())

    def reset(self) -> None:
        """Forget factor and anchors."""
        self._anchors, self._rows = [None] * len(self._sizes), None

    # ---- state -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Factor, anchors, and how many models were consolidated."""
        return {
            "rows": None if self._rows is None else self._rows.clone(),
            "anchors": [None if anchor is None else anchor.clone() for anchor in self._anchors],
            "num_models": self._num_models,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If it is that of other weights.
        """
        rows, anchors = state["rows"], state["anchors"]
        shapes = [parameter.shape for parameter in self.shared_parameters]
        if len(anchors) != len(shapes) or any(
            anchor is not None and anchor.shape != shape for anchor, shape in zip(anchors, shapes, strict=True)
        ):
            raise InputError(
                f"Expected anchors of {len(shapes)} shared weights in their shapes, but got {len(anchors)} others. "
                "Build the protection from the same weights, in the same order."
            )
        devices = [parameter.device for parameter in self.shared_parameters]
        self._rows = None if rows is None else rows.to(devices[0], copy=True)
        self._anchors = [
            None if anchor is None else anchor.to(device, copy=True)
            for anchor, device in zip(anchors, devices, strict=True)
        ]
        self._num_models = state["num_models"]


class _Moving(NamedTuple):
    """What the step needs of the weights at some places: their columns of L, their anchor, L v of all others."""

    places: list[int]
    rows: Tensor
    anchor: Tensor
    rest: Tensor


class _System(NamedTuple):
    """A factorised proximal step: λ/e, 1/e, and (I + L diag(1/e) Lᵀ)⁻¹, with e = d/(lr·α) + λ."""

    pull: Tensor
    reciprocal: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, rows: Tensor, metric: Tensor, prior: float) -> "_System":
        """From L, d/(lr·α) and λ."""
        reciprocal = 1 / (metric + prior)
        values, vectors = spectrum(rows * reciprocal.sqrt())
        return cls(prior * reciprocal, reciprocal, ((vectors / (1 + values)) @ vectors.T).to(rows.dtype))

    def change(self, moved: Tensor, rows: Tensor, rest: Tensor) -> Tensor:
        """What the step adds to the weights, from u = θ_new − θ̂ and L v of the weights that stay.

        (e + LᵀL) v = d/(lr·α) u − Lᵀ rest, by Woodbury; with q = (1 − λ/e) u it is v = q − 1/e Lᵀ z, and
        z = L v + rest = (I + L 1/e Lᵀ)⁻¹ (L q + rest).
        """
        drawn = self.pull * moved
        z = self.inverse @ (rows @ (moved - drawn) + rest)
        return -(drawn + self.reciprocal * (z @ rows))
