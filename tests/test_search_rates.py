"""Learning rates over a search: by the schedule's formula at every step, in every arm, whatever interrupts it."""

import io
import math

import pytest
import torch

from configs import TINY_TEXT, changed, search_config, without_time
from forgetless.errors import InputError
from forgetless.matching import RunningMatch
from forgetless.search import Search, SearchArm, load_task, run
from forgetless.search.rates import RateConfig, rate_factor

SMALL = search_config(
    epochs=3,
    **TINY_TEXT,
    vocabulary=200,
    protect_from=1,
    wpl_strength=1e3,
)
SCHEDULES = ["constant", "linear", "cosine", "restart", "exponential"]
PER_EPOCH, TOTAL = 4, 12


@pytest.fixture(scope="module")
def task():
    return load_task(SMALL)


def slow_factors(schedule, start):
    """The factor of each of 12 batches, 4 per epoch, counted one after the other."""
    found = []
    for epoch in range(3):
        for batch in range(4):
            left, falling = 3 - start, epoch - start + batch / 4  # in epochs
            if schedule == "constant" or epoch < start:
                found.append(1.0)
            elif schedule == "linear":
                found.append((left - falling) / left)
            elif schedule == "cosine":
                found.append(math.cos(math.pi / 2 * falling / left) ** 2)
            elif schedule == "restart":
                found.append(math.cos(math.pi / 2 * batch / 4) ** 2)
            else:
                found.append(math.prod([0.5] * (epoch - start)))
    return found


@pytest.mark.parametrize("start", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_factors_are_the_formula(schedule, start):
    config = RateConfig(schedule=schedule, start=start, factor=0.5)
    found = [rate_factor(config, step, per_epoch=PER_EPOCH, total=TOTAL) for step in range(TOTAL)]
    assert found == pytest.approx(slow_factors(schedule, min(start, 3)), abs=1e-12)
    assert all(0 < each <= 1 for each in found)
    assert rate_factor(config, TOTAL + 5, per_epoch=PER_EPOCH, total=TOTAL) == found[-1]


@pytest.mark.parametrize("protection", ["none", "wpl"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_step_is_taken_at_its_rate(schedule, protection, task):
    config = changed(SMALL, learning_rate_schedule=schedule, learning_rate_factor=0.5)
    search = Search(config, task, SearchArm(0, protection))
    rates = []
    search.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    records = [search.one_epoch({}, lambda phase, values: None) for _ in range(3)]
    assert rates == pytest.approx([10.0 * each for each in slow_factors(schedule, 0)], abs=1e-12)
    assert [record.learning_rate for record in records] == rates[3::4]


def test_the_proximal_step_is_as_long_as_the_rate_of_its_batch(task):
    """At a rate of nearly 0 the penalty moves nothing, however strong it is."""
    config = changed(SMALL, learning_rate_schedule="exponential", learning_rate_factor=1e-9, wpl_strength=1e3)
    search = Search(config, task, SearchArm(0, "wpl"))
    search.one_epoch({}, lambda phase, values: None)
    record = search.one_epoch({}, lambda phase, values: None)
    assert record.is_protected
    assert record.mean_step < 1e-6


def test_a_skipped_batch_does_not_delay_the_schedule(monkeypatch, task):
    config = changed(SMALL, learning_rate_schedule="linear")
    search = Search(config, task, SearchArm(0, "none"))
    usual, rates, number = task.loss_of, [], iter(range(100))

    def loss_of(model, architecture=None):
        loss = usual(model, architecture)

        def of(batch):
            rates.append(search.optimizer.param_groups[0]["lr"])
            return loss(batch) * (math.nan if next(number) == 1 else 1.0)

        return of

    monkeypatch.setattr(task, "loss_of", loss_of)
    record = search.one_epoch({}, lambda phase, values: None)
    assert record.num_passed_over == 1
    assert rates == pytest.approx([10.0 * each for each in slow_factors("linear", 0)[:4]])


@pytest.mark.parametrize("schedule", ["linear", "restart"])
def test_a_killed_search_goes_on_at_the_same_rates(schedule, task):
    config = changed(SMALL, learning_rate_schedule=schedule, protection=("wpl", "matched-lr"))
    states = []

    def keep(record, state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states.append(buffer.getvalue())

    records = run(config, on_epoch=keep, task=task)
    for done in (1, 4):
        state = torch.load(io.BytesIO(states[done - 1]), weights_only=True)
        assert without_time(run(config, records=records[:done], checkpoint=state, task=task)) == without_time(records)


def test_the_control_arm_follows_steps_that_shrink_with_the_rate(task):
    config = changed(
        SMALL,
        learning_rate_schedule="linear",
        protection=("none", "matched-lr", "wpl"),
        wpl_strength=1e4,
        wpl_decay=0.8,
        epochs=4,
        models_per_epoch=6,
    )
    by = {(r.protection, r.epoch): r.mean_step for r in run(config, task=task)}
    for epoch in (1, 2, 3):
        assert by["wpl", epoch] < 0.8 * by["none", epoch]
        assert by["matched-lr", epoch] == pytest.approx(by["wpl", epoch], rel=0.25)


def test_a_match_takes_the_scheduled_part_out():
    match = RunningMatch()
    match.learn(0.5, 0.5)
    assert match.step_at_1 == 1.0
    match.follow(0.2, 0.25)
    assert match.scale == pytest.approx(0.8)  # 0.8 of a quarter of 1 is 0.2
    match.learn(0.2, 0.25)
    assert match.step_at_1 == pytest.approx(1.0)


def test_interference_after_the_end_is_measured_at_the_rates_of_the_last_epoch(task):
    config = changed(SMALL, learning_rate_schedule="linear", protection=("none",), epochs=1)
    search = Search(config, task, SearchArm(0, "none"))
    search.one_epoch({}, lambda phase, values: None)
    rates = []
    search.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    sample = [search.strategy.space.decode(each) for each in ((0, 0, 0, 0), (0, 1, 1, 1))]
    search.interference(sample, 1)
    assert rates[:2] == [10.0, 7.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate_schedule": "steps"}, "learning_rate_schedule to be one of constant, linear"),
        ({"learning_rate_from": -1}, "learning_rate_from to be at least 0, but got -1"),
        ({"learning_rate_factor": 0.0}, "learning_rate_factor to be finite and above 0, but got 0"),
        ({"learning_rate_factor": 1.5}, "learning_rate_factor to be at most 1, but got 1.5"),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(InputError, match=message):
        changed(SMALL, **options)


def test_settings_say_how_the_rate_falls():
    assert RateConfig().in_words == ""
    assert RateConfig(schedule="linear").in_words == " falling (linear)"
    assert RateConfig(schedule="exponential", start=15).in_words == " falling (by 0.96 per epoch from epoch 16)"
