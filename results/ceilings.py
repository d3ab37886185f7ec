"""What half-split ceilings mean: how much more than them a perfect ranking reaches.

$ python results/ceilings.py

384 architectures have standard normal qualities, and each training adds normal noise. The truth is the mean over S
trainings. Kept in results/ceilings.json, as means over 10 draws: Kendall's tau between halves of the trainings, and of
the exact qualities with the truth; over all architectures and in the best 20 %. Takes a minute.
"""

import json
from pathlib import Path

import numpy as np

from forgetless.evaluation.ranking import rank_correlations
from forgetless.evaluation.resolution import Trainings, ceiling_of

NUM_ARCHITECTURES, NUM_DRAWS = 384, 10
NOISES, SEEDS = (0.5, 1.0, 2.0), (3, 5, 10)


def drawn(noise: float, num_seeds: int, seed: int) -> list[float]:
    """Of one draw: half-split τ, a perfect ranking's, and the same two in the top."""
    generator = np.random.default_rng(seed)
    quality = generator.normal(size=NUM_ARCHITECTURES)
    trainings = quality[:, None] + noise * generator.normal(size=(NUM_ARCHITECTURES, num_seeds))
    ceiling = ceiling_of(Trainings(trainings, "mean"), lower_is_better=False)
    perfect = rank_correlations(quality, trainings.mean(1))
    assert ceiling is not None
    assert ceiling.tau is not None
    assert ceiling.tau_top is not None
    assert perfect.overall.tau is not None
    assert perfect.top.tau is not None
    return [ceiling.tau, perfect.overall.tau.mean, ceiling.tau_top, perfect.top.tau.mean]


def main() -> None:
    rows = []
    for noise in NOISES:
        for num_seeds in SEEDS:
            means = np.mean([drawn(noise, num_seeds, seed) for seed in range(NUM_DRAWS)], axis=0).round(2).tolist()
            names = ("half_split", "perfect", "half_split_top", "perfect_top")
            rows.append({"noise": noise, "seeds": num_seeds} | dict(zip(names, means, strict=True)))
            print(rows[-1], flush=True)
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
