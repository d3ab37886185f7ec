"""Evolution, NAO, GDAS and no search: against slow references, on rewards with a known optimum, with bad input."""

import math
import statistics
from collections import Counter

import pytest
import torch
from scipy import stats

from configs import search_config
from forgetless.errors import InputError
from forgetless.spaces.cell import CellSpace
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.nas201.supernet import Nas201Supernet
from forgetless.spaces.recurrent import RecurrentSpace
from forgetless.strategies import make_strategy
from forgetless.strategies.evolution import EvolutionOptions, EvolutionStrategy
from forgetless.strategies.gdas import GdasOptions, GdasStrategy, winning_noise
from forgetless.strategies.nao import NaoOptions, NaoStrategy
from forgetless.strategies.random import RandomStrategy
from forgetless.strategies.uniform import UniformStrategy
from rewards import share_equal

TINY = RecurrentSpace(3, ("tanh", "relu"))  # 48 cells
SPACE = RecurrentSpace(5)
NAS201 = Nas201Space()
SMALL = NaoOptions(num_units=16, training_steps=5)
FEW = EvolutionOptions(population_size=20, tournament_size=5)


def target_of(space, seed):
    return space.encode(UniformStrategy(space, seed=100 + seed).propose(1)[0])


def searched(strategy, reward, steps, n=10):
    for _ in range(steps):
        batch = strategy.propose(n)
        strategy.learn(batch, [reward(architecture) for architecture in batch])
    return strategy


def selected(options, seed, space, steps):
    """The best reward of what the strategy would hand over after some steps, and the mean of ten proposals then."""
    target = target_of(space, seed)
    reward = share_equal(space, target)
    strategy = make_strategy(options, space, seed=seed, num_steps=steps)
    if strategy.uses_gradients:
        wrong = torch.tensor(target)
        strategy.loss = lambda cell, weights: (weights * (torch.tensor(space.encode(cell)) != wrong)).sum()
    searched(strategy, reward, steps)
    return max(map(reward, strategy.propose_final(20)))


# ---- better than uniform -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "space", "options"),
    [("evolution", SPACE, FEW), ("nao", SPACE, SMALL), ("gdas", NAS201, GdasOptions(num_steps=15))],
)
def test_what_is_selected_is_better_than_the_best_of_uniform_draws(name, space, options):
    """With 150 evaluations, over five seeds; uniform is granted that it hands over the best of all it measured."""
    found = [selected(options, seed, space, 15) for seed in range(5)]
    uniform = []
    for seed in range(5):
        reward = share_equal(space, target_of(space, seed))
        uniform.append(max(map(reward, UniformStrategy(space, seed).propose(150))))
    assert statistics.fmean(found) > statistics.fmean(uniform) + 0.1
    assert all(ours >= theirs for ours, theirs in zip(found, uniform, strict=True))


# ---- evolution ---------------------------------------------------------------------------------------------------


def test_the_population_is_a_queue_in_which_the_best_dies_too():
    """Against a list that is sliced."""
    strategy = EvolutionStrategy(TINY, options=EvolutionOptions(population_size=5, tournament_size=3))
    generator, everything = torch.Generator().manual_seed(1), []
    best = strategy.propose(1)
    strategy.learn(best, [100.0])
    everything += [(best[0], 100.0)]
    for _ in range(3):
        batch = strategy.propose(2)
        rewards = torch.rand(2, generator=generator).tolist()
        assert (strategy.population[0] == everything[-5:][0]) or len(everything) < 5
        strategy.learn(batch, rewards)
        everything += list(zip(batch, rewards, strict=True))
        assert list(strategy.population) == everything[-5:]
    assert 100.0 not in [reward for _, reward in strategy.population]


def neighbours(space, architecture):
    decisions = space.encode(architecture)
    return {
        (*decisions[:i], option, *decisions[i + 1 :])
        for i, options in enumerate(space.num_choices)
        for option in range(options)
    } - {decisions}


