"""The network of ENAS, and what REINFORCE maximises."""

from collections.abc import Sequence

import torch
from torch import Tensor

from forgetless.strategies._decoder import Decoder


class Controller(Decoder):
    """A decoder whose logits are bounded, so that it keeps exploring.

        π(· | a_<t) = softmax(c · tanh((W_t h_t + b_t) / T))

    The paper ties operations over nodes and picks earlier nodes by attention over their hidden states; its released
    text code lowers the logits of far nodes, and its image code favours some operations by constants. Nothing of that
    is done here: at the start all architectures are about equally likely.

    Args:
        num_choices: Options of each of the D decisions.
        num_units: Hidden units H.
        temperature: T > 0.
        tanh_constant: c > 0.
        generator: For the initial weights.

    >>> controller = Controller((2, 3), 8, temperature=5.0, tanh_constant=2.5, generator=torch.Generator())
    >>> controller.sample(4, torch.Generator()).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        num_choices: Sequence[int],
        num_units: int,
        *,
        temperature: float,
        tanh_constant: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(num_choices, num_units, generator)
        self.temperature = temperature
        self.tanh_constant = tanh_constant

    def _logits(self, outputs: Tensor) -> Tensor:
        return self.tanh_constant * torch.tanh(outputs / self.temperature)


def surrogate(
    log_probability: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    *,
    num_choices: Sequence[int],
    entropy_weight: float,
) -> Tensor:
    """What REINFORCE maximises in the mean over architectures; its gradient estimates that of E[R] + w · H.

        A · Σ_t ℓ_t + w · Σ_t (H_t + C_t · ℓ_t),    C_t = Σ_{s>t} (H_s − log K_s), held constant

    with ℓ_t the log-probability of decision t given those before it, H_t the entropy of that decision and K_t its
    number of options. Over architectures drawn from the controller the estimate is unbiased if A = R − b with any
    constant b. The term in C_t is the effect of a decision on how uncertain the later ones are, log K_s a baseline
    for it.

    Source: arXiv:1802.03268, section 2.2; the paper adds the entropy of a sample to its reward. The released image code
    adds Σ_t H_t to R as a constant: the gradient of H_t itself is missing, which for one decision is all there is. The
    released text code adds Σ_t −π log π of the decisions made, another quantity.

    Args:
        log_probability: ℓ, (n, D), in nats; carries the gradient.
        entropy: H_t, (n, D), in nats; carries the gradient.
        advantages: A, (n,), in units of reward.
        num_choices: K, D integers.
        entropy_weight: w ≥ 0, in units of reward per nat.

    Returns:
        (n,), in units of reward.

    >>> uniform = torch.tensor([[0.5, 0.5]]).log()
    >>> surrogate(uniform, -uniform, torch.tensor([1.0]), num_choices=(2, 2), entropy_weight=0.0)
    tensor([-1.3863])
    """
    excess = entropy.detach() - entropy.new_tensor(num_choices).log()
    later = excess.sum(1, keepdim=True) - excess.cumsum(1)  # C
    bonus = (entropy + later * log_probability).sum(1)
    return advantages * log_probability.sum(1) + entropy_weight * bonus
