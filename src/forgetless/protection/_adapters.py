"""The template of protections that train an adapter of PEFT in place of a model's weights."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.errors import InputError
from forgetless.protection.base import Evidence, Protection

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class AdapterProtection(Protection):
    """Trains an adapter in every linear layer of a copy of the model, whose own weights stay where they are.

    A subclass says in `adapter_config` what the adapter is. A layer whose weights are another layer's too, such as an
    output layer tied to the embedding, has no adapter, and neither has the output layer of a Hugging Face model: that
    is what PEFT's `all-linear` leaves out.

    Attributes:
        layer_kinds: The names of the classes of layers that PEFT can adapt by this method.
        trained: What `adapted` returned last; None before.
    """

    replaces_layers: ClassVar[bool] = True
    decays: ClassVar[bool] = False
    layer_kinds: ClassVar[tuple[str, ...]]

    def _set_up(self) -> None:
        self.trained: nn.Module | None = None
        self._state: dict[str, Any] = {}

    @classmethod
    @abstractmethod
    def adapter_config(cls, options: Any, layers: Mapping[str, nn.Module]) -> Any:
        """PEFT's configuration of the adapter.

        Args:
            options: Of the protection.
            layers: What to adapt, by name.

        Raises:
            InputError: If the options do not fit these layers.
        """

    @classmethod
    def check_model(cls, model: nn.Module, options: Any) -> None:
        """Refuse a model without layers that can be adapted.

        Args:
            model: To be trained.
            options: Of the protection.

        Raises:
            InputError: If there are none, the options do not fit them, or PEFT is not installed.
        """
        if importlib.util.find_spec("peft") is None:
            raise InputError(
                f"Expected the package peft for {cls.name}, but got none. Install it with: "
                "pip install 'forgetless[transformers]'."
            )
        cls.adapter_config(options, cls._layers(model))

    @classmethod
    def _layers(cls, model: nn.Module) -> dict[str, nn.Module]:
        """The layers to adapt, by name: with weights of their own, without the output layer of transformers."""
        uses: dict[int, int] = {}
        for module in model.modules():
            for weight in module.parameters(recurse=False):
                uses[id(weight)] = uses.get(id(weight), 0) + 1
        find_output = getattr(model, "get_output_embeddings", None)
        output = find_output() if callable(find_output) else None
        linear = {name: m for name, m in model.named_modules() if type(m).__name__ in {"Linear", "Conv1D"}}
        own = {name: m for name, m in linear.items() if m is not output and uses[id(m.weight)] == 1}
        layers = {name: m for name, m in own.items() if type(m).__name__ in cls.layer_kinds}
        if len(layers) < len(own) or not layers:
            found = ", ".join(sorted({type(m).__name__ for m in own.values()})) or "no linear layers"
            raise InputError(
                f"Expected a model whose linear layers PEFT can adapt by {cls.name} ({', '.join(cls.layer_kinds)}), "
                f"but got {type(model).__name__} with {found}. Leave {cls.name} out."
            )
        return layers

    def adapted(self, model: nn.Module) -> nn.Module:
        """A copy of the model with an adapter, which computes the same until it is trained.

        Only the adapter requires gradients. What is random in its initial weights is drawn from PyTorch's global
        generator.

        Args:
            model: Left as it is.

        Returns:
            The copy, of the model's own class, on its device and in its mode.

        Raises:
            InputError: As `check_model`.
        """
        self.check_model(model, self.options)
        from peft import inject_adapter_in_model

        config = self.adapter_config(self.options, self._layers(model))
        with warnings.catch_warnings():
            # Where both kinds of linear layers are in one model PEFT tells of each that it stores them differently.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            trained = inject_adapter_in_model(config, copy.deepcopy(model))
        trained.train(model.training)
        self.trained = trained
        self._restore()
        return trained

    @contextlib.contextmanager
    def during(self, optimizer: Optimizer) -> Iterator[None]:  # noqa: ARG002
        """A context that does nothing: the steps are the optimizer's own."""
        yield

    def consolidate(self, model: nn.Module, evidence: Evidence) -> None:
        """Do nothing: the model's weights do not move."""

    def state_dict(self) -> dict[str, Any]:
        """The adapter's weights by the names of `adapted`; empty before."""
        if self.trained is None:
            return dict(self._state)
        return {name: p.detach().clone() for name, p in self.trained.named_parameters() if p.requires_grad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the adapter's weights, now or when `adapted` makes it.

        Args:
            state: From `state_dict`.
        """
        self._state = dict(state)
        if self.trained is not None:
            self._restore()

    def _restore(self) -> None:
        if self._state and self.trained is not None:
            self.trained.load_state_dict(self._state, strict=False)
            self._state = {}
