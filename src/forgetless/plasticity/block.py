"""Held weights that are drawn together after an optimizer's step: the small ones packed, the large ones in chunks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forgetless.plasticity.budget import expected_increase
from forgetless.plasticity.chunks import Chunk, Space, added_into, cut, divided_into, is_dense, pointers
from forgetless.plasticity.compiled import FEWEST_ELEMENTS, CompiledPass
from forgetless.plasticity.metric import ChunkMetric, real, wide_type
from forgetless.plasticity.packing import Packed, Packing
from forgetless.plasticity.storage import Coded, Stored, dense
from forgetless.sharding import is_sharded, local

# Of so many weights together, the shares of a metric that is one number are kept from step to step.
_MOST_KEPT = 2**20

Columns = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""Parameters, anchors and importances."""

StoredColumns = tuple[list[Tensor], list[Tensor], list[Stored]]
"""Parameters, anchors and importances as they are held."""


class _Batch(NamedTuple):
    """Chunks that are drawn at once, with what they are parts of: views, or importances in 8 bits as a whole.

    `is_whole` says that it is one weight, for one compiled pass.
    """

    chunks: list[Chunk]
    weights: list[Tensor]
    anchors: list[Tensor]
    importances: list[Stored]
    is_whole: bool


class Block:
    """Held weights that are drawn together, the small ones packed.

    Args:
        held: Their places among the shared weights.
        columns: Parameters, anchors and importances of these.
        space: For what is computed on the way.
        compiled: Draws large weights in one pass; None if they are drawn in chunks.
        is_known: Whether they were asked for before; only then they are packed.

    Attributes:
        held: Their places among the shared weights.
        parameters: The weights. What is drawn of complex ones are their real and imaginary parts.
        packed: Space for one number per weight, at least float32, such as a metric.
        is_settled: False if they will be packed when they are asked for again.
    """

    def __init__(
        self, held: list[int], columns: StoredColumns, space: Space, compiled: CompiledPass | None, *, is_known: bool
    ) -> None:
        self.parameters = columns[0]
        self._is_complex = any(parameter.is_complex() for parameter in self.parameters)
        self._compiled = compiled
        parameters, anchors, importances = real_columns(columns)
        # Sums over processes are those of weights, not of flat tensors that hold parts of several.
        self._any_sharded = any(is_sharded(parameter) for parameter in parameters)
        packing = Packing(parameters, any_packed=not self._any_sharded)
        self.is_settled = is_known or not packing.blocks
        if not self.is_settled:
            packing = Packing(parameters, any_packed=False)
        self.held = held
        self._space = space
        anchors = [local(anchor) for anchor in anchors]
        importances = [local(f) if isinstance(f, Tensor) else f for f in importances]
        self._weights, self.packed = Packed(packing, parameters), Packed(packing, parameters, wide_type)
        self._anchors = Packed(packing, parameters).load(anchors)
        small = set(range(len(parameters))).difference(packing.loose)
        flat: list[Any] = [dense(f) if i in small else f for i, f in enumerate(importances)]
        self._importances: list[Stored] = Packed(packing, flat).load(flat)  # type: ignore[assignment]
        self._batches: dict[bool, tuple[list[int], list[_Batch]]] = {}
        self._shares: tuple[float, list[list[Tensor]]] | None = None

    def load(self) -> list[Tensor]:
        """The weights' values: flat tensors, of which `store` copies back, and weights that are not packed.

        Of sharded weights they are this process's parts, as are anchors and importances.
        """
        return self._weights.load(self._reals())

    def store(self) -> None:
        """Copy what was loaded, and changed since, back into the weights."""
        self._weights.store(self._reals())

    def _reals(self) -> list[Tensor]:
        if self._any_sharded:
            return [real(local(parameter.detach())) for parameter in self.parameters]
        return [real(parameter) for parameter in self.parameters] if self._is_complex else self.parameters

    def columns(self) -> Columns:
        """What `load` returns, with anchors on its devices and importances in at least float32.

        Sharded weights are there themselves, so that it is known over which processes sums of them are.
        """
        weights = self.load()
        anchors = [anchor.to(weight.device) for anchor, weight in zip(self._anchors, weights, strict=True)]
        if self._any_sharded:  # and none is packed
            weights = [real(parameter.detach()) for parameter in self.parameters]
        return weights, anchors, [dense(importance) for importance in self._importances]

    def increase(self) -> float:
        """½ Σ F_i (θ_i − θ̂_i)² of these weights."""
        return expected_increase(*self.columns())

    def draw(self, metric: float | ChunkMetric) -> None:
        """Draw the weights to their anchors, by F / (F + d/(lr·α)) of the way.

        Args:
            metric: d/(lr·α) + `TINY`, of what `load` returns. A number changes with lr and α only, and so do the
                shares.
        """
        weights = self.load()
        in_one_pass = self._compiled is not None and self._compiled.takes(metric)
        batches = self._cut(weights, in_one_pass=in_one_pass)
        if isinstance(metric, float) and not in_one_pass and sum(w.numel() for w in weights) <= _MOST_KEPT:
            if self._shares is None or self._shares[0] != metric:
                self._shares = (metric, [_shares(batch, metric, Space()) for batch in batches])
            for batch, shares in zip(batches, self._shares[1], strict=True):
                self._draw(batch, shares)
        else:
            for batch in batches:
                if not (batch.is_whole and self._drawn_in_one_pass(batch, metric)):
                    self._draw(batch, _shares(batch, metric, self._space))
        self.store()

    def _drawn_in_one_pass(self, batch: _Batch, metric: float | ChunkMetric) -> bool:
        importance = batch.importances[0]
        if self._compiled is None or isinstance(importance, Coded):
            return False
        return self._compiled.draw(batch.weights[0], batch.anchors[0], importance, metric, batch.chunks[0])

    def _draw(self, batch: _Batch, shares: list[Tensor]) -> None:
        anchors = batch.anchors
        if anchors[0].device != batch.weights[0].device:
            anchors = self._space.of("anchor", batch.chunks, batch.weights, anchors[0].dtype)
            torch._foreach_copy_(anchors, batch.anchors, non_blocking=True)
        torch._foreach_lerp_(batch.weights, anchors, shares)

    def _cut(self, weights: Sequence[Tensor], *, in_one_pass: bool) -> list[_Batch]:
        """The weights in batches; anew only where one lies elsewhere in memory than before."""
        present = pointers(weights)
        known = self._batches.get(in_one_pass)
        if known is not None and present and known[0] == present:
            return known[1]
        whole = [i for i in range(len(weights)) if in_one_pass and self._suits_one_pass(i, weights[i])]
        rest = sorted(set(range(len(weights))).difference(whole))
        chunked = [[Chunk(i, 0, weights[i].numel(), weights[i].shape, weights[i].stride())] for i in whole]
        batched = cut([weights[i] for i in rest])
        chunked += [[chunk._replace(tensor=rest[chunk.tensor]) for chunk in chunks] for chunks in batched]
        batches = [self._batch(chunks, weights, is_whole=n < len(whole)) for n, chunks in enumerate(chunked)]
        self._batches[in_one_pass] = (present, batches)
        return batches

    def _batch(self, chunks: list[Chunk], weights: Sequence[Tensor], *, is_whole: bool) -> _Batch:
        stored = [(chunk, self._importances[chunk.tensor]) for chunk in chunks]
        return _Batch(
            chunks,
            [chunk.of(weights[chunk.tensor]) for chunk in chunks],
            [chunk.of(self._anchors[chunk.tensor]) for chunk in chunks],
            [f if isinstance(f, Coded) else chunk.of(f) for chunk, f in stored],
            is_whole,
        )

    def _suits_one_pass(self, i: int, weight: Tensor) -> bool:
        is_beside = self._anchors[i].device == weight.device and isinstance(self._importances[i], Tensor)
        return is_beside and weight.numel() >= FEWEST_ELEMENTS and is_dense(weight)


