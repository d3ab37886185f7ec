"""Models × losses × shapes that the Fisher is checked on, each with the path that should compute it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

BATCH, FEATURES, CLASSES, WORDS, STEPS = 7, 5, 4, 9, 6

Loss = Callable[[Any, Tensor], Tensor]


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def labels(*shape: int) -> Tensor:
    return torch.randint(CLASSES, shape or (BATCH,))


def words(*shape: int) -> Tensor:
    return torch.randint(WORDS, shape)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().flatten(1).sum(1).mean() / 2


def token_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclass(frozen=True)
class Case:
    """A model, one batch for it, a loss, and the method that `diagonal_fisher` should find for the model."""

    name: str
    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    targets: Callable[[], Tensor] = labels
    loss_fn: Loss = F.cross_entropy
    path: str = "by_layer"

    def build(self) -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        model = self.model().double()
        with torch.no_grad():  # normalisations start at weight 1 and bias 0, which would hide mistakes
            for weight in model.parameters():
                weight.add_(0.3 * torch.randn_like(weight))
        return model, self.inputs(), self.targets()


def features() -> Tensor:
    return randn(BATCH, FEATURES)


def mlp(activation: nn.Module | None = None) -> nn.Sequential:
    activation = activation or nn.Tanh()
    return nn.Sequential(nn.Linear(FEATURES, 6), activation, nn.Linear(6, 6), activation, nn.Linear(6, CLASSES))


def convolutions(conv: nn.Module, *more: nn.Module) -> nn.Sequential:
    return nn.Sequential(conv, *more, nn.Tanh(), nn.Flatten(), nn.LazyLinear(CLASSES))


def initialised(model: nn.Module, inputs: Tensor) -> nn.Module:
    model(inputs.float())
    return model


def conv_case(name: str, shape: tuple[int, ...], make: Callable[[], list[nn.Module]], path: str = "by_layer") -> Case:
    return Case(
        name,
        lambda: initialised(convolutions(*make()), torch.zeros(BATCH, *shape)),
        lambda: randn(BATCH, *shape),
        path=path,
    )


class LayerUsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


class ConvolutionUsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(torch.tanh(self.conv(x))).mean((2, 3)))


class TiedLanguageModel(nn.Module):
    """Embedding → Elman cell of Linear layers, one call per step → decoder tied to the embedding."""

    def __init__(self, padding_idx: int | None = None, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, FEATURES, padding_idx)
        self.enter, self.recur = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES, bias=False)
        self.decoder = nn.Linear(FEATURES, WORDS)
        if tied:
            self.decoder.weight = self.embedding.weight

    def states(self, tokens: Tensor) -> list[Tensor]:
        state = torch.zeros(len(tokens), FEATURES, dtype=torch.float64)
        states = []
        for t in range(tokens.shape[1]):
            state = torch.tanh(self.enter(self.embedding(tokens[:, t])) + self.recur(state))
            states.append(state)
        return states

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(torch.stack(self.states(tokens), 1))  # (B, T, V)


class FoldedLanguageModel(TiedLanguageModel):
    """Decodes all steps of all examples as rows of one matrix: dim 0 is not examples."""

    def forward(self, tokens: Tensor) -> Tensor:
        states = torch.stack(self.states(tokens), 1)
        return self.decoder(states.flatten(0, 1)).unflatten(0, tokens.shape)


class TimeFirst(nn.Module):
    """Takes (B, T) tokens and works on (T, B, H), as PyTorch's recurrent layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, FEATURES)
        self.mix, self.decoder = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        states = torch.tanh(self.mix(self.embedding(tokens.t())))  # (T, B, H)
        return self.decoder(states.cumsum(0).tanh()).sum(0)  # (B, C)


