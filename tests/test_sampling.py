"""Which architectures train the shared weights."""

import io
import itertools
from collections import Counter

import pytest
import torch

from configs import changed, search_config, without_time
from forgetless.errors import InputError
from forgetless.options import command_line
from forgetless.sampling import SAMPLERS, make_sampler
from forgetless.sampling import unique as unique_module
from forgetless.sampling.sandwich import SandwichSamplerOptions
from forgetless.sampling.unique import distinct_functions
from forgetless.search import Search, SearchArm, load_task, run
from forgetless.spaces.cell import CellSpace
from forgetless.spaces.choices import ChoiceSpace
from forgetless.spaces.graph import GraphSpace
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace

SIZES = ChoiceSpace(3, ("2", "4", "8"), ordered=True)


def sampler_of(options, space, seed=0):
    strategy = torch.Generator().manual_seed(99)
    return make_sampler(options, space, lambda: space.sample(strategy), torch.Generator().manual_seed(seed))


def test_the_strategy_or_a_uniform_draw():
    space = RecurrentSpace(3)
    strategy, source = torch.Generator().manual_seed(99), torch.Generator().manual_seed(0)
    proposals, draws = (sampler_of(name, space) for name in ("strategy", "uniform"))
    assert [proposals.next() for _ in range(5)] == [space.sample(strategy) for _ in range(5)]
    assert [draws.next() for _ in range(5)] == [space.sample(source) for _ in range(5)]


