"""What there is to measure the old loss on, and to hold it by: the old model's own texts, or old batches."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from forgetless.budget.path import Increase
from forgetless.errors import InputError
from forgetless.importance import Batch, LossFunction, evaluated
from forgetless.importance.labels import logits_of
from forgetless.importance.request import call
from forgetless.orders import endless_order

_HELD_OUT = 4
"""Every so many-th text or batch is for measuring only."""


class Anchors:
    """Where a model's trained weights and its buffers were, by name.

    Args:
        model: As it is to be remembered.
        weights: Of it that are trained.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensor]) -> None:
        trained = {id(weight) for weight in weights}
        floating = ((name, buffer) for name, buffer in model.named_buffers() if buffer.is_floating_point())
        own = [(name, p) for name, p in model.named_parameters() if id(p) in trained]
        self.tensors = {name: tensor.detach().clone() for name, tensor in [*own, *floating]}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what was kept before.

        Args:
            tensors: By name, of the same model.

        Raises:
            InputError: If names or shapes differ.
        """
        shapes, own = ({name: t.shape for name, t in each.items()} for each in (tensors, self.tensors))
        if shapes != own:
            raise InputError(
                "Expected the old weights of the same model, but got other names or shapes. Train the same weights as "
                "before."
            )
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def towards(self, model: nn.Module, ends: Mapping[str, Tensor], share: float) -> None:
        """Put the model at θ̂ + t (θ − θ̂); bit for bit at the ends.

        Args:
            model: The same.
            ends: θ, by name.
            share: t.
        """
        for name, tensor in self.moved(model).items():
            if share in {0, 1}:
                tensor.copy_(ends[name] if share else self.tensors[name])
            else:
                wide = torch.promote_types(tensor.dtype, torch.float32)
                tensor.copy_(torch.lerp(self.tensors[name].to(wide), ends[name].to(wide), share))

    def moved(self, model: nn.Module) -> dict[str, Tensor]:
        """The same tensors of the model as they are now; not copied.

        Args:
            model: The same.
        """
        present = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        return {name: present[name] for name in self.tensors}

    def outputs(self, model: nn.Module, inputs: Any) -> Any:
        """What the model gave then.

        Args:
            model: The same.
            inputs: Of a batch.
        """
        with torch.no_grad():
            return call(_Then(model, self.tensors), inputs)


class _Then(nn.Module):
    """A model with other tensors in place of its own."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._inside = (model, tensors)  # in a tuple, so that it becomes no submodule

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(*self._inside, args, kwargs)


def relative_entropy(outputs: Any, old_outputs: Any) -> Tensor:
    """KL(p̂ ‖ p) of each prediction, Σ_c p̂_c (log p̂_c − log p_c), in nats; in at least float32.

    It is the expected increase of the loss on what the old model itself would say there, over all that it could say.

    Args:
        outputs: Logits of p, classes last, or what holds them as `logits`.
        old_outputs: Those of p̂ in the same shape.

    Returns:
        In the shape of the logits without their last dimension.

    >>> old, new = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> relative_entropy(new, old).item()  # ½ log 2 + ½ log ⅔
    0.1438...
    """
    log_p, log_old = (_log_probabilities(each) for each in (outputs, old_outputs))
    p_old = log_old.exp()
    # What neither can say has logarithms of −∞, whose difference is no number.
    return (p_old * (log_old - log_p)).where(p_old > 0, 0).sum(-1)


def _log_probabilities(outputs: Any) -> Tensor:
    logits = logits_of(outputs, "empirical")
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


