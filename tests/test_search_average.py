"""Averaged shared weights judge architectures, and change nothing else."""

import copy
import dataclasses
import io

import pytest
import torch

from configs import changed, search_config, without_time
from forgetless.errors import InputError
from forgetless.search import Search, SearchArm, load_task, run
from forgetless.search.averaging import AverageWeights
from forgetless.search.setup import memory_bytes

SIZES = {
    "epochs": 3,
    "models_per_epoch": 2,
    "batches_per_model": 2,
    "strategy": "uniform",
    "strategy_steps": 1,
    "samples_per_step": 2,
    "final_samples": 2,
    "final_batches": 1,
    "protect_from": 0,
}
CONFIGS = {
    "images": search_config(space="nas201", units=2, batch_size=16, wpl_strength=1e2, **SIZES),
    "text": search_config(
        units=4, nodes=2, batch_size=4, num_steps=5, vocabulary=200, evaluation_batches=1, wpl_strength=1e2, **SIZES
    ),
}
AVERAGES = {"tail": {"average": "tail", "average_from": 1}, "moving": {"average": "moving", "average_batches": 3}}


@pytest.fixture(scope="module")
def tasks():
    return {name: load_task(config) for name, config in CONFIGS.items()}


def slow_average(values, window):
    """Mean of the values, each weighted by what later updates leave of it."""
    weights = []
    for n in range(1, len(values) + 1):
        new = 1 / (n if window is None else min(n, window))
        weights = [each * (1 - new) for each in weights] + [new]
    assert sum(weights) == pytest.approx(1)
    return sum(weight * value.double() for weight, value in zip(weights, values, strict=True))


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_average_is_the_formula(window):
    layer = torch.nn.Linear(3, 2).double()
    average, seen = AverageWeights(layer, window), []
    for _ in range(7):
        torch.nn.init.normal_(layer.weight)
        average.update()
        seen.append(layer.weight.detach().clone())
        with average.applied():
            torch.testing.assert_close(layer.weight.detach(), slow_average(seen, window), rtol=1e-12, atol=1e-12)
        assert torch.equal(layer.weight, seen[-1])
    if window is None:
        torch.testing.assert_close(average.state_dict()["means"]["weight"], torch.stack(seen).mean(0))


@pytest.mark.parametrize("kind", AVERAGES)
@pytest.mark.parametrize("data", CONFIGS)
def test_rewards_are_those_of_a_supernet_with_the_averaged_weights(data, kind, tasks, monkeypatch):
    config, task = changed(CONFIGS[data], **AVERAGES[kind]), tasks[data]
    search, seen = Search(config, task, SearchArm(0, "wpl")), []
    update = AverageWeights.update

    def keep(average):
        seen.append({name: weight.detach().clone() for name, weight in search.supernet.named_parameters()})
        update(average)

    monkeypatch.setattr(AverageWeights, "update", keep)
    for _ in range(2):
        search.one_epoch({}, lambda phase, values: None)
    assert len(seen) == (4 if kind == "tail" else 8)  # batches: not those of the first epoch, or all
    averaged = copy.deepcopy(search.supernet)
    window = None if kind == "tail" else 3
    for name, weight in averaged.named_parameters():
        expected = slow_average([each[name] for each in seen], window).float()
        torch.testing.assert_close(search.average.state_dict()["means"][name], expected)
        weight.data = search.average.state_dict()["means"][name].clone()
    for number in range(3):
        architecture = search.space.space.sample(torch.Generator().manual_seed(number))
        error = task.error(averaged, "reward", architecture, config.schedule.evaluation_batches or None)
        assert search.rewards.of(architecture) == task.reward(error)
        newest = task.error(search.supernet, "forgetting", architecture, config.schedule.evaluation_batches or None)
        assert search.rewards.error(architecture, "forgetting") == newest


@pytest.mark.parametrize("data", CONFIGS)
def test_training_and_forgetting_are_those_without_an_average(data, tasks):
    """`uniform` trains the same architectures whatever rewards are."""

    def of(config):
        records = run(changed(config, final_samples=0), task=tasks[data])
        return [dataclasses.replace(each, strategy={}) for each in records]

    plain, averaged = of(CONFIGS[data]), of(changed(CONFIGS[data], average="moving"))
    assert without_time(averaged) == without_time(plain)


def test_buffers_and_statistics_are_those_of_the_newest_weights(tasks):
    config = changed(CONFIGS["images"], average="moving")
    search = Search(config, tasks["images"], SearchArm(0, "none"))
    search.one_epoch({}, lambda phase, values: None)
    architecture = search.space.space.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|skip_connect~2|")
    before = copy.deepcopy(search.supernet.state_dict())
    search.rewards.of(architecture)
    after = search.supernet.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    search.supernet.eval()
    with pytest.raises(InputError, match=r"Expected batch statistics of .* but got none of it since the last training"):
        search.supernet(torch.zeros(1, 1, 8, 8), architecture)


def test_weights_are_put_back_after_an_error():
    layer = torch.nn.Linear(2, 1)
    average = AverageWeights(layer)
    with average.applied():  # nothing is averaged yet
        pass
    average.update()
    torch.nn.init.ones_(layer.weight)
    with pytest.raises(KeyError, match="broken"), average.applied():
        raise KeyError("broken")
    assert layer.weight.tolist() == [[1.0, 1.0]]
    assert layer.training


@pytest.mark.parametrize("kind", AVERAGES)
def test_a_killed_search_goes_on_bit_for_bit(kind, tasks):
    config = changed(CONFIGS["images"], strategy="enas", protection=("wpl",), **AVERAGES[kind])
    config = config if kind == "tail" else changed(config, final_samples=0)
    states = []

    def keep(record, state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states.append(buffer.getvalue())

    records = run(config, on_epoch=keep, task=tasks["images"])
    for done in (2, 3) if kind == "tail" else (1,):
        state = torch.load(io.BytesIO(states[done - 1]), weights_only=True)
        again = run(config, records=records[:done], checkpoint=state, task=tasks["images"])
        assert without_time(again) == without_time(records)


def test_a_tail_begins_in_the_middle_by_default(tasks):
    assert changed(CONFIGS["text"]).reward.average_from == 0
    tail = search_config(epochs=7, average="tail")
    assert tail.reward.average_from == 3
    plain = CONFIGS["images"]
    more = memory_bytes(changed(plain, average="tail"), tasks["images"]) - memory_bytes(plain, tasks["images"])
    supernet = Search(plain, tasks["images"], SearchArm(0, "none")).supernet
    assert more == 4 * sum(weight.numel() for weight in supernet.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"average": "all"}, "average to be one of none, tail, moving"),
        ({"average_from": -1}, "average_from to be at least 0, but got -1"),
        ({"average_batches": 0}, "average_batches to be at least 1, but got 0"),
    ],
)
def test_bad_averages(options, message):
    with pytest.raises(InputError, match=message):
        changed(CONFIGS["text"], **options)