@pytest.mark.parametrize("space", [RecurrentSpace(3), CellSpace(2), Nas201Space(), SIZES])
def test_fair_sampling_is_fair_at_any_time(space):
    sampler = sampler_of("fair", space)
    counts = [Counter(dict.fromkeys(range(options), 0)) for options in space.num_choices]
    for trained in range(1, 41):
        for count, decision in zip(counts, space.encode(sampler.next()), strict=True):
            count[decision] += 1
            assert set(count.values()) <= {trained // len(count), -(-trained // len(count))}


def test_fair_sampling_shuffles_each_decision_by_itself():
    sampler = sampler_of("fair", SIZES)
    assert len({SIZES.encode(sampler.next()) for _ in range(300)}) == SIZES.size


@pytest.mark.parametrize("space", [RecurrentSpace(3), CellSpace(2), Nas201Space()])
def test_neighbours_differ_in_one_decision(space):
    sampler = sampler_of("adjacent", space)
    chain = [space.encode(sampler.next()) for _ in range(50)]
    for one, other in itertools.pairwise(chain):
        assert sum(x != y for x, y in zip(one, other, strict=True)) == 1


def test_a_space_of_one_has_no_neighbours():
    sampler = sampler_of("adjacent", RecurrentSpace(1, ("tanh",)))
    assert str(sampler.next()) == str(sampler.next()) == "tanh(0)"


def test_the_sandwich_is_largest_smallest_and_random():
    sampler = sampler_of(SandwichSamplerOptions(random=1), SIZES)
    trained = [str(sampler.next()) for _ in range(12)]
    assert trained[::3] == ["8 8 8"] * 4
    assert trained[1::3] == ["2 2 2"] * 4
    assert len(set(trained[2::3])) > 1


@pytest.mark.parametrize("space", [RecurrentSpace(3), Nas201Space(("none", "skip_connect", "nor_conv_3x3"))])
def test_every_function_trains_once_before_any_trains_again(space):
    sampler, number = sampler_of("unique", space), len(distinct_functions(space))
    first, second = ([sampler.next() for _ in range(number)] for _ in range(2))
    assert len(set(map(space.canonical_form, first))) == number
    assert set(map(space.canonical_form, second)) == set(map(space.canonical_form, first))
    assert first != second


def test_every_notation_of_a_function_may_train():
    space = RecurrentSpace(2, ("tanh", "relu"))
    sampler = sampler_of("unique", space)
    counts = Counter(sampler.next() for _ in range(100 * len(distinct_functions(space))))
    assert set(counts) == set(space)
    twice = [cell for cell in space if str(cell) in {"tanh(0) relu(0)", "relu(0) tanh(0)"}]
    assert all(30 < counts[cell] < 70 for cell in twice)  # 50 of 100 each


@pytest.mark.parametrize(("space", "number"), [(RecurrentSpace(12, ("tanh",)), 300), (GraphSpace(), 600)])
def test_a_large_space_is_drawn_from_without_duplicates(space, number):
    sampler, source = sampler_of("unique", space), torch.Generator().manual_seed(0)
    assert len({space.canonical_form(sampler.next()) for _ in range(number)}) == number
    # Which uniform draws are not.
    assert len({space.canonical_form(space.sample(source)) for _ in range(number)}) < number


def test_rounds_without_duplicates_have_every_function(monkeypatch):
    monkeypatch.setattr(unique_module, "_MOST_LISTED", 0)
    small = RecurrentSpace(2, ("tanh", "relu"))
    sampler, number = sampler_of("unique", small), len(distinct_functions(small))
    for _ in range(2):  # rounds
        assert len({small.canonical_form(sampler.next()) for _ in range(number)}) == number


@pytest.mark.parametrize("name", list(SAMPLERS))
@pytest.mark.parametrize("is_listed", [True, False])
def test_a_sampler_goes_on_where_it_was(name, is_listed, monkeypatch):
    if not is_listed:
        monkeypatch.setattr(unique_module, "_MOST_LISTED", 0)
    space = SIZES if name == "sandwich" else RecurrentSpace(3)
    whole = sampler_of(name, space)
    for _ in range(7):
        whole.next()
    buffer = io.BytesIO()
    torch.save(whole.state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    resumed = sampler_of(name, space, seed=5)
    resumed.propose = whole.propose
    resumed.load_state_dict(state)
    if name == "strategy":
        return
    expected = [whole.next() for _ in range(40)]
    assert [resumed.next() for _ in range(40)] == expected


TINY = search_config(
    space="nas201",
    protection=("wpl",),
    units=2,
    batch_size=16,
    epochs=2,
    models_per_epoch=3,
    batches_per_model=2,
    strategy_steps=1,
    samples_per_step=2,
    final_samples=0,
    protect_from=0,
)


@pytest.fixture(scope="module")
def task():
    return load_task(TINY)


@pytest.mark.parametrize("name", ["uniform", "unique", "fair", "adjacent"])
def test_a_search_trains_what_the_sampler_chooses_and_goes_on_bit_for_bit(name, task):
    config = changed(TINY, sampling=name)
    states = []

    def keep(record, state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states.append(buffer.getvalue())

    records = run(config, on_epoch=keep, task=task)
    state = torch.load(io.BytesIO(states[0]), weights_only=True)
    assert without_time(run(config, records=records[:1], checkpoint=state, task=task)) == without_time(records)
    assert without_time(records) != without_time(run(TINY, task=task))


def test_the_strategy_is_not_asked_for_what_another_sampler_trains(task, monkeypatch):
    asked = []
    search = Search(changed(TINY, sampling="fair"), task, SearchArm(0, "wpl"))
    propose = search.strategy.propose
    monkeypatch.setattr(search.strategy, "propose", lambda n: asked.append(n) or propose(n))
    search.one_epoch({}, lambda phase, values: None)
    assert asked == [2]  # to learn from


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "fare"}, "sampler to be one of adjacent, fair, sandwich, .* Did you mean 'fair'"),
        ({"sampling": "sandwich"}, "whose options are sizes, smallest first, for the sampler sandwich, but got Nas201"),
        ({"sampling": "fair", "sandwich_random": 3}, "sandwich.random together with sandwich"),
    ],
)
def test_samplers_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        search_config(space="nas201", **options)
    with pytest.raises(InputError, match="random to be at least 0, but got -1"):
        SandwichSamplerOptions(random=-1)
    with pytest.raises(InputError, match="canonical forms for the sampler unique, but got ChoiceSpace"):
        sampler_of("unique", SIZES)


def test_the_command_names_the_sampler():
    assert command_line(search_config(sampling="fair"), "search") == "forgetless search --sampling fair"
    assert command_line(search_config(), "search") == "forgetless search"
