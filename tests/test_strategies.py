"""Strategies: the controller against enumeration of small spaces; learning, resuming, bad input."""

import dataclasses
import io
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from forgetless.errors import InputError
from forgetless.spaces.cell import CellSpace
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace
from forgetless.strategies import STRATEGIES, make_strategy
from forgetless.strategies.enas import EnasOptions, EnasStrategy
from forgetless.strategies.enas.controller import surrogate
from forgetless.strategies.evolution import EvolutionOptions
from forgetless.strategies.nao import NaoOptions
from forgetless.strategies.uniform import UniformStrategy
from rewards import share_equal

TINY = RecurrentSpace(3, ("tanh", "relu"))  # decisions of 1, 2, 2, 2, 3, 2 options: 48 cells
SMALL = EnasOptions(num_units=16, learning_rate=0.01)
OPTIONS = {
    "enas": SMALL,
    "evolution": EvolutionOptions(population_size=8, tournament_size=3),
    "nao": NaoOptions(num_units=8, training_steps=3, min_observations=6),
}


def space_of(name):
    """A small space that a strategy is for."""
    return Nas201Space(("none", "skip_connect", "nor_conv_1x1")) if name == "gdas" else TINY


def made(name, seed=0, space=None):
    """A strategy; of one that uses gradients the loss is made up."""
    space = space or space_of(name)
    strategy = make_strategy(OPTIONS.get(name, name), space, seed=seed)
    if strategy.uses_gradients:
        strategy.loss = lambda cell, weights: (weights * torch.tensor(space.encode(cell))).sum()
    return strategy


def uneven(seed=0, space=TINY, **options):
    """A controller in float64 whose architectures are far from equally likely."""
    strategy = EnasStrategy(space, seed, dataclasses.replace(SMALL, **options))
    strategy.controller.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in strategy.controller.parameters():
            parameter.copy_(1.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return strategy


def parameters(strategy):
    return {name: p.detach().clone() for name, p in strategy.controller.named_parameters()}


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ---- the controller's distribution -------------------------------------------------------------------------------


@torch.no_grad()
def test_probabilities_are_those_of_the_formula_step_by_step():
    strategy = uneven()
    controller = strategy.controller
    cell = torch.nn.LSTMCell(16, 16, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in controller.lstm.state_dict().items()})
    for architecture in TINY:
        row, first_row, state, expected = 0, 1, None, 0.0
        for position, (decision, options) in enumerate(zip(TINY.encode(architecture), TINY.num_choices, strict=True)):
            state = cell(controller.embedding[row].unsqueeze(0), state)
            z = [controller.head_weight[position, k] @ state[0][0] for k in range(options)]
            logits = [2.5 * math.tanh((z[k] + controller.head_bias[position, k]) / 5.0) for k in range(options)]
            expected += logits[decision] - math.log(sum(map(math.exp, logits)))
            row, first_row = first_row + decision, first_row + options
        assert strategy.log_probability([architecture]).item() == pytest.approx(expected, abs=1e-12)


def test_probabilities_of_all_architectures_sum_to_one_and_entropy_is_their_entropy():
    strategy = uneven()
    log_p = strategy.log_probability(list(TINY))
    p = log_p.exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-12)
    assert p.max() > 10 * p.min()
    exact = -(p * log_p).sum()
    torch.testing.assert_close((p * strategy.entropy(list(TINY))).sum(), exact, atol=1e-12, rtol=0)
    errors = {}
    for n in (100, 10_000):
        draws = strategy.entropy(strategy.propose(n)).detach()
        errors[n] = abs(draws.mean() - exact).item()
        assert errors[n] < 4 * draws.std().item() / math.sqrt(n)
    assert errors[10_000] < errors[100]


def test_architectures_are_drawn_with_the_probabilities_that_are_stated():
    strategy = uneven()
    n = 20_000
    expected = n * strategy.log_probability(list(TINY)).exp().detach()
    counts = Counter(strategy.propose(n))
    observed = torch.tensor([float(counts[architecture]) for architecture in TINY])
    assert expected.min() > 5
    assert stats.chisquare(observed, expected / expected.sum() * n).pvalue > 0.001


def test_log_probability_does_not_depend_on_the_rest_of_the_batch():
    strategy = uneven()
    together = strategy.log_probability(list(TINY))
    alone = torch.cat([strategy.log_probability([architecture]) for architecture in TINY])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("space", [RecurrentSpace(12), CellSpace(5), Nas201Space()], ids=lambda s: type(s).__name__)