def test_children_are_mutants_of_tournament_winners():
    """The member of rank r (0 is the best) of P wins a tournament of S with probability ((P−r)^S − (P−r−1)^S) / P^S."""
    strategy = EvolutionStrategy(TINY, seed=3, options=EvolutionOptions(population_size=4, tournament_size=2))
    members = [TINY.decode(d) for d in ((0, 0, 0, 0, 0, 0), (0, 1, 1, 1, 2, 1), (0, 0, 1, 0, 1, 1), (0, 1, 0, 1, 0, 0))]
    rewards = [0.1, 0.4, 0.3, 0.2]
    strategy.learn(members, rewards)
    expected = Counter()
    for member, reward in zip(members, rewards, strict=True):
        rank = sum(other > reward for other in rewards)
        wins = ((4 - rank) ** 2 - (3 - rank) ** 2) / 16
        free = [options for options in TINY.num_choices if options > 1]
        for child in neighbours(TINY, member):
            (position,) = [i for i in range(6) if child[i] != TINY.encode(member)[i]]
            expected[child] += wins / len(free) / (TINY.num_choices[position] - 1)
    n = 4000
    counts = Counter(TINY.encode(child) for child in strategy.propose(n))
    assert set(counts) <= set(expected)
    keys = list(expected)
    assert stats.chisquare([counts[key] for key in keys], [n * expected[key] for key in keys]).pvalue > 0.001


def test_evolution_is_uniform_until_its_population_is_full():
    strategy, uniform = EvolutionStrategy(TINY, 5, FEW), UniformStrategy(TINY, 5)
    drawn = uniform.propose(15)
    assert strategy.propose(15) == drawn
    strategy.learn(drawn, [0.5] * 15)
    assert strategy.propose(4) == uniform.propose(4)


def test_evolution_hands_over_the_living_before_their_children():
    strategy = searched(EvolutionStrategy(SPACE, options=FEW), share_equal(SPACE, target_of(SPACE, 0)), 6)
    living = dict.fromkeys(architecture for architecture, _ in reversed(strategy.population))
    assert strategy.propose_final(5) == list(living)[:5]
    final = strategy.propose_final(60)
    assert len(final) == 60
    assert final[: len(living)] == list(living)
    around = {child for parent in living for child in neighbours(SPACE, parent)}
    assert {SPACE.encode(child) for child in final[len(living) :]} <= around


def test_a_diverged_member_never_wins_against_one_that_did_not():
    strategy = EvolutionStrategy(TINY, options=EvolutionOptions(population_size=2, tournament_size=20))
    good, bad = TINY.decode((0,) * 6), TINY.decode((0, 1, 1, 1, 2, 1))
    strategy.learn([good, bad], [-5.0, math.inf])
    assert {TINY.encode(child) for child in strategy.propose(50)} <= neighbours(TINY, good)
    strategy.learn([bad, bad], [math.nan, math.nan])
    assert {TINY.encode(child) for child in strategy.propose(50)} <= neighbours(TINY, bad)


@pytest.mark.parametrize("strategy", [EvolutionStrategy, NaoStrategy])
def test_a_space_of_one_architecture_is_proposed_again_and_again(strategy):
    space = RecurrentSpace(1, ("tanh",))
    strategy = searched(strategy(space), lambda architecture: 0.5, 6)
    assert set(strategy.propose_final(5)) == set(space)


# ---- NAO ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned():
    strategy = NaoStrategy(SPACE, 2, NaoOptions(num_units=32))
    reward = share_equal(SPACE, target_of(SPACE, 2))
    metrics = []
    for _ in range(20):
        batch = UniformStrategy(SPACE, len(metrics)).propose(8)
        metrics.append(strategy.learn(batch, [reward(architecture) for architecture in batch]))
    return strategy, metrics


def test_the_decoder_gives_back_what_was_encoded(learned):
    strategy, metrics = learned
    decisions = torch.tensor(strategy.best(100))
    with torch.no_grad():
        back = strategy.model.decoder.decode(strategy.model.encode(decisions))
    assert (back == decisions).float().mean() > 0.9
    assert metrics[-1]["reconstruction"] > 0.9
    shuffled = decisions[torch.randperm(len(decisions))]
    assert (back == shuffled).float().mean() < 0.7  # that is no accident of likely decisions


def test_the_predictor_ranks_what_it_has_seen_and_its_error_is_in_units_of_reward(learned):
    strategy, metrics = learned
    decisions = torch.tensor(list(strategy.memory))
    rewards = torch.tensor(list(strategy.memory.values()))
    with torch.no_grad():
        predicted = strategy.model.predict(strategy.model.encode(decisions))
    assert stats.kendalltau(predicted, rewards).statistic > 0.7
    mended = rewards.mean() + rewards.std(correction=0) * predicted
    error = (mended - rewards).square().mean().sqrt().item()
    assert error < 0.5 * rewards.std().item()
    assert metrics[-1]["predictor_error"] == pytest.approx(error, rel=1)