def _shares(batch: _Batch, metric: float | ChunkMetric, space: Space) -> list[Tensor]:
    """F / (F + d/(lr·α)), in the types of the weights.

    Nothing overflows: F is finite, and where d/(lr·α) is not there is no pull.
    """
    dtype = wide_type(batch.weights[0].dtype)
    outs = space.of("share", batch.chunks, batch.weights, dtype)
    importances = _importances(batch, dtype, space)
    scaled = [metric] * len(outs) if isinstance(metric, float) else metric(batch.chunks, outs)
    denominators = added_into(outs, importances, scaled)
    shares = divided_into(denominators, importances)
    return [share.to(weight.dtype) for share, weight in zip(shares, batch.weights, strict=True)]


def _importances(batch: _Batch, dtype: torch.dtype, space: Space) -> list[Tensor]:
    """Importances in the type in which is computed."""
    if all(isinstance(f, Tensor) and f.dtype is dtype for f in batch.importances):
        return batch.importances  # type: ignore[return-value]
    outs = space.of("importance", batch.chunks, batch.weights, dtype)
    for chunk, stored, out in zip(batch.chunks, batch.importances, outs, strict=True):
        if isinstance(stored, Coded):
            stored.part(chunk, out)
        else:
            out.copy_(stored)
    return outs


def real_columns(columns: StoredColumns) -> StoredColumns:
    """The same, with complex weights and anchors as their real and imaginary parts, which share an importance.

    Args:
        columns: Of any floating-point types.
    """
    parameters, anchors, importances = columns
    if not any(parameter.is_complex() for parameter in parameters):
        return columns
    pairs = zip(parameters, importances, strict=True)
    both: list[Stored] = [
        dense(f).unsqueeze(-1).expand(*p.shape, 2).contiguous() if p.is_complex() else f for p, f in pairs
    ]
    return [real(p) for p in parameters], [real(a) for a in anchors], both
