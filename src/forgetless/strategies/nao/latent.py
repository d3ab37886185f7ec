"""The networks of NAO: encoder, predictor and decoder."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless.strategies._decoder import Decoder, bare_lstm, draw_weights


class LatentModel(nn.Module):
    """Encoder, predictor and decoder.

        z = √H u / ‖u‖,  u = mean_t h_t,  h_t = LSTM(e(a_t), h_{t−1});    f(z) = w · relu(V z + c) + d

    Weights start uniformly in ±1/√H and the embeddings e in ±1, those of the decoder as it has them: latents that
    hardly differ take long to be distinguished.

    Differences to the paper: the latent is one vector; there it is all h_t, and the decoder attends to them.

    Args:
        num_choices: Options of each of the D decisions.
        num_units: H.
        generator: For the initial weights.

    >>> model = LatentModel((2, 3), 8, torch.Generator())
    >>> latent = model.encode(torch.tensor([[1, 2], [0, 0]]))
    >>> latent.shape, model.predict(latent).shape, model.decoder.decode(latent).shape
    (torch.Size([2, 8]), torch.Size([2]), torch.Size([2, 2]))
    """

    _first_rows: Tensor

    def __init__(self, num_choices: Sequence[int], num_units: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(sum(num_choices), num_units))
        self.lstm = bare_lstm(num_units)
        self.predictor_weight = nn.Parameter(torch.empty(num_units, num_units))
        self.predictor_bias = nn.Parameter(torch.empty(num_units))
        self.predictor_output = nn.Parameter(torch.empty(num_units))
        self.predictor_offset = nn.Parameter(torch.empty(()))
        self.radius = math.sqrt(num_units)
        draw_weights(self, generator, within=1 / self.radius)
        nn.init.uniform_(self.embedding, -1, 1, generator=generator)
        self.decoder = Decoder(num_choices, num_units, generator)
        choices = torch.tensor(num_choices)
        self.register_buffer("_first_rows", choices.cumsum(0) - choices, persistent=False)  # (D,)

    def encode(self, decisions: Tensor) -> Tensor:
        """The latents z, (n, H), of decisions (n, D)."""
        hidden, _ = self.lstm(F.embedding((self._first_rows + decisions).t(), self.embedding))  # (D, n, H)
        return self.radius * F.normalize(hidden.mean(0), dim=1)

    def predict(self, latent: Tensor) -> Tensor:
        """The predicted rewards f(z), (n,), in standard deviations from the mean."""
        inner = F.relu(F.linear(latent, self.predictor_weight, self.predictor_bias))
        return inner @ self.predictor_output + self.predictor_offset

    def climb(self, latent: Tensor, step_size: float) -> Tensor:
        """A step up the gradient of f along the sphere on which all latents lie.

            z ← √H (z + η g) / ‖z + η g‖,    g = ∇f − (∇f · z) z / H, scaled to length √H

        Args:
            latent: z, (n, H).
            step_size: η.

        Returns:
            (n, H).
        """
        latent = latent.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.predict(latent).sum(), latent)
        with torch.no_grad():
            along = gradient - (gradient * latent).mean(1, keepdim=True) * latent
            return self.radius * F.normalize(latent + step_size * self.radius * F.normalize(along, dim=1), dim=1)