class Past(ABC):
    """What is known of the old loss, with a part that is only for measuring."""

    old_loss: float
    """Where the model started, in nats per target, on the part for measuring."""

    num_held: int
    """Texts or batches for measuring."""

    is_text: bool = True
    """Whether it is text, whose loss has no way to 0: a budget above that of the old model is a mistake then."""

    @abstractmethod
    def increase_on(self, model: nn.Module, anchors: Anchors, step: int) -> Tensor:
        """The mean increase on a batch for holding: differentiable.

        Args:
            model: In eval mode.
            anchors: Of the old model.
            step: Decides which batch.
        """

    @abstractmethod
    def measured(self, model: nn.Module, anchors: Anchors, part: slice) -> list[tuple[float, float]]:
        """(increase, number of targets) of examples for measuring, in eval mode.

        Args:
            model: In eval mode, without gradients.
            anchors: Of the old model.
            part: Of these examples or batches.
        """

    @abstractmethod
    def batches(self, model: nn.Module, anchors: Anchors) -> tuple[list[Batch], LossFunction]:
        """Inputs and targets for holding, and their loss, for the Fisher information.

        Args:
            model: Left in the modes that it was in.
            anchors: Of the old model.
        """

    @torch.no_grad()
    def increase(self, model: nn.Module, anchors: Anchors, part: slice = slice(None)) -> Increase:
        """The mean increase per target with its standard error.

        Args:
            model: Left in the modes that it was in.
            anchors: Of the old model.
            part: Of the examples for measuring.
        """
        with evaluated(model):
            found = self.measured(model, anchors, part)
        values, numbers = torch.tensor(found, dtype=torch.float64).unbind(1)
        shares = numbers / numbers.sum()
        mean = (shares * values).sum()
        if len(values) < 2:
            return Increase(float(mean), 0.0)
        # Of a weighted mean of independent examples.
        error = ((shares * (values - mean)) ** 2).sum() * (len(values) / (len(values) - 1))
        return Increase(float(mean), math.sqrt(float(error)))


class OwnTexts(Past):
    """Texts that the old model wrote; the increase on them is the relative entropy, its expectation over every token.

    On text that the old model writes the loss grows by KL(p̂ ‖ p), over all that it could write. That it is taken of
    whole distributions, and not of the tokens that were drawn, makes it the same with a fraction of the noise.

    Args:
        texts: Tokens (N, T); or (N, W, T) of texts in W windows, all of which are for holding, or all for measuring.
        model: The old model.
        anchors: Of it.
        batch_size: Texts per step.
        seed: Of the draws.
    """

    def __init__(self, texts: Tensor, model: nn.Module, anchors: Anchors, batch_size: int, seed: int) -> None:
        if texts.ndim not in {2, 3} or texts.is_floating_point() or len(texts) < 2 or texts.shape[-1] < 2:
            raise InputError(
                "Expected at least 2 own texts of at least 2 tokens as integers (texts, tokens), but got "
                f"{texts.dtype} of shape {tuple(texts.shape)}. Give more samples."
            )
        every = min(_HELD_OUT, len(texts))
        is_held = torch.arange(len(texts), device=texts.device) % every == every - 1
        windows = texts.unsqueeze(1) if texts.ndim == 2 else texts
        self._seen, self._held = windows[~is_held].flatten(0, 1), windows[is_held]
        self._batch_size, self._seed, self.num_held = batch_size, seed, len(self._held)
        with torch.no_grad(), evaluated(model):
            found = [_entropies(anchors.outputs(model, part), part) for part in self._windows()]
        self.old_loss = float(torch.cat(found).double().mean())

    def increase_on(self, model: nn.Module, anchors: Anchors, step: int) -> Tensor:
        """The mean relative entropy on texts drawn for this step.

        Args:
            model: In eval mode.
            anchors: Of the old model.
            step: Decides which texts.
        """
        chosen = endless_order(len(self._seen), step * self._batch_size, self._batch_size, self._seed)
        texts = self._seen[chosen.to(self._seen.device)]
        return relative_entropy(call(model, texts), anchors.outputs(model, texts)).mean()

    def measured(self, model: nn.Module, anchors: Anchors, part: slice) -> list[tuple[float, float]]:
        """(mean relative entropy, number of tokens) of each text, whose windows are not independent.

        Args:
            model: In eval mode, without gradients.
            anchors: Of the old model.
            part: Of the texts for measuring.
        """
        found = [
            relative_entropy(call(model, texts), anchors.outputs(model, texts)).double().mean(1)
            for texts in self._windows(part)
        ]
        num_windows, num_tokens = self._held.shape[1:]
        each = torch.cat(found).reshape(-1, num_windows).mean(1)
        return [(value, float(num_windows * num_tokens)) for value in each.tolist()]

    def _windows(self, part: slice = slice(None)) -> Sequence[Tensor]:
        """Those for measuring, so many at a time."""
        return torch.split(self._held[part].flatten(0, 1), self._batch_size)

    def batches(self, model: nn.Module, anchors: Anchors) -> tuple[list[Batch], LossFunction]:  # noqa: ARG002
        """Tokens and the tokens after them, and the cross entropy."""
        return [(texts[:, :-1], texts[:, 1:]) for texts in torch.split(self._seen, self._batch_size)], cross_entropies