def test_climbing_raises_the_predicted_reward_along_the_sphere(learned):
    strategy, _ = learned
    latent = strategy.model.encode(torch.tensor(strategy.best(50))).detach()
    climbed, radius = strategy.model.climb(latent, 1e-3), math.sqrt(32)
    torch.testing.assert_close(climbed.norm(dim=1), torch.full((50,), radius))
    torch.testing.assert_close((climbed - latent).norm(dim=1), torch.full((50,), 1e-3 * radius), atol=1e-5, rtol=0.01)
    with torch.no_grad():
        rise = strategy.model.predict(climbed) - strategy.model.predict(latent)
    assert (rise > 0).float().mean() > 0.95
    # No other direction of that length is steeper.
    for _ in range(5):
        other = latent + 1e-3 * radius * torch.nn.functional.normalize(torch.randn_like(latent))
        other = radius * torch.nn.functional.normalize(other)
        with torch.no_grad():
            assert (strategy.model.predict(other) - strategy.model.predict(latent)).mean() < rise.mean()


def test_the_latent_and_the_prediction_are_the_formulas():
    model = NaoStrategy(TINY, options=SMALL).model.double()
    cell = torch.nn.LSTMCell(16, 16, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in model.lstm.state_dict().items()})
    decisions, rows, row = (0, 1, 1, 0, 2, 1), [], 0
    for decision, options in zip(decisions, TINY.num_choices, strict=True):
        rows.append(row + decision)
        row += options
    states, state = [], None
    with torch.no_grad():
        for row in rows:
            state = cell(model.embedding[row].unsqueeze(0), state)
            states.append(state[0][0])
        mean = sum(states) / 6
        z = 4 * mean / mean.square().sum().sqrt()
        inner = (model.predictor_weight @ z + model.predictor_bias).clamp(min=0)
        expected = sum(inner * model.predictor_output) + model.predictor_offset
        found = model.encode(torch.tensor([decisions]))
        torch.testing.assert_close(found[0], z)
        torch.testing.assert_close(model.predict(found)[0], expected)


def test_nao_is_uniform_until_it_has_enough_rewards_and_then_proposes_what_is_new():
    options = NaoOptions(num_units=16, training_steps=10, min_observations=12, num_seeds=8)
    strategy = NaoStrategy(SPACE, 5, options)
    first = strategy.propose(10)
    strategy.learn(first, [0.5, *[math.nan] * 3, *[0.1] * 6])  # 7 finite ones
    assert not strategy._is_ready
    uniform = UniformStrategy(SPACE)
    uniform.generator.set_state(strategy.generator.get_state())
    assert strategy.propose(6) == uniform.propose(6)
    searched(strategy, share_equal(SPACE, target_of(SPACE, 0)), 3)
    assert strategy._is_ready
    climbed = strategy._climbed()
    assert len(set(climbed)) == len(climbed) > 0
    assert not set(climbed) & set(strategy.memory)


def test_the_memory_is_bounded_and_what_is_measured_again_is_new():
    strategy = NaoStrategy(TINY, options=NaoOptions(num_units=8, training_steps=1, memory_size=4, min_observations=2))
    cells = list(TINY)[:6]
    strategy.learn(cells[:4], [0.1, 0.2, 0.3, 0.4])
    strategy.learn([cells[0]], [0.9])
    strategy.learn(cells[4:], [0.5, math.inf])
    kept = {TINY.encode(cells[i]): reward for i, reward in ((3, 0.4), (0, 0.9), (4, 0.5))}
    assert list(strategy.memory)[:3] == list(kept)
    assert {key: strategy.memory[key] for key in kept} == kept
    assert math.isnan(strategy.memory[TINY.encode(cells[5])])
    assert strategy.best(9) == [TINY.encode(cells[i]) for i in (0, 4, 3)]


