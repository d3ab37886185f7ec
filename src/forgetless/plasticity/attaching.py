"""The optimizer that a proximal step is to follow: the one inside of wrappers, with hooks and a metric."""

import warnings
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from forgetless.plasticity.metric import Metric, known_metric
from forgetless.plasticity.moves import Moved, Steps
from forgetless.sharding import is_sharded

# Where wrappers keep what they wrap: accelerate, Lightning and Lookahead; sharpness-aware minimisation.
_INSIDE = ("optimizer", "base_optimizer")


@dataclass
class Following:
    """What is kept of an optimizer while its steps are followed.

    Attributes:
        handles: Of the hooks before and after its step.
        metric: d, where it was given.
        steps: What its steps moved that have not been followed yet, where not every one is.
        drawn: What was drawn back last, under a tolerance: gradients may be gone when `calibrate` asks.
    """

    handles: list[RemovableHandle]
    metric: Metric | None
    steps: Steps = field(default_factory=Steps)
    drawn: Moved | None = None

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()


def innermost(optimizer: Any) -> Optimizer:
    """The optimizer that takes the steps: what a wrapper of the same weights holds, or what is given.

    Hooks of a wrapper come too late or never: sharpness-aware minimisation moves the weights there and back within its
    step, accelerate's has none.

    Args:
        optimizer: An optimizer or a wrapper of one, however deep.

    Raises:
        ValueError: If it is no `torch.optim.Optimizer` and holds none of the same weights, or has no hooks.
    """
    given = optimizer
    seen: set[int] = set()
    while id(optimizer) not in seen:
        seen.add(id(optimizer))
        weights = _weights(optimizer)
        for name in _INSIDE:
            inner = getattr(optimizer, name, None)
            if isinstance(inner, Optimizer) and (_weights(inner) == weights or not weights):
                optimizer = inner
                break
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise ValueError(
            "Expected a torch.optim.Optimizer with step hooks, or a wrapper of one that steps the same weights, but "
            f"got {type(given).__name__}. Attach to the optimizer inside, or add plasticity.penalty() to the loss."
        )
    return optimizer


# Whose steps read numbers of single weights, for which `torch` takes those of a process's own part.
_OF_WHOLE_WEIGHTS = ("Adafactor",)


def check_metric(optimizer: Optimizer, metric: Metric | None) -> None:
    """Warn where an optimizer's metric is not known, and refuse where there can be none.

    Args:
        optimizer: To be attached.
        metric: Given in place of what is known.

    Raises:
        ValueError: If none is given, and a proximal step cannot follow the optimizer.
    """
    names = {kind.__name__ for kind in type(optimizer).__mro__}
    if names & {*_OF_WHOLE_WEIGHTS} and any(is_sharded(p) for g in optimizer.param_groups for p in g["params"]):
        raise ValueError(
            f"Expected another optimizer of sharded weights than {type(optimizer).__name__}, whose step takes the norm "
            "of a process's part for that of the weight. Use AdamW."
        )
    if metric is None and known_metric(optimizer) is None:
        warnings.warn(
            f"forgetless does not know the metric of {type(optimizer).__name__}: the proximal step uses the identity, "
            "so that alpha has another meaning. Pass attach(optimizer, metric=...), see docs/optimizers.md.",
            stacklevel=3,
        )


def _weights(optimizer: Any) -> set[int]:
    groups = getattr(optimizer, "param_groups", None) or ()
    return {id(parameter) for group in groups for parameter in group["params"]}
