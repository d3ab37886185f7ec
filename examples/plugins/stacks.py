"""A space of one's own with its supernet: three layers, each with one of three activations."""

from dataclasses import dataclass

from torch import nn, relu, sin, tanh

from forgetless.configuration import option
from forgetless.spaces import SPACES, SearchSpace, SpaceOptions
from forgetless.spaces.choices import ChoiceSpace
from forgetless.supernet import Supernet

ACTIVATIONS = {"relu": relu, "tanh": tanh, "sine": sin}


@dataclass(frozen=True, kw_only=True)
class StackOptions(SpaceOptions):
    units: int = option(32, help="Units of each layer.")


class StackSupernet(Supernet):
    outside_cell = ("first", "classifier")  # every architecture has these

    def __init__(self, num_inputs, num_classes, units):
        super().__init__()
        self.first, self.classifier = nn.Linear(num_inputs, units), nn.Linear(units, num_classes)
        self.layers = nn.ModuleDict({f"{i}_{name}": nn.Linear(units, units) for i in range(3) for name in ACTIVATIONS})

    def forward(self, images, architecture):
        hidden = self.first(images.flatten(1))
        for i, name in enumerate(architecture.choices):
            hidden = ACTIVATIONS[name](self.layers[f"{i}_{name}"](hidden))
        return self.classifier(hidden)

    def used_parameters(self, architecture):
        used = (*self.outside_cell, *(f"layers.{i}_{name}." for i, name in enumerate(architecture.choices)))
        return {name: weight for name, weight in self.named_parameters() if name.startswith(used)}


@SPACES.register
class Stacks(SearchSpace):
    """27 stacks of three layers, on images."""

    name, label, task, Options = "stacks", "stacks of three layers", "images", StackOptions
    space = ChoiceSpace(3, tuple(ACTIVATIONS))

    def make_supernet(self, task):
        return StackSupernet(task.data.train.images[0].numel(), task.num_classes, self.options.units)
