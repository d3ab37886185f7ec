"""What protections may ask about an architecture of a supernet."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from forgetless import ranks
from forgetless.importance import TrainingFisher, diagonal_fisher
from forgetless.protection import Evidence
from forgetless.search.config import ImportanceConfig
from forgetless.spaces import Space
from forgetless.supernet import Supernet
from forgetless.tasks import Task

# Kinds of Fisher information of which several processes take some examples each. Of the others all take all, because a
# batch counts as one, or labels are drawn one after the other; the mean over processes is then what each of them has.
_BY_EXAMPLE = ("empirical", "exact")


class BoundArchitecture(nn.Module):
    """One architecture of a supernet as a module of its own, which has only the weights that it uses.

    Args:
        supernet: The supernet.
        architecture: A member of its space.
    """

    def __init__(self, supernet: Supernet[Any], architecture: Any) -> None:
        super().__init__()
        self.supernet = supernet
        self.architecture = architecture

    def named_parameters(
        self,
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,  # noqa: ARG002
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights that the architecture uses.

        Args:
            prefix: Before every name.
            recurse: It has no weights of its own.
            remove_duplicate: There are none.

        Yields:
            Name and weight.
        """
        if not recurse:
            return
        used = self.supernet.used_parameters(self.architecture)
        yield from ((f"{prefix}supernet.{name}", parameter) for name, parameter in used.items())

    @property
    def examples_from(self) -> Any:
        """The processes over whose examples an importance is a mean; None for this one alone."""
        return ranks.here().group

    def forward(self, inputs: Tensor) -> Any:
        """The outputs of the architecture; of those that give a state as well, without it."""
        outputs = self.supernet(inputs, self.architecture)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def recalibrate(self, batches: Iterable[Tensor]) -> None:
        """Make it ready for eval mode, as `Supernet.recalibrate` does.

        Args:
            batches: Inputs.
        """
        self.supernet.recalibrate(self.architecture, batches)


class EvidenceOf:
    """Makes the evidence of architectures of one supernet.

    Args:
        config: Where the Fisher information comes from.
        task: The data.
        supernet: The shared weights.
        space: The space.
    """

    def __init__(self, config: ImportanceConfig, task: Task[Any], supernet: Supernet[Any], space: Space[Any]) -> None:
        self._config, self._task, self._supernet, self._space = config, task, supernet, space

    def bound(self, architecture: Any) -> BoundArchitecture:
        """An architecture as a module.

        Args:
            architecture: A member of the space.
        """
        return BoundArchitecture(self._supernet, architecture)

    def of(self, architecture: Any, gradients: TrainingFisher) -> Evidence:
        """What may be asked about an architecture that was just trained.

        Args:
            architecture: A member of the space.
            gradients: Of its training batches.
        """
        return self._evidence(architecture, lambda: self._fisher(architecture, gradients))

    def recalled(self, decisions: tuple[int, ...]) -> tuple[nn.Module, Evidence]:
        """An architecture trained earlier, and what may still be asked about it: not its Fisher information.

        Args:
            decisions: That tell it from others.
        """
        architecture = self._space.decode(decisions)
        return self.bound(architecture), self._evidence(architecture, dict)

    def _evidence(self, architecture: Any, fisher: Callable[[], Mapping[str, Tensor]]) -> Evidence:
        return Evidence(
            fisher=fisher,
            batches=lambda: self._batches(architecture),
            loss=self._task.loss,
            loss_of=lambda: self._task.loss_of(self._supernet, architecture),
            decisions=tuple(self._space.encode(architecture)),
        )

    def _fisher(self, architecture: Any, gradients: TrainingFisher) -> Mapping[str, Tensor]:
        if self._config.source == "training":
            return gradients.fisher(self._task.batch_size)
        bound = self.bound(architecture)
        kind, whole = self._config.fisher, self._batches(architecture)
        batches = ranks.here().some_of_each(whole) if kind in _BY_EXAMPLE else whole
        return diagonal_fisher(bound, batches, self._task.loss, kind, parameters=bound.parameters())

    def _batches(self, architecture: Any) -> list[tuple[Any, Tensor]]:
        """Held-out batches; a supernet with batch normalisation is recalibrated on them, for eval mode."""
        batches = list(itertools.islice(self._task.batches("importance"), self._config.batches))
        self._supernet.recalibrate(architecture, [inputs for inputs, _ in batches])
        return batches