class KeywordCall(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(WORDS, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(input=self.embedding(input=tokens).mean(1))


class UnusedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(FEATURES, CLASSES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.used(x)


class FunctionalWeight(nn.Module):
    """A layer's weight is used by the layer, and once more behind its back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(F.linear(self.inner(x), self.inner.weight)))


class Multiplies(nn.Module):
    """A matrix layer of nobody's library: x W + b, as Hugging Face's Conv1D, or x Wᵀ."""

    def __init__(self, num_inputs: int, num_outputs: int, transposed: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.transposed = transposed
        self.weight = nn.Parameter(torch.randn((num_inputs, num_outputs) if transposed else (num_outputs, num_inputs)))
        self.bias = nn.Parameter(torch.zeros(num_outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        product = x @ (self.weight if self.transposed else self.weight.T)
        return product if self.bias is None else product + self.bias


class Scales(nn.Module):
    """A scale of a normalised input: w, 1 + w or (w, b), or another function of w, as libraries write it."""

    def __init__(self, how: str, width: int = FEATURES) -> None:
        super().__init__()
        self.how = how
        self.gain = nn.Parameter(torch.ones(1 if how == "number" else width))
        if how == "with shift":
            self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        match self.how:
            case "1 + w":
                return x * (1 + self.gain)
            case "with shift":
                return self.gain * x + self.shift
            case "exponential":
                return x * self.gain.exp()
        return self.gain * x


class ScaledEmbedding(nn.Embedding):
    """Rows times a number, as Gemma's; or times one that depends on the position."""

    def __init__(self, is_constant: bool) -> None:
        super().__init__(WORDS, FEATURES)
        self.is_constant = is_constant

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * (3.0 if self.is_constant else torch.arange(1.0, STEPS + 1).unsqueeze(-1))


class Positions(nn.Module):
    """Looks positions up once for all examples, in a matrix of one row or in a vector."""

    def __init__(self, ndim: int) -> None:
        super().__init__()
        self.ndim = ndim
        self.words, self.places = nn.Embedding(WORDS, FEATURES), nn.Embedding(2 * WORDS, FEATURES)
        self.out = nn.Linear(FEATURES, WORDS)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        if self.ndim == 2:
            places = places.unsqueeze(0)
        return self.out(torch.tanh(self.words(tokens) + self.places(places)))


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.ones(FEATURES)), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.scale)


class Recurrent(nn.Module):
    """PyTorch's own recurrent layers, without a given initial state."""

    def __init__(self, layer: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.layer = layer(FEATURES, 3, **options)
        self.out = nn.LazyLinear(CLASSES)
        self.time_first = not options.get("batch_first")

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.layer(x.transpose(0, 1) if self.time_first else x)
        return self.out(outputs[-1] if self.time_first else outputs[:, -1])


class Branches(nn.Module):
    """Goes one of two ways, by the values of its input: nothing can follow it but plain autograd."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = BareParameter(), nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(row) if row[0, 0] > 0 else self.right(row) for row in x.split(1)])


def recurrent_case(layer: type[nn.RNNBase], **options: Any) -> Case:
    name = " ".join([layer.__name__, *(f"{key}={value}" for key, value in options.items())])
    shape = (BATCH, STEPS, FEATURES)
    return Case(
        name,
        lambda: initialised(Recurrent(layer, **options), torch.zeros(shape)),
        lambda: randn(*shape),
        path="by_vmap",
    )


def with_statistics(norm: nn.Module) -> nn.Module:
    """Running statistics that are not 0 and 1."""
    norm.running_mean.copy_(torch.linspace(-1, 1, len(norm.running_mean)))
    norm.running_var.copy_(torch.linspace(0.5, 2, len(norm.running_var)))
    return norm


def text_case(name: str, make: Callable[[], nn.Module], num_steps: int = STEPS, path: str = "by_layer") -> Case:
    """A language model of a text of so many words."""
    return Case(name, make, lambda: words(BATCH, num_steps), lambda: words(BATCH, num_steps), token_cross_entropy, path)


def states_case(name: str, make: Callable[[], nn.Module], path: str = "by_layer") -> Case:
    """A layer that keeps the width, between an embedding and a decoder."""

    def model() -> nn.Module:
        return nn.Sequential(nn.Embedding(WORDS, FEATURES), make(), nn.Tanh(), nn.Linear(FEATURES, WORDS))

    return text_case(name, model, path=path)


IMAGE, SIGNAL, VOLUME = (2, 6, 5), (4, 9), (2, 4, 3, 4)

LAYER_CASES = [
    Case("mlp", mlp, features),
    Case("mlp, summed loss", mlp, features, loss_fn=lambda o, t: F.cross_entropy(o, t, reduction="sum")),
    Case("mlp, squared error", mlp, features, lambda: randn(BATCH, CLASSES), squared_error),
    Case(
        "mlp, binary",
        mlp,
        features,
        lambda: randn(BATCH, CLASSES).gt(0).double(),
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none").sum(1).mean(),
    ),
    Case(
        "mlp, loss that calls item()",
        mlp,
        features,
        loss_fn=lambda o, t: F.cross_entropy(o, t) * (2 if t.sum().item() >= 0 else 1),
    ),
    Case("mlp, ReLU in place", lambda: mlp(nn.ReLU(inplace=True)), features),
    Case("mlp, dropout", lambda: mlp(nn.Sequential(nn.Tanh(), nn.Dropout(0.5))), features),
    Case("linear without bias", lambda: nn.Linear(FEATURES, CLASSES, bias=False), features),
    Case("layer used twice", LayerUsedTwice, features),
    Case("layer unused", UnusedLayer, features),
    Case("keyword calls", KeywordCall, lambda: words(BATCH, STEPS)),
    Case(
        "linear on (B, T, U, features)",
        lambda: nn.Sequential(nn.Linear(FEATURES, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 3 * 3, CLASSES)),
        lambda: randn(BATCH, 2, 3, FEATURES),
    ),
    Case(
        "sparse embedding",
        lambda: nn.Sequential(nn.Embedding(WORDS, 3, sparse=True), nn.Flatten(), nn.Linear(3 * STEPS, CLASSES)),
        lambda: words(BATCH, STEPS),
    ),
    Case(
        "embedding with padding",
        lambda: nn.Sequential(nn.Embedding(WORDS, 3, padding_idx=2), nn.Flatten(), nn.Linear(3 * STEPS, CLASSES)),
        lambda: words(BATCH, STEPS),
    ),
    Case(
        "untied language model",
        lambda: TiedLanguageModel(tied=False),
        lambda: words(BATCH, STEPS),
        lambda: words(BATCH, STEPS),
        token_cross_entropy,
    ),
    Case(
        "tied language model",
        TiedLanguageModel,
        lambda: words(BATCH, STEPS),
        lambda: words(BATCH, STEPS),
        token_cross_entropy,
    ),
    Case(
        "tied language model with padding",
        lambda: TiedLanguageModel(padding_idx=1),
        lambda: words(BATCH, STEPS),
        lambda: words(BATCH, STEPS),
        token_cross_entropy,
    ),
    states_case("matrix, square", lambda: Multiplies(FEATURES, FEATURES)),
    states_case("matrix, square, as linear", lambda: Multiplies(FEATURES, FEATURES, transposed=False, bias=False)),
    states_case("matrices", lambda: nn.Sequential(Multiplies(FEATURES, 3), Multiplies(3, FEATURES, bias=False))),
    Case("matrix on (B, features)", lambda: Multiplies(FEATURES, CLASSES), features),
    states_case("RMSNorm", lambda: nn.RMSNorm(FEATURES, 1e-6)),
    states_case("RMSNorm with the default epsilon", lambda: nn.RMSNorm((FEATURES,))),
    *(states_case(f"scale, {how}", lambda how=how: Scales(how)) for how in ("w", "1 + w", "with shift", "number")),
    text_case("scaled embedding", lambda: nn.Sequential(ScaledEmbedding(True), nn.Linear(FEATURES, WORDS))),
    text_case("positions in one row", lambda: Positions(2)),
    text_case("positions in a vector", lambda: Positions(1)),
    text_case("positions in a vector, as many as examples", lambda: Positions(1), BATCH),
    conv_case("conv1d", SIGNAL, lambda: [nn.Conv1d(4, 3, 3)]),
    conv_case("conv1d, groups, stride, dilation", SIGNAL, lambda: [nn.Conv1d(4, 6, 3, 2, 2, 2, groups=2)]),
    conv_case("conv1d, same, circular", SIGNAL, lambda: [nn.Conv1d(4, 3, 4, padding="same", padding_mode="circular")]),
    conv_case("conv2d", IMAGE, lambda: [nn.Conv2d(2, 3, 3)]),
    conv_case("conv2d, stride, padding", IMAGE, lambda: [nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 0), bias=False)]),
    conv_case("conv2d, dilation", IMAGE, lambda: [nn.Conv2d(2, 3, 3, padding=2, dilation=(2, 1))]),
    conv_case("conv2d, depthwise", IMAGE, lambda: [nn.Conv2d(2, 4, 3, groups=2)]),
    conv_case("conv2d, same", IMAGE, lambda: [nn.Conv2d(2, 3, (4, 3), padding="same")]),
    conv_case("conv2d, valid", IMAGE, lambda: [nn.Conv2d(2, 3, 2, padding="valid")]),
    conv_case("conv2d, reflect", IMAGE, lambda: [nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")]),
    conv_case("conv2d, replicate", IMAGE, lambda: [nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="replicate")]),
    conv_case("conv2d, 1 × 1", IMAGE, lambda: [nn.Conv2d(2, 3, 1)]),
    conv_case("conv3d", VOLUME, lambda: [nn.Conv3d(2, 3, (2, 1, 3), padding=(1, 0, 0), stride=(1, 2, 1))]),
    conv_case("convnet, ReLU in place", IMAGE, lambda: [nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2)]),
    Case("convolution used twice", ConvolutionUsedTwice, lambda: randn(BATCH, *IMAGE)),
    conv_case("BatchNorm2d", IMAGE, lambda: [nn.Conv2d(2, 3, 3), with_statistics(nn.BatchNorm2d(3))]),
    conv_case("BatchNorm1d on (B, C, T)", SIGNAL, lambda: [with_statistics(nn.BatchNorm1d(4))]),
    conv_case("BatchNorm3d", VOLUME, lambda: [with_statistics(nn.BatchNorm3d(2))]),
    conv_case("GroupNorm", IMAGE, lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)]),
    # The convolution's bias has no gradient here but rounding.
    conv_case("GroupNorm, one channel each", IMAGE, lambda: [nn.Conv2d(2, 4, 3), nn.GroupNorm(4, 4)]),
    conv_case("LayerNorm over three dims", IMAGE, lambda: [nn.LayerNorm(IMAGE)]),
    conv_case("LayerNorm over the last dim", IMAGE, lambda: [nn.LayerNorm(IMAGE[-1], bias=False)]),
    Case(
        "BatchNorm1d and LayerNorm on (B, C)",
        lambda: nn.Sequential(with_statistics(nn.BatchNorm1d(FEATURES)), nn.Linear(FEATURES, 6), nn.LayerNorm(6)),
        features,
    ),
]

GENERAL_CASES = [
    Case("functional weight", FunctionalWeight, features, path="by_vmap"),
    Case("bare parameter", BareParameter, features, path="by_vmap"),
    Case("weight norm", lambda: parametrizations.weight_norm(nn.Linear(FEATURES, CLASSES)), features, path="by_vmap"),
    Case("time first", TimeFirst, lambda: words(BATCH, STEPS), path="by_vmap"),
    Case("time first, as many steps as examples", TimeFirst, lambda: words(BATCH, BATCH), path="by_vmap"),
    Case("time first, as many steps as are checked", TimeFirst, lambda: words(BATCH, 3), path="by_vmap"),
    Case(
        "steps folded into examples",
        FoldedLanguageModel,
        lambda: words(BATCH, STEPS),
        lambda: words(BATCH, STEPS),
        token_cross_entropy,
        path="by_vmap",
    ),
    conv_case("InstanceNorm2d", IMAGE, lambda: [nn.InstanceNorm2d(2, affine=True)], path="by_vmap"),
    conv_case("ConvTranspose2d", IMAGE, lambda: [nn.ConvTranspose2d(2, 3, 2)], path="by_vmap"),
    conv_case(
        "BatchNorm2d without statistics",
        IMAGE,
        lambda: [nn.BatchNorm2d(2, track_running_stats=False)],
        path="by_vmap",
    ),
    states_case("scale, exponential", lambda: Scales("exponential"), "by_vmap"),
    text_case(
        "embedding scaled by position",
        lambda: nn.Sequential(ScaledEmbedding(False), nn.Linear(FEATURES, WORDS)),
        path="by_vmap",
    ),
    text_case("positions in a vector, as many as are checked", lambda: Positions(1), 3, "by_vmap"),
    recurrent_case(nn.LSTM, batch_first=True),
    recurrent_case(nn.LSTM, num_layers=2, bidirectional=True, proj_size=2),
    recurrent_case(nn.GRU, batch_first=True),
    recurrent_case(nn.RNN),
]

LOOP_CASES = [Case("branches by value", Branches, features, path="by_loop")]
