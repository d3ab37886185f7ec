"""Multi-layer perceptrons that share hidden layers: the models of the two-model experiment."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from forgetless.errors import InputError
from forgetless.experiments.two_model.config import MOST_SHARED, Wiring

DEPTH_A = 4
DEPTH_B = 6

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
}

# Where B holds A's hidden layers when wired crosswise, as (depth in A, depth in B), counted from 1: every layer at
# another depth, in another order, with layers of its own below and above.
_CROSSED = ((4, 3), (2, 4), (3, 5))


class MLP(nn.Module):
    """Flatten, then linear hidden layers with an activation each, then a linear classifier.

    The layers are given, not made, so that two perceptrons can hold the same ones.

    Args:
        layers: Hidden layers, from the input up.
        classifier: Linear layer to the classes.
        activation: Name of the activation.
    """

    def __init__(self, layers: Sequence[nn.Linear], classifier: nn.Linear, activation: str = "relu") -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.classifier = classifier
        self.activation = ACTIVATIONS[activation]()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, ...)."""
        hidden = images.flatten(1)
        for layer in self.layers:
            hidden = self.activation(layer(hidden))
        logits: Tensor = self.classifier(hidden)
        return logits


def chain_of_models(
    wiring: Wiring,
    shared: int,
    *,
    num_models: int = 2,
    num_inputs: int,
    num_classes: int,
    width: int = 100,
    activation: str = "relu",
    seed: int = 0,
) -> list[MLP]:
    """Model A with 4 hidden layers, B with 6, and any further models, sharing hidden layers.

    - `prefix`: B's first `shared` layers are A's first. Later models hold these too, and B's other layers, rotated
      by one depth more for each model.
    - `crossed`: B holds `shared` of A's layers at other depths and in another order, between layers of its own.
      Later models hold all of B's hidden layers, rotated likewise; each reads the pixels through a layer of its own.

    Every model has its own classifier.

    Source: the two-model experiment of arXiv:1902.08232, section 4.1, which leaves the crosswise order open.

    Args:
        wiring: See above.
        shared: How many of A's hidden layers B reuses, at least 1 and at most 4 (`prefix`) or 3 (`crossed`).
        num_models: How many models, at least 2.
        num_inputs: Pixels per image.
        num_classes: Number of classes.
        width: Units of each hidden layer.
        activation: A key of ACTIVATIONS.
        seed: Of the initial weights, which are PyTorch's defaults. The global random state is left alone.

    Returns:
        A, B and the further models; shared layers are the same objects.

    Raises:
        InputError: If `shared` does not fit A's depth.

    >>> a, b = chain_of_models(Wiring.PREFIX, 2, num_inputs=64, num_classes=10)
    >>> [layer is other for layer, other in zip(a.layers, b.layers)]
    [True, True, False, False]
    """
    if not 1 <= shared <= MOST_SHARED[wiring]:
        raise InputError(
            f"Expected shared between 1 and {MOST_SHARED[wiring]} for {wiring} wiring (A has {DEPTH_A} hidden "
            f"layers{'' if wiring is Wiring.PREFIX else ', whose first reads pixels'}), but got {shared}."
        )

    def hidden() -> nn.Linear:
        return nn.Linear(width, width)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers_a = [nn.Linear(num_inputs, width), *(hidden() for _ in range(DEPTH_A - 1))]
        models = [MLP(layers_a, nn.Linear(width, num_classes), activation)]
        if wiring is Wiring.PREFIX:
            kept, pool = layers_a[:shared], [hidden() for _ in range(DEPTH_B - shared)]
        else:
            kept, pool = [], [hidden() for _ in range(DEPTH_B - 1)]
            for depth_a, depth_b in _CROSSED[:shared]:
                pool[depth_b - 2] = layers_a[depth_a - 1]
        for j in range(num_models - 1):
            first = kept or [nn.Linear(num_inputs, width)]
            turn = j % len(pool) if pool else 0
            models.append(MLP([*first, *pool[turn:], *pool[:turn]], nn.Linear(width, num_classes), activation))
    return models


def shared_parameters(models: Sequence[nn.Module]) -> list[nn.Parameter]:
    """The weights that at least two of the models hold, in order of first appearance.

    Args:
        models: Modules, each of which may hold some of another's parameters.

    Returns:
        Parameters, each once.

    >>> a, b = chain_of_models(Wiring.CROSSED, 3, num_inputs=64, num_classes=10)
    >>> len(shared_parameters([a, b]))  # three weights and three biases
    6
    """
    holders: dict[nn.Parameter, int] = {}
    for model in models:
        for parameter in model.parameters():
            holders[parameter] = holders.get(parameter, 0) + 1
    return [parameter for parameter, count in holders.items() if count > 1]
