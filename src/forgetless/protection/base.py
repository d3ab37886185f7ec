"""What every protection offers a training loop and may ask about a trained model, and the options it may have."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.configuration import Options, fitting
from forgetless.errors import InputError
from forgetless.registry import Kind, Registry

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    Loss = Callable[[Any], Tensor]
    """Training batch → the mean loss of one model on it, a differentiable scalar; it may carry a state."""

    Recall = Callable[["Decisions"], tuple[nn.Module, "Evidence"]]
    """Decisions of an earlier model → the model, and what may still be asked about it: not its Fisher information."""

Decisions = tuple[int, ...]
"""What tells a model from the others that share its weights: an architecture's encoding, or its place in a chain."""

BASELINE = "none"
"""The protection that all others are compared with: none."""

PROTECTIONS: Registry[type[Protection]] = Registry("protection", "forgetless.protection")
"""Every protection, by name."""


@dataclass(frozen=True, kw_only=True)
class ProtectionOptions(Options):
    """Options of a protection; those of one without any."""

    registry: ClassVar[Registry[Any]] = PROTECTIONS

    @property
    def strength_or_none(self) -> float | None:
        """The strength; None if the protection has none."""
        return getattr(self, "strength", None)

    @property
    def moves_weights(self) -> bool:
        """Whether `consolidate` changes the shared weights."""
        return False

    def check_search(self, importance: str, batches_per_model: int) -> None:
        """Refuse options that do not fit the rest of a search; most fit any.

        Args:
            importance: Where the Fisher information comes from: `held-out` or `training`.
            batches_per_model: Training batches of each model.

        Raises:
            InputError: If they do not fit.
        """
        if self.kind.uses_fisher and importance == "training" and batches_per_model < 2:
            raise InputError("Expected batches_per_model to be at least 2 for importance from training, but got 1.")


