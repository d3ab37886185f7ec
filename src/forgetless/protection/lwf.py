"""Learning without forgetting: earlier models keep the outputs that they had, on the present model's inputs."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import fitting
from forgetless.errors import InputError
from forgetless.protection.base import PROTECTIONS, Decisions, Evidence, ProtectionOptions
from forgetless.protection.rehearsal import Rehearsal, RehearsalOptions, Term

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class LwFOptions(RehearsalOptions):
    """Options of learning without forgetting.

    Attributes:
        strength: λ, weight of the earlier models' mean divergence, at least 0; 1 is the paper's.
        temperature: T, by which logits are divided, above 0. The paper has 2. Language models have 1 here: over
            thousands of words a higher one weighs the many that a model holds for impossible.
    """

    temperature: float = fitting()

    fits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"strength": 1.0, "temperature": 2.0},
        "search on text": {"temperature": 1.0},
        "fine-tune": {"temperature": 1.0},
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_positive("temperature")


@PROTECTIONS.register
class LwF(Rehearsal):
    """Keeps the outputs of earlier models by distillation, on the inputs that the present model is trained on.

        L(θ) + λ/M Σ_m T² KL(softmax(ẑ_m/T) ‖ softmax(z_m/T))

    ẑ_m are the logits of a copy of an earlier model as it was consolidated, with its own weights and in eval mode, z_m
    those of the same model at the present shared weights, in the mode that it is in: both on the present batch. The
    divergence is a mean over predictions; T² keeps its gradient's size over temperatures. No example of the past is
    needed. Recurrent models predict each chunk of text from a zero state. A copy that has batch statistics for eval
    mode to be computed, as an image supernet, gets those of the batch.

    It holds M copies of whole models. Each costs a forward pass of the copy, and a forward and backward pass of the
    model, per step.

    Source: Li and Hoiem 2016, Learning without Forgetting, arXiv:1606.09282, eq. 2–4. Their loss is the cross entropy
    with the softened outputs, which differs by a constant, without T²: ours at λ is theirs at λ T². They train the old
    model's own layers, too; here that is so where the optimizer holds them. T² is that of Hinton et al. 2015,
    arXiv:1503.02531.
    """

    name: ClassVar[str] = "lwf"
    label: ClassVar[str] = "distillation (LwF)"
    in_sentence: ClassVar[str] = "distillation"
    colour: ClassVar[str | None] = "#878700"
    Options: ClassVar[type[ProtectionOptions]] = LwFOptions
    options: LwFOptions

    @classmethod
    def passes(cls, options: Any) -> float:  # noqa: ARG003
        """A forward pass of the copy, a forward and backward pass of the earlier model beside that of the present."""
        return 7 / 3

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """A copy of each earlier model."""
        return float(options.num_models)

    @classmethod
    def sizes(cls, options: Any) -> dict[str, object]:
        """The copies."""
        return {f"copies of models of {cls.name}": options.num_models}

    def term(self, model: nn.Module, evidence: Evidence) -> Term:
        """The divergence of a model from what it is now."""
        return _Distilled(tuple(evidence.decisions), model, self.options.temperature)


class _Distilled(Term):
    """How far the outputs of a model are from those of its copy."""

    def __init__(self, decisions: Decisions, model: nn.Module, temperature: float) -> None:
        super().__init__(decisions)
        self._model, self._temperature = model, temperature
        self._copy = copy.deepcopy(model).eval()
        for module in self._copy.modules():
            for weight in module.parameters(recurse=False):
                weight.requires_grad_(False)
                weight.grad = None

    def __call__(self, batch: Any) -> Tensor:
        import torch

        inputs = batch[0]
        with torch.no_grad():
            recalibrate = getattr(self._copy, "recalibrate", None)  # where batch statistics belong to no model
            if recalibrate is not None:
                recalibrate([inputs])
            wanted = _logits(self._copy(inputs))
        return distillation_loss(_logits(self._model(inputs)), wanted, self._temperature)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": {name: tensor.detach().clone() for name, tensor in self._held()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        import torch

        with torch.no_grad():
            for name, tensor in self._held():
                tensor.copy_(state["weights"][name])

    def _held(self) -> Iterable[tuple[str, Tensor]]:
        """Weights and buffers of the copy; of an architecture of a supernet, the weights that it uses."""
        yield from self._copy.named_parameters()
        yield from self._copy.named_buffers()


def _logits(outputs: Any) -> Tensor:
    logits: Tensor = getattr(outputs, "logits", outputs)
    return logits


def distillation_loss(outputs: Tensor, wanted: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(softmax(ẑ/T) ‖ softmax(z/T)), the mean over predictions, in nats.

    Args:
        outputs: Logits z with the classes in the last dimension, at least 2: (B, K) of a classifier, (B, T, V) of a
            language model.
        wanted: Logits ẑ of the same shape.
        temperature: T, above 0.

    Returns:
        A scalar, at least 0 but for rounding; 0 where both give the same probabilities. It is differentiable.

    Raises:
        InputError: If the outputs are no such logits.

    >>> import torch
    >>> round(distillation_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])).item(), 4)  # log 2
    0.6931
    """
    import torch

    from forgetless.budget import relative_entropy

    if not isinstance(outputs, torch.Tensor) or outputs.dim() < 2 or outputs.shape[-1] < 2:
        shape = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise InputError(
            f"Expected logits with at least 2 classes in the last dimension, but got {shape}. Distillation keeps "
            "classifiers and language models."
        )
    return relative_entropy(outputs / temperature, wanted / temperature).mean() * temperature**2