def test_a_diverged_architecture_is_learnt_from_as_the_worst_remembered():
    weights = []
    for reward in (math.nan, -2.0):
        strategy = NaoStrategy(TINY, options=NaoOptions(num_units=8, min_observations=2))
        cells = list(TINY)[:4]
        strategy.learn(cells, [0.3, -2.0, 0.5, reward])
        weights.append(strategy.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# ---- GDAS --------------------------------------------------------------------------------------------------------


def test_the_gradient_is_that_of_the_relaxed_choice_by_finite_differences():
    """Of the whole network: each edge's sampled operation times 1 + h̃(A) − h̃(A at the sample)."""
    torch.manual_seed(1)
    supernet = Nas201Supernet((1, 4, 4), 3, channels=4, cells_per_stage=1, norm="group").double()
    images, labels = torch.randn(6, 1, 4, 4).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    strategy = GdasStrategy(NAS201, 4)
    strategy.logits = torch.randn(6, 5).double().requires_grad_()

    def loss(cell, weights):
        return torch.nn.functional.cross_entropy(supernet(images, cell, weights), labels)

    strategy.loss = loss
    cell = NAS201.decode((3, 2, 1, 4, 0, 3))
    state = strategy.generator.get_state()
    value, gradient = strategy.gradient(cell, 0.7)
    decisions = NAS201.encode(cell)
    noise = winning_noise(
        strategy.logits.detach(), torch.tensor(decisions).unsqueeze(1), strategy.generator.set_state(state)
    )

    def chosen(logits):
        rows = []
        for edge, operation in enumerate(decisions):
            powers = [math.exp((logits[edge, k] + noise[edge, k]) / 0.7) for k in range(5)]
            rows.append(powers[operation] / sum(powers))
        return torch.tensor(rows, dtype=torch.float64)

    start, expected = strategy.logits.detach(), torch.zeros(6, 5).double()
    with torch.no_grad():
        for edge in range(6):
            for k in range(5):
                step = torch.zeros(6, 5).double()
                step[edge, k] = 1e-5
                up, down = (loss(cell, 1 + chosen(start + s) - chosen(start)) for s in (step, -step))
                expected[edge, k] = (up - down) / 2e-5
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-5)
    assert value == pytest.approx(loss(cell, torch.ones(6).double()).item())
    assert (gradient.abs().max(1).values > 1e-5).tolist() == [True, True, True, True, False, True]
    assert all(weight.grad is None for weight in supernet.parameters())


def test_winning_noise_has_the_distribution_of_noise_whose_argmax_won():
    """Against rejection: noise drawn freely, kept where the winner wins."""
    logits, generator = torch.tensor([[0.5, -1.0, 1.2]]), torch.Generator().manual_seed(0)
    free = -torch.rand(60_000, 3, generator=generator).log().neg().log()
    kept = free[(logits + free).argmax(1) == 1]
    n = len(kept)
    ours = winning_noise(logits.expand(n, 3), torch.ones(n, 1, dtype=torch.long), generator)
    assert ((logits + ours).argmax(1) == 1).all()
    for k in range(3):
        assert stats.ks_2samp(ours[:, k], kept[:, k]).pvalue > 0.001
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert stats.ks_2samp(ours[:, i] - ours[:, j], kept[:, i] - kept[:, j]).pvalue > 0.001


def test_gdas_draws_from_the_softmax_and_hands_over_the_most_probable_first():
    strategy = GdasStrategy(Nas201Space(("none", "skip_connect")), 2)
    with torch.no_grad():
        strategy.logits.copy_(torch.linspace(-1, 1, 12).view(6, 2).flip(0) * torch.tensor([1.0, -2.0]))
    p = strategy.logits.detach().softmax(-1)
    n = 5000
    decisions = torch.tensor([strategy.space.encode(cell) for cell in strategy.propose(n)])
    for edge in range(6):
        counts = torch.bincount(decisions[:, edge], minlength=2)
        assert stats.chisquare(counts, n * p[edge].double() / p[edge].double().sum()).pvalue > 0.001
    assert strategy.space.encode(strategy.propose_final(3)[0]) == tuple(p.argmax(1).tolist())