@dataclass(frozen=True, kw_only=True)
class StrengthOptions(ProtectionOptions):
    """Options of a protection with a strength.

    Attributes:
        strength: How strongly earlier models are kept, at least 0; 0 keeps nothing.
    """

    strength: float = fitting(basic=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_strength()

    def check_strength(self) -> None:
        """Refuse a strength out of its range."""
        if self.strength is not None and not (math.isfinite(self.strength) and self.strength >= 0):
            what = f"the strength of {self.kind.name} to be finite and at least 0"
            raise InputError(f"Expected {what}, but got {self.strength}.")


@dataclass(frozen=True)
class Evidence:
    """What a protection may ask about the model just trained; each is computed when it is called for, or never.

    Attributes:
        fisher: The model's diagonal Fisher information by its own parameter names.
        batches: Held-out pairs (inputs, targets) that nothing else uses, the same at each call. After the call the
            model can be evaluated on them in eval mode.
        loss: Maps (outputs, targets) of such a batch to its mean loss, a scalar.
        loss_of: Makes the loss of this model on training batches, with a state of its own.
        decisions: What tells this model from the others; () if nothing does.
    """

    fisher: Callable[[], Mapping[str, Tensor]]
    batches: Callable[[], Iterable[tuple[Any, Tensor]]]
    loss: Callable[[Any, Tensor], Tensor]
    loss_of: Callable[[], Loss]
    decisions: Decisions = ()


class Protection(Kind, ABC):
    """Keeps what earlier models need of shared weights while later models train.

    A loop trains each model inside one `during(optimizer)`, adds `extra_loss` to each batch's loss, and calls
    `consolidate` after it. Only weights that an earlier, consolidated model used are protected.

    Args:
        shared_parameters: The weights that several models use; all weights of the models where `holds_all`.
        options: Of this protection; its defaults if None.
        recall: Makes an earlier model and its evidence from its decisions; some need it in `load_state_dict`, because
            a state has no functions in it.
        **changes: Options with another value than `options` has.

    Attributes:
        name: What commands and files call it.
        label: What figures and tables call it.
        in_sentence: What sentences call it, with its article; the label if empty.
        colour: In figures; one is derived from the name if None.
        Options: The class of its options.
        symbol: What the strength is called in tables and figures.
        unit: Of the strength; empty if it has none.
        decays: Whether a smaller strength protects less, so that it may decay over epochs.
        uses_fisher: Whether `consolidate` asks for the Fisher information.
        uses_examples: Whether `consolidate` asks for examples of what the model learned: `Evidence.batches`.
        acts_after: Whether it acts only when a model's training has ended, by `finish`.
        protects: Whether it keeps anything of earlier models at all.
        watches: Whether a model can be consolidated only if it was trained inside `during`, the first one too.
        holds_all: Whether it holds all weights of earlier models, not only those that several use.
        matches: The protection whose steps this one takes without its pull; None for most.
        replaces_layers: Whether it trains other layers in place of a model's own, so that no models can share them.
        works_in_ranks: Whether it does the same in several processes that train one model (`forgetless.ranks`).
        strength: Of the pull; may be set at any time. 0 where there is none.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    in_sentence: ClassVar[str] = ""
    colour: ClassVar[str | None] = None
    Options: ClassVar[type[ProtectionOptions]]
    symbol: ClassVar[str] = "α"
    unit: ClassVar[str] = ""
    decays: ClassVar[bool] = True
    uses_fisher: ClassVar[bool] = False
    uses_examples: ClassVar[bool] = False
    acts_after: ClassVar[bool] = False
    protects: ClassVar[bool] = True
    watches: ClassVar[bool] = False
    holds_all: ClassVar[bool] = False
    matches: ClassVar[str | None] = None
    replaces_layers: ClassVar[bool] = False
    works_in_ranks: ClassVar[bool] = True
    strength: float

    def __init__(
        self,
        shared_parameters: Iterable[Tensor],
        options: ProtectionOptions | None = None,
        *,
        recall: Recall | None = None,
        **changes: Any,
    ) -> None:
        chosen = self.Options() if options is None else options
        self.options = (dataclasses.replace(chosen, **changes) if changes else chosen).fitted()
        self.shared_parameters = list(shared_parameters)
        self._index = {id(parameter): i for i, parameter in enumerate(self.shared_parameters)}
        self.recall = recall
        self._set_up()
        self.strength = self.options.strength_or_none or 0.0

    def _set_up(self) -> None:
        """What a subclass makes of its options and weights, before its strength is set."""

    @classmethod
    def has_strength(cls) -> bool:
        """Whether it has a strength."""
        return "strength" in {field.name for field in dataclasses.fields(cls.Options)}

    @classmethod
    def held_copies(cls, options: Any, num_outputs: float) -> float:  # noqa: ARG003
        """About how many numbers it keeps for each shared weight, between models and while it takes one in.

        Args:
            options: Its options.
            num_outputs: Outputs of a model per example.
        """
        return 0

    @classmethod
    def passes(cls, options: Any) -> float:  # noqa: ARG003
        """About what a training step costs with one earlier model, relative to plain training.

        The unit is a forward and backward pass on a training batch, of which a forward pass is about a third.

        Args:
            options: Its options.
        """
        return 1.0

    @classmethod
    def sizes(cls, options: Any) -> dict[str, object]:  # noqa: ARG003
        """The options that decide how much memory it takes, for a message.

        Args:
            options: Its options.
        """
        return {}

    @classmethod
    def check_model(cls, model: nn.Module, options: Any) -> None:
        """Refuse a model that it cannot train, before anything is trained; most train any.

        Args:
            model: As it will be when training begins; its weights may be others.
            options: Of the protection.

        Raises:
            InputError: If it cannot, or a package that it needs is missing.
        """

    @classmethod
    def told(cls, strength: str) -> str:
        """A strength in a legend, such as `α = 1e5`.

        Args:
            strength: The number as text.
        """
        return f"{cls.symbol}\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{strength}"

    @classmethod
    def axis(cls) -> str:
        """What an axis of its strengths is of, such as `strength α`."""
        if cls.symbol == Protection.symbol:
            return f"strength {cls.symbol}"
        return f"{cls.symbol} ({cls.unit})" if cls.unit else cls.symbol

    @property
    def moves_weights(self) -> bool:
        """Whether `consolidate` changes the shared weights."""
        return self.options.moves_weights

    @abstractmethod
    def during(self, optimizer: Optimizer) -> contextlib.AbstractContextManager[None]:
        """A context in which the optimizer trains the next model, from its first step to its last.

        Args:
            optimizer: Of the next model's weights, shared ones among them.
        """

    def adapted(self, model: nn.Module) -> nn.Module:
        """What is to be trained in place of a model, asked for before its optimizer is made.

        Args:
            model: The next model.

        Returns:
            The model itself, or a module around it whose parameters that require a gradient are trained instead.
        """
        return model

    def extra_loss(self, batch: Any) -> Tensor | None:  # noqa: ARG002
        """What earlier models add to the next model's loss on a training batch, inside `during`.

        Args:
            batch: The batch that the next model's loss is taken on.

        Returns:
            A differentiable scalar, or None for nothing.
        """
        return None

    def finish(self, strength: float) -> None:
        """Set the shared weights to what a strength makes of a finished training; only where it `acts_after`.

        The end of `during` does so at the present strength. Until the next model trains or this one is consolidated,
        every further call starts from where training ended, so that one training serves several strengths.

        Args:
            strength: In place of the present one, which stays as it is.
        """

    @abstractmethod
    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Note that a model was trained and is to be kept from now on.

        Args:
            model: The model just trained.
            evidence: What may be asked about it.
        """

    def begin_epoch(self, epoch: int) -> None:
        """Told by a search at the beginning of each of its epochs; most protections do not mind.

        Args:
            epoch: From 0.
        """

    def penalty(self) -> float:
        """The quadratic penalty at the present weights, in the unit of the loss; 0 for methods without one."""
        return 0.0

    def reset(self) -> None:
        """Hold nothing until the next `consolidate`; frozen weights stay frozen."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, but the weights; torch.load reads it with weights_only=True."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.
        """

    def _moving(self, optimizer: Optimizer) -> list[int]:
        """The places of the shared weights that the optimizer is about to move: those with a gradient."""
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        return [self._index[id(weight)] for weight in weights if weight.grad is not None and id(weight) in self._index]

    def _expect_recall(self, number: int) -> Recall:
        """The way to recall earlier models; refuse where there is none."""
        if self.recall is None:
            raise InputError(f"Expected a way to recall {number} earlier models, but got none. Pass recall=.")
        return self.recall