class OldBatches(Past):
    """Old batches with targets; the increase on them is that of their loss.

    Args:
        batches: Pairs (inputs, targets), at least 1. With one, it serves for holding and measuring.
        loss_fn: Maps (outputs, targets) to one loss per target, or their mean.
        model: The old model.
        anchors: Of it.
        seed: Of the draws.
    """

    def __init__(
        self, batches: Sequence[Batch], loss_fn: LossFunction, model: nn.Module, anchors: Anchors, seed: int
    ) -> None:
        if not batches:
            raise InputError("Expected at least one old batch, but got none. Give batches, or on='own-samples'.")
        every = min(_HELD_OUT, len(batches))
        places = [i for i in range(len(batches)) if i % every == every - 1]
        self._held = [batches[i] for i in places]
        self._seen = [b for i, b in enumerate(batches) if i not in places] or self._held
        self._loss_fn, self._seed, self.num_held = loss_fn, seed, len(self._held)
        with torch.no_grad(), evaluated(model):
            self._seen_losses, self._held_losses = (
                [_mean(loss_fn(anchors.outputs(model, inputs), targets), targets) for inputs, targets in part]
                for part in (self._seen, self._held)
            )
        targets = batches[0][1]
        self.is_text = isinstance(targets, Tensor) and not targets.is_floating_point() and targets.ndim > 1
        weights = [count for _, count in self._held_losses]
        self.old_loss = sum(float(loss) * n for loss, n in self._held_losses) / max(sum(weights), 1.0)

    def increase_on(self, model: nn.Module, anchors: Anchors, step: int) -> Tensor:  # noqa: ARG002
        """The increase of the mean loss of the batch drawn for this step.

        Args:
            model: In eval mode.
            anchors: Of the old model.
            step: Decides which batch.
        """
        place = int(endless_order(len(self._seen), step, 1, self._seed))
        inputs, targets = self._seen[place]
        return _mean(self._loss_fn(call(model, inputs), targets), targets)[0] - self._seen_losses[place][0]

    def measured(self, model: nn.Module, anchors: Anchors, part: slice) -> list[tuple[float, float]]:  # noqa: ARG002
        """(increase of the mean loss, number of targets) of each batch.

        Args:
            model: In eval mode, without gradients.
            anchors: Of the old model.
            part: Of the batches for measuring.
        """
        found = []
        for (inputs, targets), (old, count) in zip(self._held[part], self._held_losses[part], strict=True):
            loss, _ = _mean(self._loss_fn(call(model, inputs), targets), targets)
            found.append((float(loss) - float(old), count))
        return found

    def batches(self, model: nn.Module, anchors: Anchors) -> tuple[list[Batch], LossFunction]:  # noqa: ARG002
        """The batches for holding, and their loss."""
        return list(self._seen), self._loss_fn


class OldInputs(OldBatches):
    """Inputs of old batches, without their targets; the increase on them is the relative entropy to the old model.

    Args:
        batches: Pairs (inputs, targets), at least 1; targets do not count.
        model: The old model, of class logits.
        anchors: Of it.
        seed: Of the draws.
    """

    def __init__(self, batches: Sequence[Batch], model: nn.Module, anchors: Anchors, seed: int) -> None:
        super().__init__([(inputs, None) for inputs, _ in batches], _entropy, model, anchors, seed)

    def increase_on(self, model: nn.Module, anchors: Anchors, step: int) -> Tensor:
        """The mean relative entropy on the batch drawn for this step.

        Args:
            model: In eval mode.
            anchors: Of the old model.
            step: Decides which batch.
        """
        inputs = self._seen[int(endless_order(len(self._seen), step, 1, self._seed))][0]
        return relative_entropy(call(model, inputs), anchors.outputs(model, inputs)).mean()

    def measured(self, model: nn.Module, anchors: Anchors, part: slice) -> list[tuple[float, float]]:
        """(mean relative entropy, number of predictions) of each example.

        Args:
            model: In eval mode, without gradients.
            anchors: Of the old model.
            part: Of the batches for measuring.
        """
        found = []
        for inputs, _ in self._held[part]:
            each = relative_entropy(call(model, inputs), anchors.outputs(model, inputs)).double()
            each = each.reshape(len(each), -1)
            found += [(value, float(each.shape[1])) for value in each.mean(1).tolist()]
        return found

    @torch.no_grad()
    def batches(self, model: nn.Module, anchors: Anchors) -> tuple[list[Batch], LossFunction]:
        """The inputs for holding with classes that the old model draws, and the cross entropy.

        The gradient of the entropy, which is the old loss here, says nothing of how far the predictions move.
        """
        generator: torch.Generator | None = None
        found: list[Batch] = []
        with evaluated(model):
            for inputs, _ in self._seen:
                p = _log_probabilities(anchors.outputs(model, inputs)).exp()
                generator = generator or torch.Generator(p.device).manual_seed(self._seed)
                drawn = torch.multinomial(p.flatten(0, -2), 1, generator=generator)
                found.append((inputs, drawn.reshape(p.shape[:-1])))
        return found, cross_entropies