def test_a_step_is_adam_on_the_mean_gradient_and_the_temperature_falls():
    options = GdasOptions(learning_rate=0.05, weight_decay=0.0, num_steps=3)
    strategy = GdasStrategy(NAS201, 3, options)
    strategy.loss = lambda cell, weights: (weights * torch.arange(6.0)).sum()
    batch = strategy.propose(3)
    state, before = strategy.generator.get_state(), strategy.logits.detach().clone()
    gradients = torch.stack([strategy.gradient(cell, 10.0)[1] for cell in batch[:2]])
    strategy.generator.set_state(state)
    metrics = [strategy.learn(batch, [0.5, 0.4, math.nan]) for _ in range(4)][0:4]
    assert [m["temperature"] for m in metrics] == pytest.approx([10.0, 5.05, 0.1, 0.1])
    assert metrics[0]["gradient_norm"] == pytest.approx(gradients.mean(0).norm().item())
    assert metrics[0]["loss"] == 15.0
    one = GdasStrategy(NAS201, 3, options)
    one.loss = strategy.loss
    one.generator.set_state(state)
    one.learn(batch, [0.5, 0.4, math.nan])
    mean = gradients.mean(0)
    # The first step of Adam, with its bias correction, is the learning rate times the sign of the gradient.
    torch.testing.assert_close(one.logits.detach(), before - 0.05 * mean / (mean.abs() + 1e-8))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_moves_nothing(bad):
    strategy = GdasStrategy(NAS201)
    strategy.loss = lambda cell, weights: bad * weights.sum()
    before = strategy.logits.detach().clone()
    metrics = strategy.learn(strategy.propose(3), [0.5] * 3)
    assert torch.equal(strategy.logits, before)
    assert "loss" not in metrics
    assert strategy.num_steps == 1


def test_gdas_is_refused_where_it_has_no_edges_or_no_loss():
    for space in (TINY, CellSpace(1)):
        with pytest.raises(
            InputError, match=r"Expected a space of operations on edges for the strategy gdas, .*, but got \w+Space"
        ):
            make_strategy("gdas", space)
    with pytest.raises(InputError, match="Expected a space of operations on edges for the strategy gdas"):
        search_config(strategy="gdas")
    strategy = GdasStrategy(NAS201)
    with pytest.raises(InputError, match="Expected a loss to differentiate for the strategy gdas, but got none"):
        strategy.learn(strategy.propose(1), [0.5])


# ---- no search, and bad options ----------------------------------------------------------------------------------


def test_random_draws_as_uniform_does():
    assert RandomStrategy(TINY, 3).propose_final(20) == UniformStrategy(TINY, 3).propose(20)


@pytest.mark.parametrize(
    ("options", "name", "value", "condition"),
    [
        (EvolutionOptions, "population_size", 0, "at least 1"),
        (EvolutionOptions, "tournament_size", -1, "at least 1"),
        (NaoOptions, "num_units", 0, "at least 1"),
        (NaoOptions, "training_steps", 0, "at least 1"),
        (NaoOptions, "min_observations", 1, "in 2 … 200, memory_size"),
        (NaoOptions, "min_observations", 300, "in 2 … 200, memory_size"),
        (NaoOptions, "learning_rate", math.nan, "finite and above 0"),
        (NaoOptions, "step_size", 0.0, "finite and above 0"),
        (NaoOptions, "predictor_weight", 1.0, r"in \(0, 1\)"),
        (GdasOptions, "learning_rate", 0.0, "finite and above 0"),
        (GdasOptions, "final_temperature", -1.0, "finite and above 0"),
        (GdasOptions, "initial_temperature", math.inf, "finite and above 0"),
        (GdasOptions, "weight_decay", -0.1, "finite and at least 0"),
        (GdasOptions, "num_steps", 0, "at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, name, value, condition):
    with pytest.raises(InputError, match=rf"Expected {name} to be {condition}, but got {value}\. \w+"):
        options(**{name: value})


@pytest.mark.parametrize(
    ("name", "options", "others", "told"),
    [
        ("evolution", FEW, EvolutionOptions(population_size=30, tournament_size=5), "population_size=20"),
        ("nao", SMALL, NaoOptions(num_units=8, training_steps=5), "num_units=16"),
        ("gdas", GdasOptions(), GdasOptions(num_steps=7), "num_steps=50"),
    ],
)
def test_a_state_of_other_options_is_refused_and_named(name, options, others, told):
    saved = make_strategy(options, NAS201).state_dict()
    with pytest.raises(InputError, match=rf"with the same options, but got {told} \(here "):
        make_strategy(others, NAS201).load_state_dict(saved)
