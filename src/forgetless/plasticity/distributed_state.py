"""The state of a protection as a part of a distributed checkpoint, which each process writes and reads its share of."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from forgetless.plasticity.weight_plasticity import WeightPlasticity


class DistributedState:
    """A `WeightPlasticity` for `torch.distributed.checkpoint`, whose `save` and `load` take it as it is.

    These fill tensors that are there, and none are before the first `consolidate`: here there is one for each shared
    weight and buffer at any time, of zeros where nothing is held. A checkpoint may be read by another number of
    processes than wrote it, or by one with whole weights.

    Args:
        plasticity: Of weights that are sharded or whole.

    ```python
    import torch.distributed.checkpoint as dcp

    dcp.save({"plasticity": DistributedState(plasticity)}, checkpoint_id=folder)
    ...                                                     # in new processes, with a new plasticity:
    dcp.load({"plasticity": DistributedState(plasticity)}, checkpoint_id=folder)
    ```
    """

    def __init__(self, plasticity: WeightPlasticity) -> None:
        self._plasticity = plasticity

    def state_dict(self) -> dict[str, Any]:
        """The plasticity's own state, with a tensor wherever there may be one, and which of them are there."""
        state = self._plasticity.state_dict()
        for name, blanks in self._plasticity.blank_tensors().items():
            pairs: list[tuple[Tensor | None, Tensor]] = list(zip(state[name], blanks, strict=True))
            state[name] = {str(i): blank if value is None else value for i, (value, blank) in enumerate(pairs)}
            state[f"has_{name}"] = [value is not None for value, _ in pairs]
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Args:
            state: From `state_dict`.

        Raises:
            ValueError: As `WeightPlasticity.load_state_dict`.
        """
        own = dict(state)
        for name in self._plasticity.blank_tensors():
            has = own.pop(f"has_{name}")
            own[name] = [state[name][str(i)] if is_there else None for i, is_there in enumerate(has)]
        self._plasticity.load_state_dict(own)
