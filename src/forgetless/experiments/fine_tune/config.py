"""What `forgetless fine-tune` is asked to do, and the runs that this makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from forgetless.choices import FisherKind
from forgetless.configuration import Configuration, Part, fitting, option
from forgetless.errors import InputError
from forgetless.parts import OptimizerConfig, Resources, RunConfig, default_protections, fitted_protections
from forgetless.protection import PROTECTIONS, ProtectionOptions

EXPERIMENT = "fine-tune"

DEFAULT_PROTECTIONS = ("none", "slower", "wise-ft", "l2", "wpl", "wpl-tolerance", "lwf", "replay")

Past = Literal["own-samples", "old-data", "new-inputs"]
"""What protections may see of what a model was trained on before."""

_RATES: Mapping[str, float] = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}


@dataclass(frozen=True, kw_only=True)
class TextsConfig(Part):
    """The text that the model knows, and the texts that it is fine-tuned on.

    Attributes:
        old: The text that the model knows: kjv-ot, kjv-nt, kjv, ptb, wikitext2, or the path of a folder with
            train.txt, valid.txt and test.txt.
        to: New texts, named likewise; several give several panels.
    """

    title: ClassVar[str] = "Texts"

    old: str = option("kjv-ot", basic=True)
    to: tuple[str, ...] = option(("kjv-nt",), basic=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(to=tuple(dict.fromkeys(self.to)))
        if not self.to:
            raise InputError("Expected at least one new text, but got none. Name one with --to.")
        if self.old in self.to:
            raise InputError(f"Expected new texts other than the old one, but got {self.old} as both. Name another.")


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(Part):
    """The language model: one of a folder, or a small Transformer that is pretrained on the old text.

    Attributes:
        folder: Folder of a causal language model of Hugging Face, with its tokenizer. Without it a small Transformer is
            pretrained, of the sizes that follow.
        layers: Blocks of attention and feed-forward layers.
        width: Numbers per token between the blocks; a multiple of `heads`.
        heads: Of attention, per block.
        context: Tokens that a model reads at a time. Those of a folder are limited to it, too.
        num_tokens: Word pieces that are known.
    """

    title: ClassVar[str] = "Model"

    folder: str | None = option(None, flag="model", basic=True)
    layers: int = 4
    width: int = 96
    heads: int = 4
    context: int = 32
    num_tokens: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "layers", "width", "heads")
        self.expect_at_least(2, "context")
        self.expect_at_least(128, "num_tokens")
        if self.width % self.heads:
            raise InputError(
                f"Expected width to be a multiple of heads, but got {self.width} and {self.heads}. Change one."
            )


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig(Part):
    """What protections learn of the model that was trained before.

    Attributes:
        on: What they may see of the past; several give an arm each. own-samples are texts that the old model writes,
            old-data held-out old text, new-inputs new text with labels that the old model draws. Protections that need
            no example of the past have one arm.
        fisher: Kind of the Fisher information; see `forgetless.diagonal_fisher`. Own samples and the labels of new
            inputs are drawn from the model, so that `empirical` is the Monte Carlo Fisher on them.
        samples: Windows of `context` tokens that they may see.
    """

    title: ClassVar[str] = "Importance"

    on: tuple[Past, ...] = option(("own-samples",), basic=True)
    fisher: FisherKind = "empirical"
    samples: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(on=tuple(dict.fromkeys(self.on)))
        if not self.on:
            raise InputError(f"Expected at least one of {', '.join(get_args(Past))} for on, but got none.")
        self.expect_at_least(1, "samples")


@dataclass(frozen=True, kw_only=True)
class FineTuneSchedule(Part):
    """How long the model trains.

    Attributes:
        steps: Training steps on the new text.
        pretraining: Training steps on the old text, shared by all arms of a seed; none for a model of a folder.
        pretraining_rate: Learning rate of the pretraining, which falls linearly to 0.
        batch_size: Windows of `context` tokens per step.
        evaluate_every: Steps between two points of the curves. The first interval, in which most is lost, has points at
            its eighth, quarter and half too.
        constant_rate: Keep the learning rate of fine-tuning; it falls linearly to 0 otherwise.
        equal_time: A protection whose step costs as much as k plain ones takes a k-th of the steps.
    """

    title: ClassVar[str] = "Schedule"

    steps: int = option(250, basic=True)
    pretraining: int = option(2500, basic=True)
    pretraining_rate: float = 3e-3
    batch_size: int = 16
    evaluate_every: int = 50
    constant_rate: bool = False
    equal_time: bool = option(False, basic=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.expect_at_least(1, "steps", "pretraining", "batch_size", "evaluate_every")
        self.expect_positive("pretraining_rate")


@dataclass(frozen=True, kw_only=True)
class FineTuneConfig(Configuration):
    """What `forgetless fine-tune` is asked to do.

    Attributes:
        texts: The text that the model knows, and the texts that it is fine-tuned on.
        model: The language model.
        protections: Arms to compare; one protection may come with several strengths, each of which is an arm.
        importance: What protections learn of the model that was trained before.
        schedule: How long the model trains.
        optimizer: How it is fine-tuned.
        run: Which runs are made.
        resources: Where and how they are made.
    """

    shown_contexts: ClassVar[tuple[str, ...]] = (EXPERIMENT,)
    several_strengths: ClassVar[bool] = True

    texts: TextsConfig = TextsConfig()
    model: LanguageModelConfig = LanguageModelConfig()
    protections: tuple[ProtectionOptions, ...] = fitting(flag="protection", basic=True)
    importance: EvidenceConfig = EvidenceConfig()
    schedule: FineTuneSchedule = FineTuneSchedule()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = default_protections(*DEFAULT_PROTECTIONS) if self.protections is None else self.protections
        protections = fitted_protections(asked, EXPERIMENT, several_strengths=True, may_replace_layers=True)
        for each in protections:
            if each.kind.matches is not None or each.kind.watches:
                why = "tries several learning rates" if each.kind.matches else "has to see the pretraining"
                raise InputError(
                    f"Expected protections of a model that is trained already, but {each.kind.name} {why}. "
                    "Leave it out."
                )
        self._set(
            protections=protections,
            optimizer=self.optimizer.fitted({"name": "adamw", "momentum": 0.9, "max_gradient_norm": 1.0}, _RATES),
            run=self.run.fitted(3),
        )

    def options_of(self, protection: str, strength: float | None) -> ProtectionOptions:
        """The options of one of its protections, at one of its strengths.

        Args:
            protection: Its name.
            strength: Its strength; None if it has none.
        """
        return next(
            each for each in self.protections if each.kind.name == protection and each.strength_or_none == strength
        )


@dataclass(frozen=True)
class Arm:
    """One run to make: a pretrained model fine-tuned on a new text under one protection."""

    seed: int
    to: str
    protection: str
    on: str | None
    strength: float | None

    @property
    def label(self) -> str:
        """For a progress line, such as `ptb: wpl on own-samples α=1`."""
        on = "" if self.on is None else f" on {self.on}"
        strength = "" if self.strength is None else f" {PROTECTIONS[self.protection].symbol}={self.strength:g}"
        return f"{self.to}: {self.protection}{on}{strength}"

    @property
    def told(self) -> str:
        """In words."""
        return f"{self.label}, seed {self.seed}"


def arms(config: FineTuneConfig) -> list[Arm]:
    """Every run that a configuration asks for, in the order they are made.

    Args:
        config: The configuration.

    Returns:
        The arms: by seed, new text, protection, what it sees of the past, and strength.
    """
    names = dict.fromkeys(each.kind.name for each in config.protections)
    return [
        Arm(seed, to, name, on, each.strength_or_none)
        for seed in config.run.all_seeds
        for to in config.texts.to
        for name in names
        for on in (config.importance.on if asks_for_past(name) else (None,))
        for each in config.protections
        if each.kind.name == name
    ]


def asks_for_past(protection: str) -> bool:
    """Whether a protection needs examples of what the model was trained on before.

    Args:
        protection: Its name.
    """
    kind = PROTECTIONS[protection]
    return kind.uses_fisher or kind.uses_examples
