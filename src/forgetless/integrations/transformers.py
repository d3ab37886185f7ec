"""`WeightPlasticity` in the Trainer of Hugging Face transformers, and of TRL; needs the extra `transformers`."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, default_data_collator
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_callback import CallbackHandler
from transformers.utils.generic import find_labels

from forgetless.budget import Budget, BudgetReport
from forgetless.errors import InputError
from forgetless.importance import FisherKind, LossFunction, diagonal_fisher, evaluated, own_texts, unwrapped
from forgetless.integrations.budget_run import KEY, BudgetRun
from forgetless.integrations.old_examples import (
    OldExamples,
    own_examples,
    token_loss,
    told_shift,
)
from forgetless.plasticity import WeightPlasticity
from forgetless.plasticity.attaching import innermost

# Under a tolerance the old loss is measured after these steps, too, and so often at a time until it is within.
_FIRST_STEPS, _MOST_TRIES = frozenset({1, 2, 4, 8}), 8


class PlasticityCallback(TrainerCallback):
    """Keeps what a model knows while a Trainer fine-tunes it on something new.

    At the start of `train()`, before any step, the Fisher information of the weights that are to be trained is computed
    from `old_data`, or from `samples` that the model writes itself. From then on a proximal step follows each step of
    the Trainer's optimizer. One `train()` protects the model that it starts from: for several tasks in a row, put
    examples of all earlier ones into `old_data`, or go on with `samples`.

    The unit is the target, a token of a text: `alpha=1` is the posterior's own strength, and a `tolerance` is the
    increase of the old loss per token, in nats. It is calibrated on a quarter of the old examples (at most 64) that the
    Fisher does not see.

    With every loss that the Trainer logs come `plasticity_alpha`, `plasticity_expected_increase` (½ Σ F v², the
    increase that the Fisher predicts) and, where there are old examples, `old_loss` and `old_loss_increase` since the
    start, as measured.

    Anchors, importances, options and own samples are in the optimizer's state, and so in every checkpoint that can be
    resumed from, whatever folder it is in. A killed and resumed run ends as one that was not, bit for bit on the CPU.

    Adapters of PEFT are held at their own start: a fresh LoRA's product at zero. Its first factors have F = 0 there,
    and the diagonal predicts little of what two factors do together: prefer a tolerance, which is measured.

    Args:
        plasticity: To choose what is protected, or how. If it is consolidated already it is taken as it is, and old
            examples only measure the loss; otherwise it is consolidated at the start, as above. None is
            `WeightPlasticity` of all weights that are trained, with the next three options.
        alpha: Strength; 1 if neither it nor a tolerance is given.
        tolerance: In place of alpha.
        damping: As in `WeightPlasticity`.
        old_data: Examples with labels, in the form that the Trainer's collator takes: tokenized. The Fisher takes one
            pass over three quarters of them or more: some hundred are enough.
        samples: In place of old data, so many texts that a causal language model writes at the start.
        sample_length: Tokens of each.
        loss_fn: Maps (outputs, labels) to one loss per target. None is the cross entropy, if that is the model's loss.
        kind: Of the Fisher information, as in `diagonal_fisher`.
        calibrate_every: Steps from one calibration of a tolerance to the next.
        budget: In place of all of these but `loss_fn`: what the old loss may rise by, and what holds it. Its `on` may
            be examples in the form of `old_data`. At the end of `train()` the weights go back as far as the budget
            needs; checkpoints that were saved before are not within it.

    Attributes:
        plasticity: Anchors and importances; None before the first `train()` if it was not given.
        report: What a `train()` under a budget ended with; None before.

    Raises:
        InputError: If there is nothing to protect, or options contradict each other. At the start of `train()`, if the
            Trainer would skip the protection: weights in shards (FSDP, DeepSpeed), an optimizer that no proximal step
            can follow or that holds none of the weights, a checkpoint without the callback's state.

    >>> callback = PlasticityCallback(alpha=1.0, samples=64)  # then Trainer(..., callbacks=[callback]).train()
    """

    def __init__(
        self,
        plasticity: WeightPlasticity | None = None,
        *,
        alpha: float | None = None,
        tolerance: float | None = None,
        damping: float = 0.0,
        old_data: Iterable[Any] | None = None,
        samples: int | None = None,
        sample_length: int = 128,
        loss_fn: LossFunction | None = None,
        kind: FisherKind = "empirical",
        calibrate_every: int = 10,
        budget: Budget | None = None,
    ) -> None:
        if budget is not None and (plasticity, alpha, tolerance, damping, old_data, samples) != (None,) * 3 + (
            0.0,
            None,
            None,
        ):
            raise InputError(
                "Expected a budget or another protection, but got both. A budget has its own on=, hold= and samples=."
            )
        if plasticity is not None and (alpha, tolerance, damping) != (None, None, 0.0):
            raise InputError(
                "Expected a plasticity or its options, but got both. Give alpha, tolerance and damping to "
                "WeightPlasticity(...)."
            )
        if (old_data is not None) and (samples is not None):
            raise InputError("Expected old_data or samples, but got both. Leave samples out where there are old data.")
        is_consolidated = plasticity is not None and _is_consolidated(plasticity)
        if budget is None and old_data is None and samples is None and not is_consolidated:
            raise InputError(
                "Expected something to protect, but got none of old_data, samples and a consolidated plasticity. "
                "samples=64 protects a language model without old data."
            )
        if min(calibrate_every, sample_length - 1, 1 if samples is None else samples) < 1:
            raise InputError(
                "Expected samples and calibrate_every of at least 1 and sample_length of at least 2, but got "
                f"{samples}, {calibrate_every} and {sample_length}."
            )
        if plasticity is None:
            WeightPlasticity((), alpha, tolerance=tolerance, damping=damping)  # refuses bad ones
        self.plasticity = self._given = plasticity
        self._options: dict[str, Any] = {"alpha": alpha, "tolerance": tolerance, "damping": damping}
        if alpha is None and tolerance is None:
            self._options["alpha"] = 1.0
        self.old_data = old_data
        self.samples = samples
        self.sample_length = sample_length
        self.loss_fn = loss_fn
        self.kind: FisherKind = kind
        self.calibrate_every = calibrate_every
        self.budget = budget
        self.report: BudgetReport | None = None
        self._run: _Run | None = None
        self._budget_run: BudgetRun | None = None

    # ---- the start ---------------------------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up what a checkpoint holds, or consolidate the model; then follow the optimizer."""
        model = _inside(kwargs["model"])
        _refuse_shards(model)
        optimizer = innermost(kwargs["optimizer"])
        kept: dict[Any, Any] = optimizer.state
        saved = kept.pop(KEY, None)
        self._go_before_reporters()
        if self.budget is not None:
            self._begin_budget(self.budget, args, state, saved, model, optimizer, kwargs.get("train_dataloader"))
            return
        if self._run is not None:
            self._run.leave()
        # After a batch that was too large for the memory, the same training begins again with smaller ones.
        if self._run is None or not args.auto_find_batch_size or self._run.model is not model:
            self._run = self._started(args, state, saved, model, kwargs.get("train_dataloader"))
        elif saved is not None:
            self._run.restore(saved)
        self._run.follow(optimizer)

    def _begin_budget(
        self,
        budget: Budget,
        args: TrainingArguments,
        state: TrainerState,
        saved: Any,
        model: nn.Module,
        optimizer: Optimizer,
        loader: Any,
    ) -> None:
        if state.global_step and saved is None:
            raise InputError(
                f"Expected the budget's state in the checkpoint of step {state.global_step}, but got none: it was "
                "saved without this callback, or without the optimizer (save_only_model). Train from the start."
            )
        if (earlier := self._budget_run) is not None:
            earlier.leave()
            if saved is None and args.auto_find_batch_size and earlier.model is model:
                saved = earlier.keep.state_dict()
        old = None
        if not isinstance(budget.on, (str, Tensor)):
            old = self._collated(budget.on, args, model, loader)
        self._budget_run = BudgetRun(budget, model, optimizer, saved, old)

    def _started(
        self, args: TrainingArguments, state: TrainerState, saved: Any, model: nn.Module, loader: Any
    ) -> "_Run":
        self.plasticity = plasticity = self._given or _of_trained(model, self._options)
        _refuse_lost(plasticity, model)
        plasticity.follow_weights()  # the Trainer has moved the model to its device
        is_held = saved is not None or _is_consolidated(plasticity)
        if state.global_step and not is_held:
            raise InputError(
                f"Expected the plasticity's state in the checkpoint of step {state.global_step}, but got none: it was "
                "saved without this callback, or without the optimizer (save_only_model). Train from the start, or "
                "pass a plasticity that was consolidated before."
            )
        run = _Run(model, plasticity, texts=None if saved is None else saved["texts"])
        if (old := self._old_examples(args, run, loader)) is not None:
            for_fisher, run.measured = old.split()
            if not is_held:
                self._consolidate(plasticity, model, for_fisher)
            elif saved is None and _has_moved(plasticity):
                warnings.warn(
                    "The plasticity holds the model where it was consolidated, and not where this training starts; "
                    "old examples only measure the loss. Call plasticity.reset() to protect the present model.",
                    stacklevel=2,
                )
        if saved is not None:
            run.restore(saved)
        elif run.measured is not None:
            run.first_loss = run.old_loss(state.global_step)
        if plasticity.tolerance is not None and run.measured is None:
            warnings.warn(
                "A tolerance that is not calibrated may be exceeded by 3 to 100 times. Give the callback old_data or "
                "samples to measure the old loss on.",
                stacklevel=2,
            )
        return run

    def _old_examples(self, args: TrainingArguments, run: "_Run", loader: Any) -> OldExamples | None:
        """The old examples with their loss; own ones are written now if the run has none yet."""
        if self.old_data is None and self.samples is None and run.texts is None:
            return None
        old = self._unshifted(() if self.old_data is None else self.old_data, args, run.model, loader)
        if self.old_data is None:
            if run.texts is None:
                number = self.samples or 0
                run.texts = own_texts(run.model, number, self.sample_length, old.batch_size, args.seed, old.device)
                _as_in_first_process([run.texts])
            old = own_examples(run.texts, old)
        elif not len(old):
            raise InputError("Expected old_data with at least one example, but got none. Give samples= instead.")
        old = self._shifted(old, run.model)
        if self.loss_fn is None and self.old_data is None and not old.shift:
            raise InputError(
                "Expected a causal language model to write samples, but got "
                f"{type(_base(run.model)).__name__}. Give old_data."
            )
        return old

    def _unshifted(self, data: Any, args: TrainingArguments, model: nn.Module, loader: Any) -> OldExamples:
        """Old examples as the Trainer collates its own."""
        base = _base(model)
        names = args.label_names or find_labels(type(base)) or ["labels"]
        return OldExamples(
            data if hasattr(data, "__getitem__") and hasattr(data, "__len__") else list(data),
            _collator(loader, base, names, args),
            args.per_device_eval_batch_size,
            next(model.parameters()).device,
            names,
            self.loss_fn or token_loss,
        )

    def _shifted(self, old: OldExamples, model: nn.Module) -> OldExamples:
        """The same with labels as the model's own loss reads them."""
        if self.loss_fn is not None:
            return old
        is_causal = type(_base(model)).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        return replace(old, shift=told_shift(model, old, is_causal=is_causal))

    def _collated(self, data: Any, args: TrainingArguments, model: nn.Module, loader: Any) -> OldExamples:
        old = self._unshifted(data, args, model, loader)
        if not len(old):
            raise InputError("Expected old examples for the budget, but got none. Give on='own-samples' instead.")
        return self._shifted(old, model)

    def _consolidate(self, plasticity: WeightPlasticity, model: nn.Module, old: OldExamples) -> None:
        shared = {id(parameter) for parameter in plasticity.shared_parameters}
        trained = [p for p in model.parameters() if p.requires_grad and id(p) in shared]
        if not trained:
            raise InputError(
                "Expected a model that trains some of the plasticity's weights, but got one that trains none of them. "
                "Build the plasticity from the Trainer's own model."
            )
        with evaluated(model):
            importance = diagonal_fisher(model, old, old.loss_fn, self.kind, parameters=trained, per="target")
        _as_in_first_process(importance.values())
        plasticity.consolidate(model, importance)

    def _go_before_reporters(self) -> None:
        """Go to the front of the Trainer's callbacks: reporters see only what is in the logs when it is their turn.

        A callback is not told of the others, but it is called by the object that knows them.
        """
        frame = inspect.currentframe()
        while frame is not None:
            handler = frame.f_locals.get("self")
            if isinstance(handler, CallbackHandler) and self in handler.callbacks:
                handler.callbacks.remove(self)
                handler.callbacks.insert(0, self)
                return
            frame = frame.f_back

    # ---- steps -------------------------------------------------------------------------------------------------------

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse, at the first step, an optimizer that has moved the weights before its step."""
        if self._run is None or self._run.has_stepped:
            return
        self._run.has_stepped = True
        plasticity = self._run.plasticity
        held = [p for p in plasticity.shared_parameters if plasticity.anchor(p) is not None]
        if all(parameter.grad is None for parameter in held):
            raise InputError(
                "Expected gradients of the protected weights at the optimizer's step, but got none with optim="
                f"{str(getattr(args.optim, 'value', args.optim))!r}: it moves them during the backward pass, where no "
                "proximal step can follow, or they are frozen. Choose another optim."
            )

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Calibrate a tolerance, while the gradients are still there."""
        step = state.global_step + 1
        if self._run is not None and (
            step % self.calibrate_every == 0 or step in _FIRST_STEPS or step == state.max_steps
        ):
            self._run.calibrate(step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add what the protection does to the logs of a training loss, and to their history."""
        run = self._run or self._budget_run
        if run is not None and logs is not None and "loss" in logs:
            values = run.logs(state.global_step)
            logs.update(values)
            if state.log_history:
                state.log_history[-1].update(values)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Tell of a checkpoint that does not have the callback's state."""
        run = self._run or self._budget_run
        if run is not None and args.should_save and not args.save_only_model and not run.was_saved:
            warnings.warn(
                "The optimizer saves its state in a way of its own, without that of the plasticity: a run that is "
                "resumed from this checkpoint will be refused.",
                stacklevel=2,
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the optimizer; anchors and importances stay in `plasticity`. Make a budget hold."""
        if self._budget_run is not None:
            self.report = self._budget_run.finish()
            self._budget_run = None
        if self._run is not None:
            self._run.leave()
            self._run = None


@dataclass
class _Run:
    """One `train()`.

    Attributes:
        model: Unwrapped.
        plasticity: Of its weights.
        texts: That the model wrote at the start, (N, T).
        measured: Examples to measure the old loss on.
        first_loss: The old loss at the start.
        has_stepped: Whether there was a step.
        was_saved: Whether a checkpoint has got the state of this.
    """

    model: nn.Module
    plasticity: WeightPlasticity
    texts: Tensor | None = None
    measured: OldExamples | None = None
    first_loss: float | None = None
    has_stepped: bool = False
    was_saved: bool = False
    _optimizer: Optimizer | None = None
    _saving: RemovableHandle | None = None
    _last: tuple[int, float] | None = None  # step and old loss

    def follow(self, optimizer: Optimizer) -> None:
        """Attach to the optimizer, and put this into the state that it saves."""
        self.plasticity.attach(optimizer)
        self._optimizer, self._last = optimizer, None
        self._saving = optimizer.register_state_dict_post_hook(self._add_to_state)

    def leave(self) -> None:
        """Undo `follow`."""
        if self._optimizer is not None and self._saving is not None:
            self.plasticity.detach(self._optimizer)
            self._saving.remove()
            self._optimizer = self._saving = None

    def _add_to_state(self, _optimizer: Optimizer, state: dict[str, Any]) -> None:
        self.was_saved = True
        own = {"plasticity": self.plasticity.state_dict(), "first_loss": self.first_loss, "texts": self.texts}
        state["state"][KEY] = own

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take up the state that a checkpoint holds; its options, too."""
        plasticity = self.plasticity
        before = (plasticity.alpha, plasticity.tolerance, plasticity.damping)
        plasticity.load_state_dict(saved["plasticity"])
        after = (plasticity.alpha, plasticity.tolerance, plasticity.damping)
        if before[1:] != after[1:] or (after[1] is None and before[0] != after[0]):
            warnings.warn(
                f"The checkpoint has (alpha, tolerance, damping) = {after}, the callback {before}. Training goes on "
                "with those of the checkpoint.",
                stacklevel=2,
            )
        self.first_loss = saved["first_loss"]

    def old_loss(self, step: int) -> float:
        """The loss on the old examples that are kept for it, measured once per step."""
        if self._last is None or self._last[0] != step:
            assert self.measured is not None
            loss = torch.tensor(self.measured.loss(self.model), device=self.measured.device, dtype=torch.float32)
            _as_in_first_process([loss])
            self._last = (step, float(loss))
        return self._last[1]

    def calibrate(self, step: int) -> None:
        """Measure the old loss, and draw the weights back until it is within the tolerance, if there is one."""
        tolerance = self.plasticity.tolerance
        if tolerance is None or self.first_loss is None or self.measured is None:
            return
        for _ in range(_MOST_TRIES):
            self._last = None
            increase = self.old_loss(step) - self.first_loss
            self.plasticity.calibrate(increase, self._optimizer)
            if increase <= tolerance:
                return
        self._last = None  # the weights were drawn back since it was measured

    def logs(self, step: int) -> dict[str, float]:
        """What the protection does."""
        values = {
            "plasticity_alpha": self.plasticity.alpha,
            "plasticity_expected_increase": self.plasticity.expected_increase(),
        }
        if self.measured is not None and self.first_loss is not None:
            values["old_loss"] = self.old_loss(step)
            values["old_loss_increase"] = values["old_loss"] - self.first_loss
        return values


def _of_trained(model: nn.Module, options: Mapping[str, Any]) -> WeightPlasticity:
    """Of all weights that are trained, and of running statistics beside them."""
    normalised = [m for m in model.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    return WeightPlasticity([*normalised, *(p for p in model.parameters() if p.requires_grad)], **options)


def _is_consolidated(plasticity: WeightPlasticity) -> bool:
    return any(plasticity.anchor(parameter) is not None for parameter in plasticity.shared_parameters)


def _has_moved(plasticity: WeightPlasticity) -> bool:
    anchors = ((plasticity.anchor(parameter), parameter) for parameter in plasticity.shared_parameters)
    return any(anchor is not None and not torch.equal(anchor, weight) for anchor, weight in anchors)


def _inside(model: nn.Module) -> nn.Module:
    """The model inside of what compiles or replicates it."""
    model = unwrapped(model)
    return _inside(model.module) if isinstance(model, nn.DataParallel) else model


def _base(model: nn.Module) -> nn.Module:
    """The model that adapters are in; itself without."""
    find = getattr(model, "get_base_model", None)
    return find() if callable(find) else model


def _collator(
    loader: Any, base: nn.Module, label_names: Sequence[str], args: TrainingArguments
) -> Callable[[list[Any]], Mapping[str, Any]]:
    """The Trainer's collator, on the columns that the model takes, as the Trainer does with its own examples."""
    collate = getattr(loader, "collate_fn", None) or default_data_collator
    # Of the class: mixed precision puts a function without a signature in place of the method.
    columns = {*inspect.signature(type(base).forward).parameters, "label", "label_ids", *label_names}

    def collated(examples: list[Any]) -> Mapping[str, Any]:
        if not isinstance(examples[0], Mapping):
            raise InputError(
                "Expected old examples as the Trainer's collator takes them, with input_ids or the like, but got "
                f"{type(examples[0]).__name__}. Tokenize them; of a DataLoader pass the dataset."
            )
        if args.remove_unused_columns:
            examples = [{name: e[name] for name in e if name in columns} for e in examples]
        batch: Mapping[str, Any] = collate(examples)
        return batch

    return collated


def _refuse_shards(model: nn.Module) -> None:
    kind = PartialState().distributed_type  # what the accelerator has decided on
    is_sharded = kind in {DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM}
    if is_sharded or any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        raise InputError(
            "Expected weights that are whole in every process, but got a Trainer that shards them "
            f"({kind.value if is_sharded else 'DTensor'}), whose steps no proximal step would follow. Use one process, "
            "or DistributedDataParallel."
        )


def _refuse_lost(plasticity: WeightPlasticity, model: nn.Module) -> None:
    """Refuse weights that are held, but not in the model any more."""
    present = {id(parameter) for parameter in model.parameters()}
    held = [p for p in plasticity.shared_parameters if plasticity.anchor(p) is not None]
    lost = [p for p in held if id(p) not in present]
    if lost:
        raise InputError(
            f"Expected a model that has the consolidated weights, but got one without {len(lost)} of {len(held)}, the "
            f"first in {tuple(lost[0].shape)}: resize_token_embeddings and loading make new ones. Call "
            "plasticity.replace(old, new) for each, or consolidate the Trainer's own model."
        )


def _as_in_first_process(tensors: Iterable[Tensor]) -> None:
    """Make tensors equal in all processes, in place: what differs in a bit would drift apart."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)
