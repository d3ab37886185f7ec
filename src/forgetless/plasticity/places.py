"""Which weights are shared, and where among them those are that a model has under names of its own."""

import warnings
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from forgetless.plasticity.merging import check_importance
from forgetless.sharding import laid_out, refuse_fsdp1, reshard


class Places:
    """Shared weights in the order given, found by identity: a model may have any of them under any name.

    Args:
        shared_parameters: Modules, parameters, or (name, either) pairs.

    Attributes:
        modules: The modules among them, in the order given.
        parameters: The weights, each once, in the order given.
        index: Where among them a weight is, by its `id`.

    Raises:
        TypeError: If one is neither a module nor a tensor.
        ValueError: If a module is in FullyShardedDataParallel.
    """

    def __init__(self, shared_parameters: Any) -> None:
        self.modules, self.parameters = _unique(shared_parameters)
        self.index = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        # By model, the place of each shared weight by the name that it had there.
        self._names: weakref.WeakKeyDictionary[nn.Module, dict[str, int]] = weakref.WeakKeyDictionary()
        for module in self.modules:
            self._names[module] = self._names_in(module)

    def to_replace(self, old: Tensor, new: Tensor) -> int:
        """The place of a weight that another may take.

        Args:
            old: A shared weight.
            new: The other.

        Raises:
            ValueError: If `old` is not shared, or `new` is by itself.
        """
        i = self.index.get(id(old))
        if i is None or self.index.get(id(new), i) != i:
            raise ValueError(
                "Expected a shared weight and one that is not shared yet to replace it with, but got "
                f"{'another weight' if i is None else 'two shared ones'}. Weights are matched by identity."
            )
        return i

    def put(self, i: int, new: Tensor) -> None:
        """Let a weight take the place of the one that was there.

        Args:
            i: The place.
            new: In it from now on.
        """
        self.parameters[i] = new
        self.index = {id(parameter): i for i, parameter in enumerate(self.parameters)}

    def of_model(self, model: nn.Module, importance: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """The importances that are those of shared weights, by their place.

        Args:
            model: A model that uses some of them.
            importance: F_j ≥ 0 by the parameter names of `model`; others than shared weights are ignored.

        Returns:
            Each laid out over processes as its weight is.

        Raises:
            ValueError: If a name is not a parameter of `model`, a value is refused by `check_importance`, or none is
                that of a shared weight.
        """
        refuse_fsdp1(model)
        reshard(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        found: dict[int, Tensor] = {}
        for name, value in importance.items():
            if name not in parameters:
                raise ValueError(
                    f"Expected importance by the parameter names of the model, but got {name!r}. "
                    "Compute it from the same model that is consolidated."
                )
            i = self.index.get(id(parameters[name]))
            if i is not None:
                found[i] = check_importance(name, parameters[name], value)
        self._warn_if_replaced(model, parameters)
        if self.parameters and not found:
            raise ValueError(
                "Expected importance of some of the shared parameters, but got it of none. "
                "Shared weights are matched by identity: pass the model itself, not a copy, and build the plasticity "
                "after fully_shard, which replaces them."
            )
        return found

    def masks_of_model(
        self, model: nn.Module, found: Mapping[int, Tensor], where: Mapping[str, Tensor]
    ) -> dict[int, Tensor]:
        """Which part of its shared weights a model used, by place; those that are not there it used wholly.

        Args:
            model: As in `of_model`.
            found: By `of_model`.
            where: By parameter name, True where the model used the weight.

        Raises:
            ValueError: If a name is not one of a weight with an importance, or a mask not boolean or in another shape.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        masks = {}
        for name, mask in where.items():
            if name not in parameters:
                raise ValueError(
                    f"Expected masks by the parameter names of the model, but got {name!r}. Name them as importances."
                )
            i = self.index.get(id(parameters[name]))
            if i is None or i not in found:
                continue
            shape = self.parameters[i].shape
            try:
                masks[i] = mask.to(self.parameters[i].device).expand(shape)
            except RuntimeError:
                masks[i] = mask
            if masks[i].dtype != torch.bool or masks[i].shape != shape:
                raise ValueError(
                    f"Expected a boolean mask of {name!r} for its shape {tuple(shape)}, but got {mask.dtype} in "
                    f"{tuple(mask.shape)}. It is True where the model uses the weight."
                )
            masks[i] = laid_out(masks[i], self.parameters[i])
        return masks

    def _names_in(self, model: nn.Module) -> dict[str, int]:
        named = model.named_parameters(remove_duplicate=False)
        return {name: self.index[id(p)] for name, p in named if id(p) in self.index}

    def _warn_if_replaced(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        """Warn of shared weights that this model, or a shared module in it, had, and has no longer."""
        before = dict(self._names.get(model, {}))
        unique = dict(model.named_parameters())
        if not (before or self.modules) and len(unique) == len(self.parameters):
            # Never seen, and the shared weights may have been all of its own.
            pairs = zip(unique.items(), self.parameters, strict=True)
            before = {name: i for i, ((name, p), q) in enumerate(pairs) if p is q or id(p) not in self.index}
            before = before if any(parameters[name] is self.parameters[i] for name, i in before.items()) else {}
        present = {id(p) for p in parameters.values()}
        lost = [name for name, i in before.items() if id(self.parameters[i]) not in present]
        for module in self.modules:
            if module is not model and any(inner is module for inner in model.modules()):
                now = {id(p) for p in module.parameters()}
                lost += [name for name, i in self._names[module].items() if id(self.parameters[i]) not in now]
                self._names[module] = self._names_in(module)
        self._names[model] = self._names_in(model)
        if lost:
            warnings.warn(
                f"Shared weights are no longer in the model that had them ({', '.join(lost[:3])}): they were replaced "
                "or removed, and what is held of them holds nothing. Call plasticity.replace(old, new) after it.",
                stacklevel=4,
            )


def _unique(shared_parameters: Any) -> tuple[list[nn.Module], list[Tensor]]:
    """The modules and the weights, those of the modules included, each once and in the order given."""
    modules: list[nn.Module] = []
    unique: dict[int, Tensor] = {}
    is_one = isinstance(shared_parameters, nn.Module | Tensor)
    for item in [shared_parameters] if is_one else shared_parameters:
        value = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if isinstance(value, nn.Module):
            refuse_fsdp1(value)
            reshard(value)
            modules.append(value)
            unique |= {id(p): p for p in value.parameters() if id(p) not in unique}
        elif isinstance(value, Tensor):
            unique.setdefault(id(value), value)
        else:
            raise TypeError(
                f"Expected shared parameters to be modules, tensors or (name, tensor) pairs, but got "
                f"{type(item).__name__}. Pass a module, module.parameters() or module.named_parameters()."
            )
    return modules, list(unique.values())
