"""Two heads on one trunk, trained one after the other, in a loop of your own; run it with and without protection.

$ python examples/two_heads.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.data.images import ImageSplit, load_images

digits = load_images("digits")


def accuracy(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(digits.test.images).argmax(1) == digits.test.labels).float().mean())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, split: ImageSplit, steps: int = 400) -> None:
    for _ in range(steps):
        batch = torch.randint(len(split.labels), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(split.images[batch]), split.labels[batch]).backward()
        optimizer.step()


def run(alpha: float) -> tuple[float, float, float]:
    """Accuracy of A before B, of A after B, and of B."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    model_a = nn.Sequential(trunk, nn.Linear(64, 10))
    model_b = nn.Sequential(trunk, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    plasticity = WeightPlasticity(trunk, alpha=alpha)

    train(model_a, torch.optim.Adam(model_a.parameters(), lr=0.005), digits.train)
    before = accuracy(model_a)

    held_out: list[tuple[Tensor, Tensor]] = [(digits.importance.images, digits.importance.labels)]
    plasticity.consolidate(model_a, diagonal_fisher(model_a, held_out, F.cross_entropy))
    optimizer = torch.optim.Adam(model_b.parameters(), lr=0.005)
    plasticity.attach(optimizer)
    train(model_b, optimizer, digits.train)
    return before, accuracy(model_a), accuracy(model_b)


if __name__ == "__main__":
    for name, alpha in (("without protection", 0.0), ("with plasticity", 1e5)):
        before, after, b = run(alpha)
        print(f"{name:>18}: A {before:.1%} -> {after:.1%}, B {b:.1%}")