def _entropy(outputs: Any, _targets: Any) -> Tensor:
    """The entropy of each prediction: what the old model expects to lose on what it would say itself."""
    log_p = _log_probabilities(outputs)
    p = log_p.exp()
    return -(p * log_p).where(p > 0, 0).sum(-1)


def cross_entropies(outputs: Any, targets: Tensor) -> Tensor:
    """The cross entropy of each token, 0 where its label is negative; in at least float32.

    Args:
        outputs: Logits (…, V), or what holds them as `logits`.
        targets: Integers in the shape of the logits without V.

    Raises:
        InputError: If logits and targets do not fit.
    """
    log_p = _log_probabilities(outputs)
    if targets.is_floating_point() or log_p.shape[:-1] != targets.shape:
        raise InputError(
            f"Expected one class for each row of logits, but got labels of {targets.dtype} in {tuple(targets.shape)} "
            f"for logits in {tuple(log_p.shape)}. Pass loss_fn=, which maps (outputs, targets) to one loss per target."
        )
    chosen = log_p.gather(-1, targets.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return -chosen.where(targets >= 0, 0)


def _entropies(outputs: Any, texts: Tensor) -> Tensor:
    """H(p̂) at each place of texts."""
    found = _entropy(outputs, texts)
    if found.shape != texts.shape:
        raise InputError(
            f"Expected logits (texts, tokens, words) for tokens of shape {tuple(texts.shape)}, but got "
            f"{tuple(logits_of(outputs, 'empirical').shape)}. Pass a causal language model, or old batches in place of "
            "its own samples."
        )
    return found


def _mean(losses: Tensor, targets: Any) -> tuple[Tensor, float]:
    """The mean loss per target, and the number of targets; labels below 0 are none."""
    is_classes = isinstance(targets, Tensor) and not targets.is_floating_point()
    if is_classes:
        count = float((targets >= 0).sum())
    elif losses.numel() > 1:  # several numbers, such as probabilities of classes, may be one target
        count = float(losses.numel())
    else:
        count = float(targets.numel() if isinstance(targets, Tensor) else 1)
    return (losses.sum() / max(count, 1.0) if losses.numel() > 1 else losses.sum()), count


def as_batches(on: Any) -> list[Batch]:
    """Old batches as pairs.

    Args:
        on: An iterable of them.

    Raises:
        InputError: If it is none, or holds something else.
    """
    if isinstance(on, (str, Mapping)) or not hasattr(on, "__iter__"):
        raise InputError(
            f"Expected on to be 'own-samples', texts as integers (texts, tokens), or old batches, but got {on!r}."
        )
    batches = list(on)
    for batch in batches:
        if not (isinstance(batch, Sequence) and len(batch) == 2):
            raise InputError(
                f"Expected old batches as pairs (inputs, targets), but got {type(batch).__name__}. "
                "Pass [(inputs, targets)] for a single batch."
            )
    return [(batch[0], batch[1]) for batch in batches]


def trained(model: nn.Module, optimizers: Sequence[Any]) -> Iterator[nn.Parameter]:
    """The model's weights that some optimizer trains.

    Args:
        model: Unwrapped.
        optimizers: Of it.
    """
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    return (p for p in model.parameters() if p.requires_grad and id(p) in held)
