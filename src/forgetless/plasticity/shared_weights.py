"""The shared weights, and where and how firmly each is held."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from forgetless.choices import AccumulationRule
from forgetless.plasticity.block import Block, Columns, StoredColumns, real_columns
from forgetless.plasticity.chunks import Space, pointers
from forgetless.plasticity.compiled import CompiledPass
from forgetless.plasticity.merging import fold, fold_part, mean_over_all, used_part
from forgetless.plasticity.metric import wide_type
from forgetless.plasticity.places import Places
from forgetless.plasticity.storage import Storage, Stored, dense
from forgetless.sharding import Sums, is_sharded, laid_out, local

# A relative change below this is rounding, as of a weight that went through another type and back.
_LEAST_MOVE = 3e-3


class SharedWeights:
    """Weights that several models use, with anchor and importance of those that an earlier model needs.

    Args:
        shared_parameters: Modules, parameters, or (name, either) pairs; they are matched by identity.
        storage: How anchors and importances are held.
        is_compiled: Whether large weights are drawn in one compiled pass.

    Attributes:
        storage: See above.
        compiled: That pass, or None.
        places: The weights, and where among them one is.
        anchors: θ̂ of each; None before the first model that used it.
        importances: F of each; None before the first model that used it.
        used: Which part of each some model has used; None if that is all, or nothing yet.

    Raises:
        TypeError: If one is neither a module nor a tensor.
    """

    def __init__(self, shared_parameters: Any, storage: Storage, *, is_compiled: bool) -> None:
        self.storage = storage
        self.compiled = CompiledPass() if is_compiled else None
        self.places = Places(shared_parameters)
        # By who asks: the weights last asked for.
        self._blocks: dict[Any, tuple[list[int], Block]] = {}
        self._space = Space()
        self._checked: list[int] = []  # where the weights lay when they were last like their anchors
        self.reset()

    @property
    def parameters(self) -> list[Tensor]:
        """The weights, each once, in the order given."""
        return self.places.parameters

    def reset(self) -> None:
        """Forget every anchor and importance."""
        self.anchors: list[Tensor | None] = [None] * len(self.parameters)
        self.importances: list[Stored | None] = [None] * len(self.parameters)
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
            is_beside = self.storage.anchor_place is not None or anchor.device == parameter.device
            if not is_beside or anchor.dtype != parameter.dtype:
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
        present = pointers(self.parameters)
        if present and present == self._checked:
            return  # as in nearly every step
        pairs = zip(self.anchors, self.parameters, strict=True)
        if all(a is None or (a.dtype is p.dtype and a.device == p.device and a.shape == p.shape) for a, p in pairs):
            self._checked = present
            return
        parameters, index = (p for group in optimizer.param_groups for p in group["params"]), self.places.index
        self.check_anchors(index[id(p)] for p in parameters if id(p) in index)

    def warn_if_moved(self) -> None:
        """Warn once if what was consolidated last has been moved since by other than an optimizer's step."""
        fresh, self._fresh = self._fresh, []
        pairs = [(a, self.parameters[i].detach()) for i in fresh if (a := self.anchors[i]) is not None]
        pairs = [(a, w.to(a)) for a, w in pairs if a.shape == w.shape]
        off, size = _distance_and_size(pairs)
        if off > _LEAST_MOVE * size > 0:
            warnings.warn(
                f"Shared weights have moved by {off / size:.2g} of their norm since they were consolidated, as "
                "averaging or loading does: the anchor is where they were. Consolidate after it, or ignore this if a "
                "training without protection was in between.",
                stacklevel=5,
            )

    def all_held(self) -> Columns:
        """Parameters, anchors and importances of all weights that have an anchor, on the devices of the weights.

        Complex ones are views of their real and imaginary parts.

        Raises:
            ValueError: As `check_anchors`.
        """
        self.check_anchors(range(len(self.parameters)))
        held = self.held(range(len(self.parameters)))
        parameters, anchors, importances = real_columns(self._columns(held))
        beside = [anchor.to(parameter.device) for anchor, parameter in zip(anchors, parameters, strict=True)]
        return parameters, beside, [dense(importance) for importance in importances]

    def block(self, key: Any, places: list[int]) -> Block | None:
        """Those of these weights that have an anchor, together; None if none has.

        They are packed from the second time on that the same are asked for, as that takes a while. Where it is the very
        same list, it is not looked at again.

        Args:
            key: Who asks.
            places: Of weights; not to be changed afterwards.
        """
        asked, block = self._blocks.get(key, ([], None))
        if block is not None and block.is_settled and asked is places:
            return block
        held = self.held(places)
        if not held:
            return None
        is_known = block is not None and block.held == held
        if block is None or not is_known or not block.is_settled:
            block = Block(held, self._columns(held), self._space, self.compiled, is_known=is_known)
        self._blocks[key] = (places, block)
        return block

    def forget_blocks(self) -> None:
        """Drop what was packed and checked, because anchors or importances have changed."""
        self._blocks.clear()
        self._checked.clear()

    def _columns(self, held: Iterable[int]) -> StoredColumns:
        rows = [(self.parameters[i], self.anchors[i], self.importances[i]) for i in held]
        parameters, anchors, importances = zip(*rows, strict=True) if rows else ((), (), ())
        return list(parameters), list(anchors), list(importances)

    def used_parts(self, found: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Which part of its weights a model used that does not say so, by place; those that are not there wholly.

        Of a weight that is held already, slices (along any dimension) whose importance is 0 throughout were not used.

        Args:
            found: The model's importances, by place.
        """
        parts = {i: used_part(value) for i, value in found.items() if self.anchors[i] is not None}
        return {i: part for i, part in parts.items() if part is not None}

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
        self.storage.check(self.parameters[i] for i in found)
        masks = masks or {}
        floor = damping * mean_over_all([*found.values()], [masks.get(i) for i in found]) if damping else 0.0
        for i, value in found.items():
            parameter, (importance, anchor) = self.parameters[i], self._open(i)
            value = value.detach().to(wide_type(parameter.dtype)) + floor
            if i in masks or self.used[i] is not None:
                mask = masks.get(i, torch.ones_like(value, dtype=torch.bool))
                importance, anchor, self.used[i] = fold_part(
                    mask, value, parameter, importance, anchor, self.used[i], rule, decay
                )
            else:
                importance, anchor = fold(value, parameter, importance, anchor, rule, decay)
            self._hold(i, importance, anchor)
        # Under `joint` the anchor is not where the weights are.
        self._fresh = [] if rule == "joint" else [i for i in found if i not in masks]
        self.forget_blocks()

    def _open(self, i: int) -> tuple[Tensor | None, Tensor | None]:
        """Importance and anchor of a weight for arithmetic with it."""
        importance, anchor, device = self.importances[i], self.anchors[i], self.parameters[i].device
        return None if importance is None else dense(importance), None if anchor is None else anchor.to(device)

    def _hold(self, i: int, importance: Tensor, anchor: Tensor) -> None:
        """Hold a weight from now on, by tensors that are nobody else's."""
        self.importances[i] = self.storage.importance(importance, self.parameters[i])
        self.anchors[i] = self.storage.anchor(anchor)

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Let a weight take the place of another, with what was held of the part that both have.

        Args:
            old: A shared weight.
            new: In its place from now on.

        Raises:
            ValueError: If `old` is not shared, `new` is by itself, or they differ in the number of dimensions.
        """
        if is_sharded(new) or any(is_sharded(weight) for weight in self.parameters):
            raise ValueError(
                "Expected whole weights to replace, but got sharded ones. Replace before fully_shard: build the "
                "plasticity of the whole model, replace, and load its state_dict into one of the sharded model."
            )
        i = self.places.to_replace(old, new)
        anchor, importance, used = self.anchors[i], self.importances[i], self.used[i]
        if new.ndim != (old if anchor is None else anchor).ndim:
            raise ValueError(
                f"Expected a weight of {old.ndim} dimensions in place of the old one, but got {new.ndim}. "
                "Build another WeightPlasticity where a weight is another altogether."
            )
        if anchor is not None:
            self.storage.check([new])
        self.places.put(i, new)
        if anchor is not None and importance is not None:
            part = tuple(slice(min(a, b)) for a, b in zip(anchor.shape, new.shape, strict=True))
            grown = new.detach().clone()
            grown[part] = anchor[part].to(grown)
            zeros = torch.zeros_like(grown, dtype=wide_type(new.dtype))
            zeros[part] = dense(importance)[part].to(zeros)
            self._hold(i, zeros, grown)
            if used is not None or grown[part].shape != grown.shape:
                self.used[i] = mask = torch.zeros_like(grown, dtype=torch.bool)
                mask[part] = True if used is None else used[part].to(grown.device)
        self._fresh = [j for j in self._fresh if j != i]
        self.forget_blocks()

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Move anchors and importances.

        Args:
            device: Of the weights; None leaves it.
            dtype: Their floating-point type, None leaves it; importances stay at least float32.
        """
        self.used = [None if u is None else u.to(device=device) for u in self.used]
        beside = device if self.storage.anchor_place is None else None
        self.anchors = [None if a is None else a.to(device=beside, dtype=dtype) for a in self.anchors]
        self.importances = [None if f is None else self.storage.moved(f, device, dtype) for f in self.importances]
        self.forget_blocks()

    def follow(self) -> None:
        """Move anchors and importances to the devices and types of their weights."""
        for i, parameter in enumerate(self.parameters):
            anchor, importance, used = self.anchors[i], self.importances[i], self.used[i]
            if anchor is not None and importance is not None:
                beside = parameter.device if self.storage.anchor_place is None else None
                self.anchors[i] = anchor.to(device=beside, dtype=parameter.dtype)
                self.importances[i] = self.storage.moved(importance, parameter.device, parameter.dtype)
                self.used[i] = None if used is None else used.to(parameter.device)
        self.forget_blocks()

    def load(
        self,
        anchors: Sequence[Tensor | None],
        importances: Sequence[Tensor | None],
        used: Sequence[Tensor | None] | None = None,
    ) -> None:
        """Copy anchors and importances, to the weights' devices, laid out as the weights are.

        Args:
            anchors: One or None for each weight.
            importances: One or None for each weight.
            used: One or None for each weight; None if all are.
        """
        self.storage.check(p for p, anchor in zip(self.parameters, anchors, strict=True) if anchor is not None)
        self.anchors, self.importances = [None] * len(self.parameters), [None] * len(self.parameters)
        for i, (anchor, importance) in enumerate(zip(anchors, importances, strict=True)):
            if anchor is not None and importance is not None:
                weight = self.parameters[i]
                self._hold(i, dense(_copied(importance, weight)), _copied(anchor, weight))
        used = [None] * len(self.parameters) if used is None else used
        pairs = zip(used, self.parameters, strict=True)
        self.used = [None if u is None else _copied(u, weight) for u, weight in pairs]
        self._fresh = []
        self.forget_blocks()


def _copied(value: Tensor, weight: Tensor) -> Tensor:
    """A copy on the device of a weight, laid out over processes as it is."""
    return laid_out(value.detach().clone().to(weight.device), weight)


def _distance_and_size(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Of the weights in pairs of anchor and weight, the norms of how far they are off, and of the anchors."""
    sums = Sums([anchor for anchor, _ in pairs])
    own = [(local(anchor), local(weight)) for anchor, weight in pairs]
    if not pairs or (sums.is_local and all(torch.equal(*pair) for pair in own)):
        return 0.0, 0.0
    norms = [(float((w - a).norm()), float(a.norm())) for a, w in own]
    off, size = sums(torch.tensor(norms, dtype=torch.float64).square()).sqrt().tolist()
    return off, size
