"""Orthogonal gradients: the shared weights' gradient is projected out of the span of earlier models' gradients."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.errors import DivergedError, InputError
from forgetless.protection.base import PROTECTIONS, Evidence, Protection, ProtectionOptions, StrengthOptions

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer


@dataclass(frozen=True, kw_only=True)
class OGLOptions(StrengthOptions):
    """Options of orthogonal gradients.

    Attributes:
        strength: How many directions are kept for all earlier models together, each as large as the shared weights;
            fractions are cut off.
    """

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 50.0},
        "two-model": {"strength": 100.0},
        "search": {"strength": 20.0},
    }


@PROTECTIONS.register
class OGL(Protection):
    """Before each step of the optimizer, g ← g − V Vᵀ g: to first order, earlier models' predictions do not change.

    The columns of V are an orthonormal basis of kept directions in the space of all shared weights as one vector, with
    0 where an earlier model did not use a weight. Where the model that trains uses some of the weights only, V is that
    of the directions' parts in these weights.

    **Directions.** When a model is consolidated, the gradients of f_y(x), the logit of the true class (the sum over
    words, for a chunk of text), are taken for as many single held-out examples as directions are kept. Unlike the
    loss's gradient they do not vanish where the model fits the data.

    **Memory.** At most K directions are kept for all models together. Stored and new ones are the rows of one matrix,
    and its K leading right singular vectors, times their singular values, stay: the directions along which the earlier
    predictions change most.

    **Exactness.** Under plain SGD without weight decay the step is orthogonal to V. So it is with momentum, if the
    momentum holds projected gradients only. Adam scales each weight on its own: its step is no longer orthogonal.

    Source: Farajtabar et al. 2019, Orthogonal Gradient Descent for Continual Learning, arXiv:1910.07104 (the variant
    OGD-GTL, with gradients of the true class's logit and the first examples kept). For one-shot search: Ma et al. 2025,
    Defying Multi-Model Forgetting in One-Shot Neural Architecture Search Using Orthogonal Gradient Learning, IEEE
    Transactions on Computers 74(5), doi:10.1109/TC.2025.3540650, which has a space of gradients for each overlapping
    structure; here there is one for all.
    """

    name: ClassVar[str] = "ogl"
    label: ClassVar[str] = "orthogonal gradients"
    colour: ClassVar[str | None] = "#A6D854"
    Options: ClassVar[type[ProtectionOptions]] = OGLOptions
    uses_examples: ClassVar[bool] = True
    symbol: ClassVar[str] = "directions"

    @classmethod
    def told(cls, strength: str) -> str:
        """Such as `20 directions`.

        Args:
            strength: The number as text.
        """
        return f"{strength}\N{NO-BREAK SPACE}directions"

    def _set_up(self) -> None:
        self._sizes = [parameter.numel() for parameter in self.shared_parameters]
        self._rows: Tensor | None = None  # (≤ K, all shared weights), singular value times direction
        # The places of the weights that got a gradient, and Vᵀ in these, a block (≤ K, size) each.
        self._basis: tuple[list[int], list[Tensor]] = ([], [])

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """One for each direction."""
        return float(options.strength)

    @classmethod
    def sizes(cls, options: Any) -> dict[str, object]:
        """The directions."""
        return {"directions": options.strength}

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:
        """A context in which the optimizer's gradients are projected before each step."""
        self._basis = ([], [])
        handle = optimizer.register_step_pre_hook(self._before_step)
        try:
            yield
        finally:
            handle.remove()
            self._basis = ([], [])

    def _before_step(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        import torch

        if self._rows is None or int(self.strength) == 0:
            return
        moving = self._moving(optimizer)
        if not moving:
            return
        if self._basis[0] != moving:
            self._basis = (moving, self._basis_of(moving))
        gradients = [gradient for i in moving if (gradient := self.shared_parameters[i].grad) is not None]
        blocks = self._basis[1]
        parts = [block @ gradient.flatten() for block, gradient in zip(blocks, gradients, strict=True)]
        along = torch.stack(parts).sum(0)  # Vᵀ g
        for block, gradient in zip(blocks, gradients, strict=True):
            gradient.sub_((along @ block).view_as(gradient))

    def _basis_of(self, moving: list[int]) -> list[Tensor]:
        """An orthonormal basis of what the kept directions are in some of the weights, in blocks."""
        import torch

        assert self._rows is not None
        blocks = torch.split(self._rows[: int(self.strength)], self._sizes, dim=1)
        _, rows = _leading(torch.cat([blocks[i] for i in moving], dim=1))
        return [block.contiguous() for block in torch.split(rows, [self._sizes[i] for i in moving], dim=1)]

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Take the gradients of the model's predictions on held-out examples into the kept directions."""
        import torch

        held = {id(parameter) for parameter in model.parameters()}
        num_kept = int(self.strength)
        if num_kept == 0 or not any(id(parameter) in held for parameter in self.shared_parameters):
            return
        new = self._gradients(model, evidence, num_kept)
        rows = new if self._rows is None else torch.cat([self._rows, new])
        values, directions = _leading(rows)
        self._rows = values[:num_kept, None] * directions[:num_kept]

    def _gradients(self, model: nn.Module, evidence: Evidence, number: int) -> Tensor:
        """Gradients of the true class's logit for the first held-out examples, (≤ number, all shared weights)."""
        import torch

        from forgetless.importance.model import evaluating

        held = {id(parameter) for parameter in model.parameters()}
        places = [i for i, parameter in enumerate(self.shared_parameters) if id(parameter) in held]
        weights = [self.shared_parameters[i] for i in places]
        examples = ((x[n : n + 1], y[n : n + 1]) for x, y in evidence.batches() for n in range(len(y)))
        rows = []
        with evaluating(model):
            for inputs, targets in itertools.islice(examples, number):
                logit = true_logit(model(inputs), targets)
                found = torch.autograd.grad(logit, weights, allow_unused=True)
                row = [torch.zeros_like(parameter) for parameter in self.shared_parameters]
                for i, gradient in zip(places, found, strict=True):
                    row[i] = row[i] if gradient is None else gradient
                rows.append(torch.cat([part.flatten() for part in row]))
        found_rows = torch.stack(rows)
        if not bool(torch.isfinite(found_rows).all()):
            raise DivergedError(
                "Expected finite gradients of the logits, but got inf or nan. Check that the model has not diverged."
            )
        return found_rows

    def reset(self) -> None:
        """Forget every direction."""
        self._rows = None

    def state_dict(self) -> dict[str, Any]:
        """The kept directions, times their singular values."""
        return {"rows": None if self._rows is None else self._rows.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            InputError: If the directions are those of another number of weights.
        """
        rows = state["rows"]
        if rows is not None and rows.shape[1] != sum(self._sizes):
            raise InputError(
                f"Expected directions of {sum(self._sizes)} shared weights, but got them of {rows.shape[1]}. "
                "Build the protection from the same weights, in the same order."
            )
        self._rows = None if rows is None else rows.to(self.shared_parameters[0].device, copy=True)


def true_logit(outputs: Any, targets: Tensor) -> Tensor:
    """The logit of the true class, summed over all targets.

    Args:
        outputs: Logits with the classes in the last dimension.
        targets: Classes, in the other dimensions.

    Raises:
        InputError: If the targets are no classes of these logits.

    >>> import torch
    >>> true_logit(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])).item()
    2.0
    """
    import torch

    if not isinstance(outputs, torch.Tensor) or targets.is_floating_point() or outputs.shape[:-1] != targets.shape:
        shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise InputError(
            f"Expected logits with the classes last and one class per target, but got {shape} and {targets.dtype} "
            f"targets of shape {tuple(targets.shape)}. ogl protects classifiers and language models."
        )
    return outputs.gather(-1, targets.unsqueeze(-1)).sum()


def _leading(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Singular values and right singular vectors of a matrix (rows × weights), without those that are 0 to rounding."""
    import torch

    _, values, directions = torch.linalg.svd(rows, full_matrices=False)
    if not len(values):
        return values, directions
    kept = values > values[0] * torch.finfo(rows.dtype).eps * max(rows.shape)
    return values[kept], directions[kept]
