"""The shared weights, where and how firmly each is held, and the same packed for a step that draws many together."""

import math
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from forgetless.choices import AccumulationRule
from forgetless.plasticity.budget import expected_increase
from forgetless.plasticity.merging import check_importance, fold, fold_part, mean_over_all, used_part
from forgetless.plasticity.metric import real, wide_type
from forgetless.plasticity.packing import Packed, Packing
from forgetless.plasticity.penalty import pulls

# A relative change below this is rounding, as of a weight that went through another type and back.
_LEAST_MOVE = 3e-3

Columns = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Parameters, anchors and importances."""


class SharedWeights:
    """Weights that several models use, with anchor and importance of those that an earlier model needs.

    Args:
        shared_parameters: Modules, parameters, or (name, either) pairs; they are matched by identity.

    Attributes:
        modules: The modules among them, in the order given.
        parameters: The weights, each once, in the order given.
        places: Where among them a weight is, by its `id`.
        anchors: θ̂ of each; None before the first model that used it.
        importances: F of each; None before the first model that used it.
        used: Which part of each some model has used; None if that is all, or nothing yet.

    Raises:
        TypeError: If one is neither a module nor a tensor.
    """

    def __init__(self, shared_parameters: Any) -> None:
        self.modules, self.parameters = _unique(shared_parameters)
        self.places = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        # By model, the place of each shared weight by the name that it had there.
        self._names: weakref.WeakKeyDictionary[nn.Module, dict[str, int]] = weakref.WeakKeyDictionary()
        for module in self.modules:
            self._names[module] = self._names_in(module)
        # By who asks: the weights last asked for.
        self._blocks: dict[Any, Block] = {}
        self.reset()

    def reset(self) -> None:
        """Forget every anchor and importance."""
        self.anchors: list[Tensor | None] = [None] * len(self.parameters)
        self.importances: list[Tensor | None] = [None] * len(self.parameters)
        self.used: list[Tensor | None] = [None] * len(self.parameters)
        self._fresh: list[int] = []  # consolidated since the last step
        self.forget_blocks()

    def held(self, places: Iterable[int]) -> list[int]:
        """Those of the shared weights that have an anchor.

        Args:
            places: Where they are among the shared weights.
        """
        return [i for i in places if self.anchors[i] is not None]

    def check_anchors(self, places: Iterable[int]) -> None:
        """Refuse anchors that are no longer like their weights.

        Args:
            places: Where these are among the shared weights.

        Raises:
            ValueError: If an anchor is on another device, of another type or in another shape than its weight.
        """
        for i in places:
            anchor, parameter = self.anchors[i], self.parameters[i]
            if anchor is None:
                continue
            if anchor.device != parameter.device or anchor.dtype != parameter.dtype:
                raise ValueError(
                    f"Expected an anchor like its weight ({parameter.dtype} on {parameter.device}), but got "
                    f"{anchor.dtype} on {anchor.device}. Call plasticity.to(...) after moving the model."
                )
            if anchor.shape != parameter.shape:
                raise ValueError(
                    f"Expected an anchor in its weight's shape {tuple(parameter.shape)}, but got "
                    f"{tuple(anchor.shape)}. Call plasticity.replace(weight, weight) after resizing it."
                )

    def check_before(self, optimizer: Optimizer) -> None:
        """Refuse what `check_anchors` does, of the weights that an optimizer is about to move.

        Args:
            optimizer: Before its step.

        Raises:
            ValueError: As `check_anchors`.
        """
        pairs = zip(self.anchors, self.parameters, strict=True)
        if all(a is None or (a.dtype is p.dtype and a.device == p.device and a.shape == p.shape) for a, p in pairs):
            return  # as in nearly every step, and seen without looking weights up
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        self.check_anchors(self.places[id(p)] for p in parameters if id(p) in self.places)

    def warn_if_moved(self) -> None:
        """Warn once if what was consolidated last has been moved since by other than an optimizer's step."""
        fresh, self._fresh = self._fresh, []
        pairs = [(a, self.parameters[i].detach()) for i in fresh if (a := self.anchors[i]) is not None]
        moved = [(a, w.to(a)) for a, w in pairs if a.shape == w.shape and not torch.equal(a, w.to(a))]
        if not moved:
            return
        size = math.sqrt(sum(float(anchor.norm()) ** 2 for anchor, _ in pairs))
        off = math.sqrt(sum(float((weight - anchor).norm()) ** 2 for anchor, weight in moved))
        if off > _LEAST_MOVE * size > 0:
            warnings.warn(
                f"Shared weights have moved by {off / size:.2g} of their norm since they were consolidated, as "
                "averaging or loading does: the anchor is where they were. Consolidate after it, or ignore this if a "
                "training without protection was in between.",
                stacklevel=5,
            )

    def all_held(self) -> Columns:
        """Parameters, anchors and importances of all weights that have an anchor.

        Complex ones are views of their real and imaginary parts.

        Raises:
            ValueError: As `check_anchors`.
        """
        self.check_anchors(range(len(self.parameters)))
        return _real_columns(self._columns(self.held(range(len(self.parameters)))))

    def block(self, key: Any, held: list[int]) -> "Block":
        """These weights together; packed from the second time on that the same are asked for, as that takes a while.

        Args:
            key: Who asks.
            held: Places of weights that have an anchor.
        """
        block = self._blocks.get(key)
        is_known = block is not None and block.held == held
        if block is None or not is_known or not block.is_settled:
            block = self._blocks[key] = Block(held, self._columns(held), is_known=is_known)
        return block

    def forget_blocks(self) -> None:
        """Drop what was packed, because anchors or importances have changed."""
        self._blocks.clear()

    def _columns(self, held: Iterable[int]) -> Columns:
        rows = [(self.parameters[i], self.anchors[i], self.importances[i]) for i in held]
        parameters, anchors, importances = zip(*rows, strict=True) if rows else ((), (), ())
        return list(parameters), list(anchors), list(importances)

    def of_model(self, model: nn.Module, importance: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """The importances that are those of shared weights, by their place.

        Args:
            model: A model that uses some of them.
            importance: F_j ≥ 0 by the parameter names of `model`; others than shared weights are ignored.

        Raises:
            ValueError: If a name is not a parameter of `model`, a value is refused by `check_importance`, or none is
                that of a shared weight.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        found: dict[int, Tensor] = {}
        for name, value in importance.items():
            if name not in parameters:
                raise ValueError(
                    f"Expected importance by the parameter names of the model, but got {name!r}. "
                    "Compute it from the same model that is consolidated."
                )
            i = self.places.get(id(parameters[name]))
            if i is not None:
                check_importance(name, parameters[name], value)
                found[i] = value
        self._warn_if_replaced(model, parameters)
        if self.parameters and not found:
            raise ValueError(
                "Expected importance of some of the shared parameters, but got it of none. "
                "Shared weights are matched by identity: pass the model itself, not a copy."
            )
        return found

    def masks_of_model(
        self, model: nn.Module, found: Mapping[int, Tensor], where: Mapping[str, Tensor] | None
    ) -> dict[int, Tensor]:
        """Which part of its shared weights a model used, by place; those that are not there it used wholly.

        Args:
            model: As in `of_model`.
            found: By `of_model`.
            where: By parameter name, True where the model used the weight. None tells it from exact zeros: of a weight
                that is held already, slices (along any dimension) whose importance is 0 throughout were not used.

        Raises:
            ValueError: If a name is not one of a weight with an importance, or a mask not boolean or in another shape.
        """
        if where is None:
            parts = {i: used_part(value) for i, value in found.items() if self.anchors[i] is not None}
            return {i: part for i, part in parts.items() if part is not None}
        parameters = dict(model.named_parameters(remove_duplicate=False))
        masks = {}
        for name, mask in where.items():
            if name not in parameters:
                raise ValueError(
                    f"Expected masks by the parameter names of the model, but got {name!r}. Name them as importances."
                )
            i = self.places.get(id(parameters[name]))
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
        return masks

    def fold(
        self,
        found: Mapping[int, Tensor],
        rule: AccumulationRule,
        decay: float,
        damping: float,
        masks: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Take what one model needs into anchors and importances.

        Args:
            found: F_j ≥ 0 by place among the shared weights.
            rule: How it accumulates over models.
            decay: Of the rules `ema` and `merge`.
            damping: Added to every importance that was used, as a share of their mean.
            masks: Which part of a weight the model used, by place; without one, all.

        Raises:
            ValueError: As `check_anchors`. Nothing is changed then.
        """
        self.check_anchors(found)
        masks = masks or {}
        floor = damping * mean_over_all(v[masks[i]] if i in masks else v for i, v in found.items()) if damping else 0.0
        for i, value in found.items():
            parameter, importance, anchor = self.parameters[i], self.importances[i], self.anchors[i]
            value = value.detach().to(wide_type(parameter.dtype)) + floor
            if i in masks or self.used[i] is not None:
                mask = masks.get(i, torch.ones_like(value, dtype=torch.bool))
                self.importances[i], self.anchors[i], self.used[i] = fold_part(
                    mask, value, parameter, importance, anchor, self.used[i], rule, decay
                )
            else:
                self.importances[i], self.anchors[i] = fold(value, parameter, importance, anchor, rule, decay)
        # Under `joint` the anchor is not where the weights are.
        self._fresh = [] if rule == "joint" else [i for i in found if i not in masks]
        self.forget_blocks()

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let a weight take the place of another, with what was held of the part that both have.

        Args:
            old: A shared weight.
            new: In its place from now on.

        Raises:
            ValueError: If `old` is not shared, `new` is by itself, or they differ in the number of dimensions.
        """
        i = self.places.get(id(old))
        if i is None or self.places.get(id(new), i) != i:
            raise ValueError(
                "Expected a shared weight and one that is not shared yet to replace it with, but got "
                f"{'another weight' if i is None else 'two shared ones'}. Weights are matched by identity."
            )
        anchor, importance, used = self.anchors[i], self.importances[i], self.used[i]
        if new.ndim != (old if anchor is None else anchor).ndim:
            raise ValueError(
                f"Expected a weight of {old.ndim} dimensions in place of the old one, but got {new.ndim}. "
                "Build another WeightPlasticity where a weight is another altogether."
            )
        self.parameters[i] = new
        self.places = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        if anchor is not None and importance is not None:
            part = tuple(slice(min(a, b)) for a, b in zip(anchor.shape, new.shape, strict=True))
            self.anchors[i] = grown = new.detach().clone()
            grown[part] = anchor[part].to(grown)
            self.importances[i] = zeros = torch.zeros_like(grown, dtype=wide_type(new.dtype))
            zeros[part] = importance[part].to(zeros)
            if used is not None or grown[part].shape != grown.shape:
                self.used[i] = mask = torch.zeros_like(grown, dtype=torch.bool)
                mask[part] = True if used is None else used[part].to(grown.device)
        self._fresh = [j for j in self._fresh if j != i]
        self.forget_blocks()

    def _names_in(self, model: nn.Module) -> dict[str, int]:
        named = model.named_parameters(remove_duplicate=False)
        return {name: self.places[id(p)] for name, p in named if id(p) in self.places}

    def _warn_if_replaced(self, model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
        """Warn of shared weights that this model, or a shared module in it, had, and has no longer."""
        before = dict(self._names.get(model, {}))
        unique = dict(model.named_parameters())
        if not (before or self.modules) and len(unique) == len(self.parameters):
            # Never seen, and the shared weights may have been all of its own.
            pairs = zip(unique.items(), self.parameters, strict=True)
            before = {name: i for i, ((name, p), q) in enumerate(pairs) if p is q or id(p) not in self.places}
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

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Move anchors and importances.

        Args:
            device: Of the weights; None leaves it.
            dtype: Their floating-point type, None leaves it; importances stay at least float32.
        """
        wide = None if dtype is None else wide_type(dtype)
        self.used = [None if u is None else u.to(device=device) for u in self.used]
        self.anchors = [None if a is None else a.to(device=device, dtype=dtype) for a in self.anchors]
        self.importances = [None if f is None else f.to(device=device, dtype=wide) for f in self.importances]
        self.forget_blocks()

    def follow(self) -> None:
        """Move anchors and importances to the devices and types of their weights."""
        for i, parameter in enumerate(self.parameters):
            anchor, importance, used = self.anchors[i], self.importances[i], self.used[i]
            if anchor is not None and importance is not None:
                self.anchors[i] = anchor.to(parameter.detach())
                self.importances[i] = importance.to(parameter.device, wide_type(parameter.dtype))
                self.used[i] = None if used is None else used.to(parameter.device)
        self.forget_blocks()

    def check(self, anchors: Sequence[Tensor | None], importances: Sequence[Tensor | None]) -> None:
        """Refuse anchors and importances that are not those of these weights.

        Args:
            anchors: One or None for each weight.
            importances: One or None for each weight.

        Raises:
            ValueError: If the number of weights or a shape differs, one is there without the other, a value is not
                finite, or an importance is negative.
        """
        if len(anchors) != len(self.parameters) or len(importances) != len(self.parameters):
            raise ValueError(
                f"Expected the state of {len(self.parameters)} shared parameters, but got {len(anchors)} anchors and "
                f"{len(importances)} importances. Build the plasticity from the same weights, in the same order."
            )
        for i, (parameter, anchor, importance) in enumerate(zip(self.parameters, anchors, importances, strict=True)):
            _check_state(i, parameter, anchor, importance)

    def load(
        self,
        anchors: Sequence[Tensor | None],
        importances: Sequence[Tensor | None],
        used: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Copy anchors and importances, to the weights' devices.

        Args:
            anchors: One or None for each weight.
            importances: One or None for each weight.
            used: One or None for each weight; None if all are.
        """
        devices = [parameter.device for parameter in self.parameters]
        self.anchors = [_copied(a, device) for a, device in zip(anchors, devices, strict=True)]
        self.importances = [_copied(f, device) for f, device in zip(importances, devices, strict=True)]
        used = [None] * len(devices) if used is None else used
        self.used = [_copied(u, device) for u, device in zip(used, devices, strict=True)]
        self._fresh = []
        self.forget_blocks()


class Block:
    """Held weights that are drawn together, the small ones packed.

    Args:
        held: Their places among the shared weights.
        columns: Parameters, anchors and importances of these.
        is_known: Whether they were asked for before; only then they are packed.

    Attributes:
        held: Their places among the shared weights.
        parameters: The weights. What is drawn of complex ones are their real and imaginary parts.
        anchors: Of what `load` returns.
        importances: Of what `load` returns.
        space: Space for one number per weight, at least float32, such as a metric.
        is_settled: False if they will be packed when they are asked for again.
    """

    def __init__(self, held: list[int], columns: Columns, *, is_known: bool) -> None:
        self.parameters = columns[0]
        parameters, anchors, importances = _real_columns(columns)
        packing = Packing(parameters)
        self.is_settled = is_known or not packing.blocks
        if not self.is_settled:
            packing = Packing(parameters, any_packed=False)
        self.held = held
        self._weights, self.space = Packed(packing, parameters), Packed(packing, parameters, wide_type)
        self.anchors = Packed(packing, parameters).load(anchors)
        self.importances = Packed(packing, importances).load(importances)
        self._shares: tuple[float, list[Tensor]] | None = None

    def load(self) -> list[Tensor]:
        """The weights' values: flat tensors, of which `store` copies back, and weights that are not packed."""
        return self._weights.load([real(parameter) for parameter in self.parameters])

    def store(self) -> None:
        """Copy what was loaded, and changed since, back into the weights."""
        self._weights.store([real(parameter) for parameter in self.parameters])

    def increase(self) -> float:
        """½ Σ F_i (θ_i − θ̂_i)² of these weights."""
        return expected_increase(self.load(), self.anchors, self.importances)

    def draw(self, metric: float | list[Tensor]) -> None:
        """Draw the weights to their anchors, by s/(1 + s) of the way.

        Args:
            metric: d/(lr·α) + `TINY`, of what `load` returns. Tensors are overwritten. A number changes with lr and α
                only, and so do the shares.
        """
        weights = self.load()
        torch._foreach_lerp_(weights, self.anchors, self._pulls(metric, weights))
        self.store()

    def _pulls(self, metric: float | list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        if not isinstance(metric, float):
            return pulls(self.importances, metric, weights)
        if self._shares is None or self._shares[0] != metric:
            self._shares = (metric, pulls(self.importances, metric, weights))
        return self._shares[1]


def _real_columns(columns: Columns) -> Columns:
    """The same, with complex weights and anchors as their real and imaginary parts, which share an importance."""
    parameters, anchors, importances = columns
    if not any(parameter.is_complex() for parameter in parameters):
        return columns
    pairs = zip(parameters, importances, strict=True)
    both = [f.unsqueeze(-1).expand(*f.shape, 2) if p.is_complex() else f for p, f in pairs]
    return [real(p) for p in parameters], [real(a) for a in anchors], both


def _unique(shared_parameters: Any) -> tuple[list[nn.Module], list[Tensor]]:
    """The modules and the weights, those of the modules included, each once and in the order given."""
    modules: list[nn.Module] = []
    unique: dict[int, Tensor] = {}
    is_one = isinstance(shared_parameters, nn.Module | Tensor)
    for item in [shared_parameters] if is_one else shared_parameters:
        value = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if isinstance(value, nn.Module):
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


def _check_state(i: int, parameter: Tensor, anchor: Tensor | None, importance: Tensor | None) -> None:
    if (anchor is None) != (importance is None):
        raise ValueError(
            f"Expected anchor and importance {i} to be held together, but got one without the other. "
            "Pass what state_dict returned."
        )
    for kind, value in (("anchor", anchor), ("importance", importance)):
        if value is not None and value.shape != parameter.shape:
            raise ValueError(
                f"Expected {kind} {i} of shape {tuple(parameter.shape)}, but got {tuple(value.shape)}. "
                "Build the plasticity from the same weights, in the same order."
            )
        if value is not None and not bool(torch.isfinite(value).all()):
            raise ValueError(f"Expected finite {kind} {i}, but got inf or nan. The state is damaged.")
    if importance is not None and bool((importance < 0).any()):
        raise ValueError(f"Expected importance {i} to be at least 0, but got a negative one. The state is damaged.")


def _copied(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone().to(device)
