"""The general way: per-example gradients of any model that `torch.func` can follow."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from forgetless.importance.labels import logits_of
from forgetless.importance.request import Request, batch_dims, call, raised, take, twice, with_batch

_Weights = dict[str, Tensor]


def by_vmap(request: Request) -> dict[str, Tensor]:
    """Sums of powers of per-example gradients by `torch.func.vmap`, a few examples at a time.

    Args:
        request: Of any kind but `batch`.

    Returns:
        Σ_n |∂ℓ_n/∂θ|^power by parameter name.
    """
    weights: _Weights = {**request.named}
    outputs_of = _outputs_of_example(request)

    def example_loss(weights: _Weights, inputs: Any, target: Any) -> Tensor:
        return request.loss_fn(outputs_of(weights, inputs), with_batch(target)).sum()

    def example_logits(inputs: Any) -> Tensor:
        def logits(weights: _Weights) -> Tensor:
            return logits_of(outputs_of(weights, inputs), request.kind).squeeze(0)

        # Recurrent layers have a batching rule only where they are differentiated.
        return cast("Tensor", torch.func.vjp(logits, weights)[0])

    input_dims = batch_dims(request.inputs)
    gradients_of = torch.func.vmap(torch.func.grad(example_loss), (None, input_dims, batch_dims(request.targets)))
    num_weights = sum(weight.numel() for weight in weights.values())
    totals = request.sums()
    with _explicit_states(request.model):
        outputs = None
        if request.labels.drawn:
            outputs = torch.func.vmap(example_logits, (input_dims,))(request.inputs)
        for targets, shares in request.labelled(outputs):
            for chunk in request.chunks(num_weights):
                gradients = gradients_of(weights, take(request.inputs, chunk), take(targets, chunk))
                for name, gradient in gradients.items():
                    powers = raised(gradient.detach(), request.power, totals[name].dtype)
                    if shares is None:
                        totals[name] += powers.sum(0)
                    else:
                        totals[name] += torch.tensordot(shares[chunk].to(powers.dtype), powers, 1)
    return totals


def _outputs_of_example(request: Request) -> Callable[[_Weights, Any], Any]:
    """The model as a function of the wanted weights and the inputs of one example, which have no batch dimension."""
    others: dict[str, Tensor] = {k: v for k, v in request.model.named_parameters() if k not in request.named}
    others |= dict(request.model.named_buffers())

    def outputs(weights: _Weights, inputs: Any) -> Any:
        inputs = with_batch(inputs)
        outputs = call(
            lambda *args, **kwargs: torch.func.functional_call(request.model, (weights, others), args, kwargs),
            twice(inputs) if request.in_pairs else inputs,
        )
        return take(outputs, slice(0, 1)) if request.in_pairs else outputs

    return outputs


@contextlib.contextmanager
def _explicit_states(model: nn.Module) -> Iterator[None]:
    """Pass nn.RNN, nn.GRU and nn.LSTM their zero states.

    Those they make themselves are not known to vmap, which then refuses the in-place additions of the cell.
    """

    def add_state(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            return None
        batch_dims = () if args[0].ndim == 2 else (args[0].shape[0 if layer.batch_first else 1],)
        num_states = layer.num_layers * (2 if layer.bidirectional else 1)
        hidden = args[0].new_zeros(num_states, *batch_dims, layer.proj_size or layer.hidden_size)
        cell = args[0].new_zeros(num_states, *batch_dims, layer.hidden_size)
        return (args[0], (hidden, cell) if isinstance(layer, nn.LSTM) else hidden), kwargs

    handles = [
        layer.register_forward_pre_hook(add_state, with_kwargs=True)
        for layer in model.modules()
        if isinstance(layer, nn.RNNBase)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