def test_every_space_starts_nearly_uniform(space):
    strategy = EnasStrategy(space, seed=1)
    architectures = strategy.propose(30)
    assert all(architecture in space for architecture in architectures)
    assert len(set(architectures)) > 25
    entropy = strategy.entropy(architectures).detach()
    assert (entropy <= math.log(space.size) * (1 + 1e-6)).all()
    assert (entropy > 0.999 * math.log(space.size)).all()


def test_the_tanh_constant_bounds_probabilities():
    strategy = uneven(space=Nas201Space(), tanh_constant=1.0)
    with torch.no_grad():
        strategy.controller.head_weight.mul_(1e6)
    log_p, _ = strategy.per_decision(strategy.propose(100))
    assert log_p.max().exp().item() == pytest.approx(1 / (1 + 4 * math.exp(-2)), rel=1e-6)


def test_a_space_of_one_architecture_is_certain():
    strategy = EnasStrategy(RecurrentSpace(1, ("tanh",)), options=SMALL)
    (only,) = strategy.propose(1)
    metrics = strategy.learn([only, only], [0.1, 0.7])
    assert strategy.log_probability([only]).item() == 0
    assert metrics["entropy"] == 0
    assert metrics["gradient_norm"] == 0


# ---- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entropy_weight", [0.0, 0.3, 1e4])
def test_the_surrogate_has_the_gradient_of_expected_reward_and_entropy(entropy_weight):
    strategy = uneven()
    weights = list(strategy.controller.parameters())
    architectures = list(TINY)
    rewards = torch.rand(len(architectures), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    log_p = strategy.log_probability(architectures)
    objective = (log_p.exp() * (rewards - entropy_weight * log_p)).sum()
    exact = torch.autograd.grad(objective, weights)
    for baseline in (0.0, 0.4):
        terms = surrogate(
            *strategy.per_decision(architectures),
            rewards - baseline,
            num_choices=TINY.num_choices,
            entropy_weight=entropy_weight,
        )
        estimated = torch.autograd.grad((log_p.exp().detach() * terms).sum(), weights)
        scale = max(1, entropy_weight)
        for ours, expected in zip(estimated, exact, strict=True):
            torch.testing.assert_close(ours / scale, expected / scale, atol=1e-10, rtol=0)
    assert max(gradient.abs().max() for gradient in exact) > 1e-3


def test_one_step_is_adam_on_the_negative_mean_of_the_surrogate():
    strategy, twin = uneven(max_gradient_norm=1e-3), uneven()
    batch = strategy.propose(5)
    rewards = [0.1, 0.9, 0.3, 0.3, 0.2]
    advantages = torch.tensor(rewards, dtype=torch.float64) - sum(rewards) / 5
    terms = surrogate(*twin.per_decision(batch), advantages, num_choices=TINY.num_choices, entropy_weight=1e-4)
    (-terms.mean()).backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in twin.controller.parameters()))
    assert norm > 0.01
    for p in twin.controller.parameters():
        p.grad *= 1e-3 / (norm + 1e-6)  # as clip_grad_norm_ has it
    torch.optim.Adam(twin.controller.parameters(), lr=0.01).step()

    metrics = strategy.learn(batch, rewards)
    assert metrics["gradient_norm"] == pytest.approx(norm)
    for ours, expected in zip(strategy.controller.parameters(), twin.controller.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_expected_reward_rises_above_uniform(seed):
    space = RecurrentSpace(4)
    target = space.encode(UniformStrategy(space, seed=100 + seed).propose(1)[0])
    reward = share_equal(space, target)
    strategy = EnasStrategy(space, seed, SMALL)
    means = []
    for _ in range(80):
        batch = strategy.propose(10)
        metrics = strategy.learn(batch, [reward(architecture) for architecture in batch])
        means.append(metrics["mean_reward"])
    uniform = np.mean([reward(architecture) for architecture in UniformStrategy(space, seed).propose(500)])
    assert np.mean(means[:5]) < uniform + 0.1
    assert np.mean(means[-20:]) > uniform + 0.3
    assert metrics["entropy"] < 0.7 * math.log(space.size)
    assert strategy.log_probability([space.decode(target)]).exp().item() > 100 / space.size


def test_the_entropy_bonus_alone_makes_the_controller_uniform():
    strategy = EnasStrategy(TINY, options=dataclasses.replace(SMALL, entropy_weight=1.0))
    with torch.no_grad():
        strategy.controller.head_bias.copy_(5 * torch.randn(strategy.controller.head_bias.shape))
    before = strategy.entropy(strategy.propose(500)).mean().item()
    for _ in range(150):
        strategy.learn(strategy.propose(10), [0.5] * 10)
    after = strategy.entropy(strategy.propose(500)).mean().item()
    assert before < 0.9 * math.log(TINY.size)
    assert after > 0.98 * math.log(TINY.size)


def test_the_baseline_is_the_moving_average_of_earlier_batches():
    strategy = EnasStrategy(TINY, options=dataclasses.replace(SMALL, baseline_decay=0.9))
    batches = [[1.0, 3.0], [4.0], [0.0, 5.0, 1.0]]
    seen = [strategy.learn(strategy.propose(len(rewards)), rewards)["baseline"] for rewards in batches]
    expected = [2.0, 2.0, 0.9 * 2.0 + 0.1 * 4.0]
    assert seen == pytest.approx(expected)
    assert strategy.baseline == pytest.approx(0.9 * expected[-1] + 0.1 * 2.0)


# ---- diverged architectures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_counted_and_left_out_of_averages(name, bad):
    strategy = made(name)
    metrics = strategy.learn(strategy.propose(3), [0.5, bad, 0.25])
    assert metrics["num_diverged"] == 1
    assert metrics["mean_reward"] == 0.375
    assert metrics["best_reward"] == 0.5
    assert all(map(math.isfinite, metrics.values()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_architecture_is_learnt_from_as_the_worst_seen(bad):
    diverged, worst = EnasStrategy(TINY, options=SMALL), EnasStrategy(TINY, options=SMALL)
    for strategy, reward in ((diverged, bad), (worst, -0.5)):
        strategy.learn(strategy.propose(2), [-0.5, 0.5])
        strategy.learn(strategy.propose(3), [0.7, reward, 0.2])
    assert same(parameters(diverged), parameters(worst))
    assert diverged.baseline == pytest.approx(0.95 * 0.0 + 0.05 * 0.45)


def test_where_all_diverge_the_baseline_stays_and_they_become_less_likely():
    strategy = EnasStrategy(TINY, options=SMALL)
    strategy.learn(strategy.propose(4), [0.1, 0.2, 0.3, 0.4])
    bad, baseline = [strategy.propose(1)[0]] * 2, strategy.baseline
    before = strategy.log_probability(bad)[0]
    metrics = strategy.learn(bad, [math.nan, math.inf])
    assert strategy.log_probability(bad)[0] < before
    assert strategy.baseline == baseline
    assert "mean_reward" not in metrics
    assert metrics["num_diverged"] == 2


def test_nothing_is_learnt_before_the_first_finite_reward():
    strategy = EnasStrategy(TINY, options=SMALL)
    before = parameters(strategy)
    metrics = strategy.learn(strategy.propose(2), [math.nan, math.nan])
    assert same(parameters(strategy), before)
    assert strategy.baseline is None
    assert metrics.keys() == {"num_diverged", "entropy"}


# ---- uniform -----------------------------------------------------------------------------------------------------


def test_uniform_draws_every_architecture_equally_often_whatever_the_rewards():
    strategy = UniformStrategy(TINY, seed=4)
    counts = Counter()
    for _ in range(10):
        batch = strategy.propose(500)
        counts.update(batch)
        strategy.learn(batch, [share_equal(TINY, (0,) * 6)(architecture) for architecture in batch])
    assert len(counts) == TINY.size
    assert stats.chisquare(list(counts.values())).pvalue > 0.001


# ---- state -------------------------------------------------------------------------------------------------------


def go_on(strategy, steps):
    """What the strategy proposes and reports from here on."""
    seen = []
    for step in range(steps):
        batch = strategy.propose(4)
        rewards = [0.1 * sum(strategy.space.encode(architecture)) for architecture in batch]
        if step == 1:
            rewards[0] = math.nan
        seen.append((batch, strategy.learn(batch, rewards)))
    return seen


@pytest.mark.parametrize("steps_before", [0, 3])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_restored_strategy_continues_bit_for_bit(name, steps_before):
    strategy = made(name, 1)
    go_on(strategy, steps_before)
    file = io.BytesIO()
    torch.save(strategy.state_dict(), file)
    held = strategy.state_dict()  # must not follow the strategy, nor those it is loaded into
    expected, final = go_on(strategy, 4), None
    file.seek(0)
    for state in (torch.load(file, weights_only=True), held, held):
        twin = made(name, 2)
        go_on(twin, 1)
        twin.load_state_dict(state)
        assert go_on(twin, 4) == expected
        assert twin.propose_final(6) == (final := final or strategy.propose_final(6))
        if isinstance(strategy, EnasStrategy):
            assert same(parameters(twin), parameters(strategy))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_seed_decides_and_global_random_states_do_not_move(name):
    def states():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    runs = []
    for seed in (5, 5, 6):
        runs.append(go_on(made(name, seed), 3))
        torch.rand(1)
        torch.set_rng_state(torch.tensor(before[0], dtype=torch.uint8))
    assert states() == before
    torch.manual_seed(77)
    assert go_on(made(name, 5), 3) == runs[0]
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(77).get_state())
    assert runs[0] == runs[1] != runs[2]


# ---- bad input ---------------------------------------------------------------------------------------------------


def test_an_unknown_strategy_is_refused():
    with pytest.raises(InputError, match=r"Expected strategy to be one of enas, .*, uniform, but got 'eans'\. Did you"):
        make_strategy("eans", TINY)


@pytest.mark.parametrize("name", STRATEGIES)
def test_calls_that_make_no_sense_are_refused(name):
    strategy = made(name)
    for propose in (strategy.propose, strategy.propose_final):
        with pytest.raises(InputError, match="at least 1 architecture to be proposed, but got 0"):
            propose(0)
    with pytest.raises(InputError, match="at least 1 architecture to learn from, but got none"):
        strategy.learn([], [])
    with pytest.raises(InputError, match="one reward per architecture, but got 1 for 2"):
        strategy.learn(strategy.propose(2), [0.5])
    other = made(name, space=Nas201Space() if name == "gdas" else RecurrentSpace(2))
    with pytest.raises(InputError, match=r"state of a strategy for \w+\(.+\), but got one for \w+\(.*\)\. Load"):
        strategy.load_state_dict(other.state_dict())


def test_architectures_of_another_space_are_refused():
    strategy = EnasStrategy(TINY, options=SMALL)
    with pytest.raises(InputError, match="Expected an architecture of RecurrentSpace"):
        strategy.learn(UniformStrategy(RecurrentSpace(2)).propose(1), [0.5])
    with pytest.raises(InputError, match="at least 1 architecture, but got none"):
        strategy.log_probability([])


def test_a_state_of_other_options_is_refused_and_named():
    strategy = EnasStrategy(TINY, options=SMALL)
    before = parameters(strategy)
    other = EnasStrategy(TINY, options=dataclasses.replace(SMALL, num_units=8))
    with pytest.raises(InputError, match=r"the same options, but got num_units=8 \(here 16\)\. Load"):
        strategy.load_state_dict(other.state_dict())
    assert same(parameters(strategy), before)


@pytest.mark.parametrize(
    ("name", "value", "condition"),
    [
        ("num_units", 0, "at least 1"),
        ("learning_rate", 0.0, "finite and above 0"),
        ("learning_rate", math.inf, "finite and above 0"),
        ("temperature", -1.0, "finite and above 0"),
        ("tanh_constant", math.nan, "finite and above 0"),
        ("entropy_weight", -0.1, "finite and at least 0"),
        ("baseline_decay", 1.0, r"in \[0, 1\)"),
        ("max_gradient_norm", 0.0, "above 0"),
    ],
)
def test_options_out_of_range_are_refused(name, value, condition):
    with pytest.raises(InputError, match=rf"Expected the controller's {name} to be {condition}, but got {value}\. \w+"):
        EnasOptions(**{name: value})


def test_gradients_that_are_not_finite_never_reach_the_weights():
    strategy = EnasStrategy(TINY, options=SMALL)
    before = parameters(strategy)
    with pytest.raises(RuntimeError, match="non-finite"):
        strategy.learn(strategy.propose(2), [-3e38, 3e38])
    assert same(parameters(strategy), before)


def test_padding_takes_no_part():
    strategy = uneven()
    batch = strategy.propose(20)
    before = strategy.log_probability(batch)
    padding = torch.tensor([[k >= options for k in range(3)] for options in TINY.num_choices])
    with torch.no_grad():
        strategy.controller.head_bias[padding] = 1e3
    assert torch.equal(strategy.log_probability(batch), before)
    F.mse_loss(strategy.entropy(batch), torch.zeros(20, dtype=torch.float64)).backward()
    assert (strategy.controller.head_bias.grad[padding] == 0).all()
    assert strategy.controller.head_bias.grad.isfinite().all()
