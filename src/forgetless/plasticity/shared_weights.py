"""The shared weights, where and how firmly each is held, and the same packed for a step that draws many together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from forgetless.choices import AccumulationRule
from forgetless.plasticity.budget import expected_increase
from forgetless.plasticity.merging import check_importance, fold, mean_over_all
from forgetless.plasticity.metric import wide_type
from forgetless.plasticity.packing import Packed, Packing
from forgetless.plasticity.penalty import pulls

Columns = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Parameters, anchors and importances."""


class SharedWeights:
    """Weights that several models use, with anchor and importance of those that an earlier model needs.

    Args:
        shared_parameters: Parameters or (name, parameter) pairs; they are matched by identity.

    Attributes:
        parameters: The weights, each once, in the order given.
        places: Where among them a weight is, by its `id`.
        anchors: θ̂ of each; None before the first model that used it.
        importances: F of each; None before the first model that used it.

    Raises:
        TypeError: If one is not a tensor.
    """

    def __init__(self, shared_parameters: Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        self.parameters = _unique_tensors(shared_parameters)
        self.places = {id(parameter): i for i, parameter in enumerate(self.parameters)}
        # By who asks: the weights last asked for.
        self._blocks: dict[Any, Block] = {}
        self.reset()

    def reset(self) -> None:
        """Forget every anchor and importance."""
        self.anchors: list[Tensor | None] = [None] * len(self.parameters)
        self.importances: list[Tensor | None] = [None] * len(self.parameters)
        self.forget_blocks()

    def held(self, places: Iterable[int]) -> list[int]:
        """Those of the shared weights that have an anchor, after a check that it fits.

        Args:
            places: Where they are among the shared weights.

        Raises:
            ValueError: If an anchor is on another device or of another type than its weight.
        """
        held = []
        for i in places:
            anchor = self.anchors[i]
            if anchor is None:
                continue
            parameter = self.parameters[i]
            if anchor.device != parameter.device or anchor.dtype != parameter.dtype:
                raise ValueError(
                    f"Expected an anchor like its weight ({parameter.dtype} on {parameter.device}), but got "
                    f"{anchor.dtype} on {anchor.device}. Call plasticity.to(...) after moving the model."
                )
            held.append(i)
        return held

    def all_held(self) -> Columns:
        """Parameters, anchors and importances of all weights that have an anchor.

        Raises:
            ValueError: As `held`.
        """
        return self._columns(self.held(range(len(self.parameters))))

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
        if self.parameters and not found:
            raise ValueError(
                "Expected importance of some of the shared parameters, but got it of none. "
                "Shared weights are matched by identity: pass the model itself, not a copy."
            )
        return found

    def fold(self, found: Mapping[int, Tensor], rule: AccumulationRule, decay: float, damping: float) -> None:
        """Take what one model needs into anchors and importances.

        Args:
            found: F_j ≥ 0 by place among the shared weights.
            rule: How it accumulates over models.
            decay: Of the rules `ema` and `merge`.
            damping: Added to every importance, as a share of their mean.

        Raises:
            ValueError: As `held`. Nothing is changed then.
        """
        self.held(found)
        floor = damping * mean_over_all(found.values())
        for i, value in found.items():
            parameter = self.parameters[i]
            value = value.detach().to(wide_type(parameter.dtype)) + floor
            self.importances[i], self.anchors[i] = fold(
                value, parameter, self.importances[i], self.anchors[i], rule, decay
            )
        self.forget_blocks()

    def to(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Move anchors and importances.

        Args:
            device: Of the weights; None leaves it.
            dtype: Their floating-point type, None leaves it; importances stay at least float32.
        """
        wide = None if dtype is None else wide_type(dtype)
        self.anchors = [None if a is None else a.to(device=device, dtype=dtype) for a in self.anchors]
        self.importances = [None if f is None else f.to(device=device, dtype=wide) for f in self.importances]
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

    def load(self, anchors: Sequence[Tensor | None], importances: Sequence[Tensor | None]) -> None:
        """Copy anchors and importances, to the weights' devices.

        Args:
            anchors: One or None for each weight.
            importances: One or None for each weight.
        """
        devices = [parameter.device for parameter in self.parameters]
        self.anchors = [_copied(a, device) for a, device in zip(anchors, devices, strict=True)]
        self.importances = [_copied(f, device) for f, device in zip(importances, devices, strict=True)]
        self.forget_blocks()


class Block:
    """Held weights that are drawn together, the small ones packed.

    Args:
        held: Their places among the shared weights.
        columns: Parameters, anchors and importances of these.
        is_known: Whether they were asked for before; only then they are packed.

    Attributes:
        held: Their places among the shared weights.
        parameters: The weights.
        anchors: Of what `load` returns.
        importances: Of what `load` returns.
        space: Space for one number per weight, at least float32, such as a metric.
        is_settled: False if they will be packed when they are asked for again.
    """

    def __init__(self, held: list[int], columns: Columns, *, is_known: bool) -> None:
        parameters, anchors, importances = columns
        packing = Packing(parameters)
        self.is_settled = is_known or not packing.blocks
        if not self.is_settled:
            packing = Packing(parameters, any_packed=False)
        self.held, self.parameters = held, parameters
        self._weights, self.space = Packed(packing, parameters), Packed(packing, parameters, wide_type)
        self.anchors = Packed(packing, parameters).load(anchors)
        self.importances = Packed(packing, importances).load(importances)
        self._shares: tuple[float, list[Tensor]] | None = None

    def load(self) -> list[Tensor]:
        """The weights' values: flat tensors, of which `store` copies back, and weights that are not packed."""
        return self._weights.load(self.parameters)

    def store(self) -> None:
        """Copy what was loaded, and changed since, back into the weights."""
        self._weights.store(self.parameters)

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


def _unique_tensors(shared_parameters: Iterable[Any]) -> list[Tensor]:
    unique: dict[int, Tensor] = {}
    # A module alone, which cannot be iterated over, is told of like one among others.
    for item in [shared_parameters] if isinstance(shared_parameters, nn.Module) else shared_parameters:
        parameter = item[1] if isinstance(item, tuple) and len(item) == 2 else item
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"Expected shared parameters to be tensors or (name, tensor) pairs, but got {type(item).__name__}. "
                "Pass module.parameters() or module.named_parameters()."
            )
        unique.setdefault(id(parameter), parameter)
    return list(unique.values())


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
