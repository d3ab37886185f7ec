"""Buffers of shared modules, such as BatchNorm's statistics: part of what a model needs, and no parameters."""

import contextlib
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn

# After so many steps buffers that have not changed are taken for constants.
_WATCHED_STEPS = 3


class SharedBuffers:
    """Floating-point buffers of shared modules: held where the last consolidated model left them, or each model's own.

    While another model trains, `hold` puts them back after each step, so that earlier models compute what they did.
    Within `of(model)` they are that model's own: those it was consolidated with, or left at the end of the last such
    context. Modules are known by identity, and their buffers by name, as moving a module makes new ones.

    Args:
        modules: The shared modules; those inside of them count as well.

    Attributes:
        places: (module, name) of each buffer, each once.
        anchors: Its values; None before the first model that has the module was consolidated.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        inner = {id(m): m for module in modules for m in module.modules()}.values()
        self.places = [(m, name) for m in inner for name, b in m._buffers.items() if _is_floating(b)]
        self._inside: list[nn.Module] = []
        self.reset()

    def reset(self) -> None:
        """Forget what is held, and every model's own."""
        self.anchors: list[Tensor | None] = [None] * len(self.places)
        self._own: weakref.WeakKeyDictionary[nn.Module, list[Tensor]] = weakref.WeakKeyDictionary()
        self._has_warned = False

    @property
    def modules(self) -> set[nn.Module]:
        """Those with a buffer."""
        return {module for module, _ in self.places}

    def consolidate(self, model: nn.Module) -> None:
        """Remember the model's buffers as its own, and outside of `of` hold them from now on.

        Args:
            model: Just trained.
        """
        if not self.places:
            return
        self._own[model] = self._values()
        inner = set(model.modules())
        for i, (module, _) in enumerate(self.places):
            if module in inner and (self.anchors[i] is None or not self._inside):
                self.anchors[i] = self._own[model][i].clone()

    @torch.no_grad()
    def hold(self) -> None:
        """Put the buffers back to their anchors, but within `of`; warn the first time that this changes one."""
        if self._inside:
            return
        changed = self._load(self.anchors, find_changed=not self._has_warned)
        if changed:
            self._has_warned = True
            warnings.warn(
                f"Buffers of shared modules ({', '.join(changed[:3])}) are held where the last consolidated model left "
                "them, while another model trains in train mode with its own. Train and evaluate that one in "
                "plasticity.buffers_of(model), or train it with these modules in eval mode.",
                stacklevel=6,
            )

    @contextlib.contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        """A context in which the buffers are the model's own; after it they are as they are held again.

        Args:
            model: One that was consolidated or was in such a context, a part of it, or a new one.
        """
        known = next((m for m in list(self._own) if m is model or _contains(m, model) or _contains(model, m)), model)
        if self._inside:
            self._own[self._inside[-1]] = self._values()
        if known in self._own:
            self._load(self._own[known])
        self._inside.append(known)
        try:
            yield
        finally:
            self._own[self._inside.pop()] = self._values()
            self._load(self._own[self._inside[-1]] if self._inside else self.anchors)

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Move the anchors.

        Args:
            device: None leaves it.
            dtype: None leaves it.
        """
        self.anchors = [None if a is None else a.to(device=device, dtype=dtype) for a in self.anchors]

    def load(self, anchors: Sequence[Tensor | None]) -> None:
        """Take the anchors of a state.

        Args:
            anchors: One or None for each buffer.

        Raises:
            ValueError: If their number or a shape differs.
        """
        shapes = [value.shape for value in self._values()]
        if len(anchors) != len(shapes) or any(
            a is not None and a.shape != s for a, s in zip(anchors, shapes, strict=False)
        ):
            raise ValueError(
                f"Expected the state of {len(shapes)} buffers of shared modules, but got {len(anchors)}, or others. "
                "Build the plasticity from the same modules, in the same order."
            )
        self.anchors = [None if a is None else a.clone() for a in anchors]

    def blank(self) -> list[Tensor]:
        """Tensors like the buffers, for what was saved of them."""
        return [torch.zeros_like(value) for value in self._values()]

    def _values(self) -> list[Tensor]:
        return [module._buffers[name].detach().clone() for module, name in self.places]  # type: ignore[union-attr]

    @torch.no_grad()
    def _load(self, values: Sequence[Tensor | None], *, find_changed: bool = False) -> list[str]:
        changed = []
        for (module, name), value in zip(self.places, values, strict=True):
            buffer = module._buffers[name]
            if value is None or buffer is None:
                continue
            if find_changed and not torch.equal(buffer, value.to(buffer)):
                changed.append(f"{type(module).__name__}.{name}")
            buffer.copy_(value)
        return changed


class BufferWatch:
    """Warns where buffers of modules that hold shared weights train, but only the weights were given as shared."""

    def __init__(self) -> None:
        self._watched: list[tuple[weakref.ref[nn.Module], str, Tensor]] = []
        self._steps_left = 0
        self._has_warned = False

    def consolidate(self, model: nn.Module, shared: Set[int], held: Set[nn.Module]) -> None:
        """Warn of statistics that have trained, and watch other buffers.

        Args:
            model: Just trained.
            shared: Identities of the shared weights.
            held: Modules whose buffers are held.
        """
        if self._has_warned:
            return
        self._watched, self._steps_left = [], _WATCHED_STEPS
        for module in _holders(model, shared) - held:
            for name, buffer in module._buffers.items():
                if not _is_floating(buffer):
                    continue
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    if module.track_running_stats and (n := module.num_batches_tracked) is not None and int(n) > 0:
                        self._warn(module, name)
                        return
                elif buffer is not None:
                    self._watched.append((weakref.ref(module), name, buffer.detach().clone()))

    def check(self) -> None:
        """Warn if a watched buffer has changed since the model was consolidated."""
        if self._steps_left == 0 or not self._watched:
            return
        self._steps_left -= 1
        for reference, name, value in self._watched:
            module = reference()
            buffer = None if module is None else module._buffers.get(name)
            if module is not None and buffer is not None and not torch.equal(buffer, value.to(buffer)):
                self._warn(module, name)
                return

    def _warn(self, module: nn.Module, name: str) -> None:
        self._has_warned, self._steps_left, self._watched = True, 0, []
        warnings.warn(
            f"forgetless holds the shared parameters, but {type(module).__name__}.{name} beside them is changed by "
            "training, too, and is not held. Pass the shared modules: WeightPlasticity(module), see "
            "docs/optimizers.md.",
            stacklevel=6,
        )


def _holders(model: nn.Module, shared: Set[int]) -> set[nn.Module]:
    """Modules that hold a shared weight themselves, or lie in one all of whose weights are shared."""
    found: set[nn.Module] = set()
    for module in model.modules():
        if any(id(p) in shared for p in module._parameters.values()):
            found.add(module)
        weights = list(module.parameters())
        if weights and all(id(p) in shared for p in weights):
            found.update(module.modules())
    return found


def _contains(outer: nn.Module, inner: nn.Module) -> bool:
    return any(module is inner for module in outer.modules())


def _is_floating(buffer: Any) -> bool:
    return isinstance(buffer, Tensor) and (buffer.is_floating_point() or buffer.is_complex())
