"""One definition of the metric d per optimizer: a steady gradient g moves a weight by lr · g / d per step.

Each is read off the optimizer's own step, with its state after that step, in the real numbers of at least float32 that
`forgetless.plasticity.scaled_metric` asks for. docs/optimizers.md has their table. A class is named by its package
and its own name, so that no package is imported for it; one that inherits from it is defined, too.
"""

import math
from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from forgetless.plasticity.metric import (
    TINY,
    learning_rate,
    metric_of,
    plain,
    sgd_metric,
    square_root,
    steps,
    wide,
)
from forgetless.sharding import gathered


@metric_of("torch.SGD")
def _sgd(_state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> float:
    return sgd_metric(group)


@metric_of("torchao._AdamBase")
@metric_of("torch.Adam", "torch.NAdam", is_elementwise=True)
def _adam(state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> Tensor:
    """√v̂ + ε. Of NAdam too: the shares of gradient and mean in its step, 1 − μ_t and μ_{t+1}, are 1 together.

    torchao's moments in 8 bits are made floating as a whole.
    """
    root = _moment(state, "max_exp_avg_sq" if group.get("amsgrad") else "exp_avg_sq").sqrt()
    return root * (1 / square_root(1 - float(group["betas"][1]) ** steps(state))) + (float(group["eps"]) + TINY)


@metric_of("torch.SparseAdam", is_elementwise=True)
def _sparse_adam(state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> Tensor:
    """(√v + ε) / √(1 − β₂ᵗ). All rows are drawn at each step; one moves only as often as it has a gradient."""
    correction = square_root(1 - float(group["betas"][1]) ** steps(state))
    return (_moment(state, "exp_avg_sq").sqrt() + float(group["eps"])) / correction


@metric_of("torch.Adamax", is_elementwise=True)
def _adamax(state: Mapping[str, Any], _group: Mapping[str, Any], _parameter: Tensor) -> Tensor:
    """Its u = max(β₂ u, |g| + ε), arXiv:1412.6980, algorithm 2."""
    return _moment(state, "exp_inf")


@metric_of("torch.RAdam", is_elementwise=True)
def _radam(state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> float | Tensor:
    """(√v + ε) / √(1 − β₂ᵗ) / r_t where ρ_t > 5, before that 1, arXiv:1908.03265, algorithm 2."""
    beta2, t = float(group["betas"][1]), steps(state)
    correction = 1 - beta2**t
    most = 2 / (1 - beta2) - 1
    length = most - 2 * t * beta2**t / correction
    if not isinstance(length, Tensor) and length <= 5:
        return 1.0
    rectified = square_root((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))
    metric = (_moment(state, "exp_avg_sq").sqrt() + float(group["eps"])) / (square_root(correction) * rectified)
    return torch.where(length <= 5, 1.0, metric) if isinstance(length, Tensor) else metric


@metric_of("torch.RMSprop", is_elementwise=True)
def _rmsprop(state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> Tensor:
    """(√v + ε)(1 − μ), without bias correction; centered, v less the square of the mean gradient."""
    square = _moment(state, "square_avg")
    if group["centered"]:
        square = square.addcmul(mean := _moment(state, "grad_avg"), mean, value=-1).clamp_(min=0)
    return (square.sqrt() + float(group["eps"])) * (1 - float(group["momentum"]))


@metric_of("torch.Adagrad", is_elementwise=True)
def _adagrad(state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> Tensor:
    """(√Σg² + ε)(1 + (t − 1) η), with η its own decay of the learning rate."""
    decay = 1 + (steps(state) - 1) * float(group["lr_decay"])
    return (_moment(state, "sum").sqrt() + float(group["eps"])) * decay


@metric_of("torch.Adadelta", is_elementwise=True)
def _adadelta(state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> Tensor:
    """√(v + ε) / √(u + ε), u its mean square of steps, arXiv:1212.5701, algorithm 1. u includes the last step."""
    epsilon = float(group["eps"])
    return ((_moment(state, "square_avg") + epsilon) / (_moment(state, "acc_delta") + epsilon)).sqrt()


@metric_of("torch.ASGD")
def _asgd(state: Mapping[str, Any], group: Mapping[str, Any], _parameter: Tensor) -> float | Tensor:
    """(1 + λ lr (t − 1))^a, as lr/η_t is. Its λ is a weight decay, and part of the loss."""
    return (1 + float(group["lambd"]) * learning_rate(group) * (steps(state) - 1)) ** float(group["alpha"])


@metric_of("torch.Adafactor")
def _adafactor(state: Mapping[str, Any], group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """√max(V, ε₁²) · c · lr / (max(ε₂, RMS(θ)) min(lr, 1/√t)), c = max(1, RMS(g/√V)/d), arXiv:1804.04235.

    θ is taken after the step, which changes its RMS by at most a share of lr.
    """
    least, least_scale = group["eps"]
    least = torch.finfo(parameter.dtype).eps if least is None else float(least)
    if "variance" in state:
        variance = wide(state["variance"])
    else:
        row, column = wide(state["row_var"]), wide(state["col_var"])
        variance = row @ column / row.mean(dim=-2, keepdim=True).clamp_(min=least)
    root = variance.clamp(min=least * least).sqrt()
    rate = learning_rate(group)
    step_size = _rms(parameter).clamp(min=float(least_scale)) * _least(rate, 1 / square_root(steps(state)))
    return root * (_clipped(parameter, root, float(group["d"])) * rate / step_size)


@metric_of("transformers.Adafactor")
def _transformers_adafactor(state: Mapping[str, Any], group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """As Adafactor's, with its own names; its learning rate may be None, d is then in units of 1."""
    if "exp_avg_sq" in state:
        root = wide(state["exp_avg_sq"]).sqrt()
    else:
        row, column = wide(state["exp_avg_sq_row"]), wide(state["exp_avg_sq_col"])
        root = ((row / row.mean(dim=-1, keepdim=True)).unsqueeze(-1) * column.unsqueeze(-2)).sqrt()
    rate, t = learning_rate(group), steps(state)
    step_size: float | Tensor = rate
    if group["relative_step"]:
        step_size = _least(1e-6 * t if group["warmup_init"] else 1e-2, 1 / square_root(t))
    if group["scale_parameter"]:
        step_size = step_size * torch.as_tensor(state["RMS"]).double().clamp(min=float(group["eps"][1]))
    return root * (_clipped(parameter, root, float(group["clip_threshold"])) * rate / step_size)


@metric_of("torch.Muon")
def _muon(state: Mapping[str, Any], group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """‖B‖² / ⟨B, O⟩ over its factor for the shape, O its step for the gradient B: one number for the matrix.

    A weight of the matrix has no metric of its own, because each step mixes rows and columns. With this one the whole
    loss of eq. 8 is at rest along the gradient of the next model's loss, and at rest altogether where the singular
    values of that gradient are equal, or all but one are 0.
    """
    from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

    gradient, mean = parameter.grad, state["momentum_buffer"]
    steady = mean if gradient is None or not group["nesterov"] else gradient.lerp(mean, float(group["momentum"]))
    step = _zeropower_via_newtonschulz(steady, group["ns_coefficients"], group["ns_steps"], group["eps"]).float()
    steady = wide(steady)
    along = gathered(steady.square().sum()) / gathered((steady * step).sum()).clamp_min(TINY)
    return _exact(along) / float(_adjust_lr(1.0, group["adjust_lr_fn"], parameter.shape))


@metric_of("lion_pytorch.Lion", "pytorch_optimizer.Lion")
def _lion(state: MutableMapping[str, Any], group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """√(mean of c²), c = β₁ m + (1 − β₁) g, whose sign Lion steps by (arXiv:2302.06675): |c| where it is steady.

    |c| itself would be 0, and the pull without limit, wherever noise changes its sign. The mean of its square, over
    steps with β₂, is kept in the optimizer's state, as `forgetless_square`. In noise Lion steps by up to √(π/2) less
    per gradient than a steady one: α then counts as up to 1.25 times as much.
    """
    beta1, beta2 = (float(beta) for beta in group["betas"])
    if parameter.grad is not None:
        gradient = wide(parameter.grad)
        before = (wide(state["exp_avg"]) - (1 - beta2) * gradient) / beta2
        square = (beta1 * before + (1 - beta1) * gradient).square()
        old = state.get("forgetless_square")
        state["forgetless_square"] = square if old is None else old.lerp_(square, 1 - beta2)
    root: Tensor = state["forgetless_square"].sqrt()
    return root


def _moment(state: Mapping[str, Any], name: str) -> Tensor:
    return wide(plain(state[name]))


def _exact(number: Tensor) -> Tensor:
    """A tensor of one number, in the type in which Python computes, where the device has it."""
    return number if number.device.type == "mps" else number.double()


def _rms(tensor: Tensor) -> Tensor:
    return _exact(wide(tensor.detach()).norm()) / math.sqrt(max(tensor.numel(), 1))


def _least(left: float | Tensor, right: float | Tensor) -> float | Tensor:
    """The smaller of two numbers, each of Python or a tensor of one."""
    if isinstance(left, Tensor):
        return left.clamp(max=right)
    return right.clamp(max=left) if isinstance(right, Tensor) else min(left, right)


def _clipped(parameter: Tensor, root: Tensor, threshold: float) -> float | Tensor:
    """max(1, RMS(g/√V)/threshold), by which Adafactor's step is divided; 1 where the gradient is gone."""
    return 1.0 if parameter.grad is None else (_rms(wide(parameter.grad) / root) / threshold).clamp(min=1.0)
