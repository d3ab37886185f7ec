"""An LSTM that emits the decisions of an architecture one after the other: what `enas` and `nao` have in common."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INITIAL_RANGE = 0.1


class Decoder(nn.Module):
    """A distribution over sequences of decisions, each given those before it, and all of them given a context z.

        h_t = LSTM(e(a_{t−1}) + z, h_{t−1}),    π(· | a_<t, z) = softmax(W_t h_t + b_t)

    Every decision t has its own output layer W_t, b_t and its own embeddings e of its options, and a learnt vector
    e(a_0) starts the sequence. A space says how many options a decision has, not what they mean, so nothing is tied:
    option 2 of one decision ("reads node 2") need not have to do with option 2 of another ("sigmoid").

    Weights and embeddings start uniformly in ±0.1 and output biases at 0. The output layers are stored as one tensor,
    padded to the largest number of options K; what is padded has probability 0 and gradient 0.

    Args:
        num_choices: Options of each of the D decisions.
        num_units: Hidden units H.
        generator: For the initial weights.

    >>> decoder = Decoder((2, 3), 8, torch.Generator())
    >>> probabilities = decoder(torch.tensor([[1, 0]])).exp()  # one architecture, two decisions, padded to 3 options
    >>> probabilities.shape, probabilities[0, 0, 2].item()
    (torch.Size([1, 2, 3]), 0.0)
    >>> decoder.sample(4, torch.Generator()).shape
    torch.Size([4, 2])
    """

    _first_rows: Tensor
    _padded: Tensor

    def __init__(self, num_choices: Sequence[int], num_units: int, generator: torch.Generator) -> None:
        super().__init__()
        shape = (len(num_choices), max(num_choices))  # (D, K)
        # Row 0 starts the sequence; the last decision's options are nobody's input.
        self.embedding = nn.Parameter(torch.empty(1 + sum(num_choices[:-1]), num_units))
        self.lstm = bare_lstm(num_units)
        self.head_weight = nn.Parameter(torch.empty(*shape, num_units))
        self.head_bias = nn.Parameter(torch.zeros(shape))
        draw_weights(self, generator, but="head_bias")
        first_rows = list(itertools.accumulate(num_choices[:-1], initial=1))
        self.register_buffer("_first_rows", torch.tensor(first_rows), persistent=False)  # (D,)
        padded = torch.arange(shape[1]) >= torch.tensor(num_choices).unsqueeze(1)
        self.register_buffer("_padded", padded, persistent=False)  # (D, K)

    def forward(self, decisions: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-probabilities of every option of every decision, given the decisions before it; in one pass.

        Args:
            decisions: (n, D), integers.
            context: z, (n, H); none if None.

        Returns:
            (n, D, K); −∞ where a decision has fewer options than K.
        """
        rows = F.pad(self._first_rows[:-1] + decisions[:, :-1], (1, 0))  # (n, D)
        hidden, _ = self.lstm(self._inputs(rows.t(), context))  # (D, n, H)
        return self._log_probabilities(hidden, slice(None)).transpose(0, 1)

    def sample(self, n: int, generator: torch.Generator, context: Tensor | None = None) -> Tensor:
        """Draw n sequences of decisions at once.

        Args:
            n: How many.
            generator: The source of randomness, on the decoder's device.
            context: z, (n, H); none if None.

        Returns:
            (n, D), integers.
        """
        return self._emit(n, lambda log_p: torch.multinomial(log_p.exp(), 1, generator=generator).squeeze(1), context)

    def decode(self, context: Tensor) -> Tensor:
        """The sequence of each context that takes the most probable option at every step.

        Args:
            context: z, (n, H).

        Returns:
            (n, D), integers.
        """
        return self._emit(len(context), lambda log_p: log_p.argmax(1), context)

    @torch.no_grad()
    def _emit(self, n: int, choose: Callable[[Tensor], Tensor], context: Tensor | None = None) -> Tensor:
        """As many sequences as n, of which `choose` takes each decision from its log-probabilities (n, K)."""
        rows, state, decisions = self._first_rows.new_zeros(n), None, []
        for position, first_row in enumerate(self._first_rows):
            hidden, state = self.lstm(self._inputs(rows, context).unsqueeze(0), state)  # (1, n, H)
            decisions.append(choose(self._log_probabilities(hidden, slice(position, position + 1))[0]))
            rows = first_row + decisions[-1]
        return torch.stack(decisions, 1)

    def _inputs(self, rows: Tensor, context: Tensor | None) -> Tensor:
        embedded = F.embedding(rows, self.embedding)
        return embedded if context is None else embedded + context

    def _log_probabilities(self, hidden: Tensor, positions: slice) -> Tensor:
        """(d, n, K) from hidden states (d, n, H) at the d `positions`."""
        bias, weight = self.head_bias[positions].unsqueeze(1), self.head_weight[positions]
        logits = self._logits(torch.baddbmm(bias, hidden, weight.mT))  # (d, n, K)
        return logits.masked_fill(self._padded[positions].unsqueeze(1), -math.inf).log_softmax(-1)

    def _logits(self, outputs: Tensor) -> Tensor:
        """From the outputs of the layers W_t, b_t."""
        return outputs


def bare_lstm(num_units: int) -> nn.LSTM:
    """An LSTM with as many inputs as units, without weights in it yet.

    Args:
        num_units: Hidden units.
    """
    # By way of "meta", because its own initialisation would draw from the global random state.
    return nn.LSTM(num_units, num_units, device="meta").to_empty(device="cpu")


def draw_weights(
    module: nn.Module, generator: torch.Generator, *, within: float = _INITIAL_RANGE, but: str = ""
) -> None:
    """Draw the weights of a module uniformly from ± `within`, in the order of their names.

    Args:
        module: Whose weights.
        generator: The source of randomness.
        within: The range.
        but: The name of one that is left as it is.
    """
    for name, parameter in module.named_parameters():
        if name != but:
            nn.init.uniform_(parameter, -within, within, generator=generator)
