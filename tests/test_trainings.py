"""Trainings from scratch are made once, survive crashes, and give the same numbers wherever they are made."""

import concurrent.futures
import dataclasses
import functools
import importlib.util
import json
import os
import time
from pathlib import Path

import pytest
import torch

from configs import changed, search_config
from forgetless.checkpoints import Checkpoints
from forgetless.configuration import Part
from forgetless.errors import InputError
from forgetless.evaluation.trainings import Training, TrainingStore, run_training, run_trainings
from forgetless.search import load_task
from forgetless.search.rates import RateConfig
from forgetless.search.scratch import TrainingResult, train_from_scratch
from forgetless.search.setup import make_search_space, make_supernet
from forgetless.workers import _fan_out

CONFIG = search_config(space="nas201", units=2, batch_size=16, operations=("none", "skip_connect", "nor_conv_1x1"))
CELLS = (
    "|nor_conv_1x1~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|",
    "|skip_connect~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|none~2|",
    "|none~0|+|nor_conv_1x1~0|none~1|+|none~0|none~1|skip_connect~2|",
)
pytestmark = pytest.mark.usefixtures("forked_workers")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def trainings():
    digest = load_task(CONFIG).digest()
    return [training_of(digest, cell, seed) for cell in CELLS[:2] for seed in (0, 1)]


def training_of(digest="0" * 64, architecture=CELLS[0], seed=0, num_batches=3, as_published=False, config=CONFIG):
    return Training.of(config, digest, architecture, seed=seed, num_batches=num_batches, as_published=as_published)


def without_time(results):
    return [result and dataclasses.replace(result, seconds=0.0) for result in results]


def pretend(training):
    """A runner that trains nothing."""
    return TrainingResult(validation_error=training.seed / 10, test_error=0.5, parameters=1, seconds=0.0)


def counted(folder, training):
    """One file per call, whichever process it is in."""
    (Path(folder) / f"{training.key[:8]}-{os.getpid()}-{time.monotonic_ns()}").touch()
    return pretend(training)


def in_trouble(folder, troubles, training):
    """A runner for each seed's trouble: whether it fails or dies, at first or always."""
    what, _, when = troubles.get(training.seed, "nothing").partition(" ")
    mark = Path(folder) / training.key
    if what == "nothing" or (when == "at first" and mark.exists()):
        return pretend(training)
    mark.touch()
    if what == "dies":
        os._exit(1)
    message = "no luck"
    raise RuntimeError(message)


def many(number=5):
    return [training_of(seed=seed) for seed in range(number)]


# What a training is


def test_every_option_that_decides_changes_the_key():
    """Whatever field of the spec is changed, in any of its parts, the key is another."""
    first = training_of(config=search_config(operations=("tanh", "relu"), vocabulary=100)).spec
    others = {"name": "mnist", "data_sha256": "1" * 64, "architecture": "tanh(0)"}
    unset = {"weight_decay": 0.1, "rates": RateConfig(schedule="linear"), "reset_state_every": 7}

    def neighbours(part):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Part):
                yield from (dataclasses.replace(part, **{field.name: each}) for each in neighbours(value))
            elif field.name in others and isinstance(value, str) and value not in {"sgd", "adam"}:
                yield dataclasses.replace(part, **{field.name: others[field.name]})
            elif isinstance(value, bool):
                yield dataclasses.replace(part, **{field.name: not value})
            elif isinstance(value, int | float):
                yield dataclasses.replace(part, **{field.name: value + (0.25 if isinstance(value, float) else 1)})
            elif value is None:
                yield dataclasses.replace(part, **{field.name: unset[field.name]})
            else:
                changes = {"sgd": "adam", "cpu": "cuda", ("tanh", "relu"): ("tanh",)}
                yield dataclasses.replace(part, **{field.name: changes[value]})

    specs = list(neighbours(first))
    keys = {spec.key for spec in specs}
    assert len(keys) == len(specs) > 15
    assert first.key not in keys
    assert training_of(config=search_config()).key != training_of().key  # of another space


def test_what_decides_nothing_does_not_change_the_key():
    same = changed(CONFIG, wpl_strength=7.0, epochs=99, seeds=3, data_dir="elsewhere", threads=2)
    assert training_of(config=same).key == training_of().key


def test_a_training_is_what_the_search_makes_and_repeats_itself(trainings):
    first, again = run_training(trainings[0]), run_training(trainings[0])
    assert without_time([first]) == without_time([again])
    assert 0 <= first.test_error <= 1
    assert first.parameters > 0


def test_a_falling_rate_and_a_state_that_is_reset_are_those_of_a_plain_loop():
    config = search_config(nodes=1, units=4, vocabulary=100, batch_size=4, num_steps=5)
    task, space = load_task(config), make_search_space(config)
    architecture = space.space.parse("relu(0)")
    model = make_supernet("cpu", task, space, seed=3)
    weights, state = list(model.parameters()), None
    for step, (words, targets) in enumerate(task.training_batches(5, torch.Generator().manual_seed(3))):
        loss, state = model.loss(words, targets, architecture, None if step in {0, 2, 4} else state.detach())
        gradients = torch.autograd.grad(loss, weights)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
        rate = config.optimizer.learning_rate * (5 - step) / 5 * min(1, config.optimizer.max_gradient_norm / norm)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.data -= rate * gradient
    found = train_from_scratch(
        task,
        space,
        architecture,
        config.optimizer,
        device="cpu",
        seed=3,
        num_batches=5,
        rates=RateConfig(schedule="linear"),
        reset_state_every=2,
        as_published=False,
    )
    assert found.test_error == pytest.approx(task.error(model, "test", architecture), abs=1e-5)
    assert found.test_error < task.error_of_guessing - 0.5


def test_other_data_is_refused():
    with pytest.raises(InputError, match=r"Expected data with the SHA-256 000000000000…, but got"):
        run_training(training_of())


# What is kept


def test_trainings_are_made_once(tmp_path):
    runner = functools.partial(counted, tmp_path / "calls")
    (tmp_path / "calls").mkdir()
    store, wanted = TrainingStore(tmp_path / "store"), many()
    for _ in range(2):
        results, failures = run_trainings([*wanted, *wanted], store, workers=1, runner=runner)
        assert [result.validation_error for result in results] == [0.0, 0.1, 0.2, 0.3, 0.4] * 2
        assert not failures
    assert len(list((tmp_path / "calls").iterdir())) == 5


def test_a_damaged_result_is_made_again_with_a_word(tmp_path):
    store, training = TrainingStore(tmp_path), training_of()
    run_trainings([training], store, workers=1, runner=pretend)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    other = json.dumps({**json.loads(whole), "training": {}})
    for damaged in (whole[:50], "", "[]", other):
        path.write_text(damaged)
        with pytest.warns(UserWarning, match="is damaged; training"):
            (result,), _ = run_trainings([training], store, workers=1, runner=pretend)
        assert result == pretend(training)
        assert path.read_text() == whole


def test_a_store_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"Expected a folder for trainings, but got"):
        TrainingStore(tmp_path / "file")


# Who makes them


def test_an_interrupted_training_goes_on_where_it_was(trainings, tmp_path, monkeypatch):
    training, store = trainings[0], TrainingStore(tmp_path, checkpoint_every="0")
    whole = run_training(training)
    steps = []

    class Stopping(Checkpoints):
        def point(self, make_state):
            super().point(make_state)
            steps.append(1)
            if len(steps) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr("forgetless.evaluation.trainings.Checkpoints", Stopping)
    with pytest.raises(KeyboardInterrupt):
        run_trainings([training], store, workers=1)
    (kept,) = tmp_path.iterdir()
    assert kept.name == f"{training.key}.pt"
    (result,), _ = run_trainings([training], store, workers=1)
    assert len(steps) == training.spec.num_batches
    assert without_time([result]) == without_time([whole])
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    kept.write_bytes(b"damaged")
    (tmp_path / f"{training.key}.json").unlink()
    with pytest.warns(UserWarning, match="is damaged .*; beginning this training again"):
        (result,), _ = run_trainings([training], store, workers=1)
    assert without_time([result]) == without_time([whole])


def test_processes_give_the_same_numbers(trainings, tmp_path):
    here, _ = run_trainings(trainings, TrainingStore(tmp_path / "1"), workers=1)
    apart, failures = run_trainings(trainings, TrainingStore(tmp_path / "2"), workers=2)
    assert without_time(apart) == without_time(here)
    assert not failures


def test_what_fails_is_made_again_and_what_fails_for_good_is_reported_and_loses_no_other(tmp_path):
    runner = functools.partial(in_trouble, tmp_path, {1: "fails at first", 3: "fails always"})
    results, failures = run_trainings(many(), TrainingStore(tmp_path / "s"), workers=1, runner=runner)
    assert [r and r.validation_error for r in results] == [0.0, 0.1, 0.2, None, 0.4]
    assert [(failure.job.seed, failure.reason) for failure in failures] == [(3, "RuntimeError: no luck")]


def test_a_process_that_dies_is_replaced_and_who_runs_beside_it_is_not_to_blame(tmp_path):
    troubles = {0: "fails always", 1: "dies at first", 2: "fails at first", 4: "dies always"}
    runner = functools.partial(in_trouble, tmp_path, troubles)
    results, failures = run_trainings(many(6), TrainingStore(tmp_path / "s"), workers=2, runner=runner)
    assert [r and r.validation_error for r in results] == [None, 0.1, 0.2, 0.3, None, 0.5]
    reasons = {failure.job.seed: failure.reason for failure in failures}
    assert reasons.keys() == {0, 4}
    assert reasons[0] == "RuntimeError: no luck"
    assert "no luck" not in reasons[4]


def test_a_pool_that_broke_before_a_submission_is_replaced(tmp_path):
    """A process may die between two looks at the pool: what could not be submitted then is no failure."""

    class Broken:
        size = 2
        restarts = 0

        def submit(self, training):
            if not self.restarts:
                raise concurrent.futures.BrokenExecutor
            future = concurrent.futures.Future()
            future.set_result(pretend(training))
            return future

        def restart(self):
            self.restarts += 1

    done = []
    pool = Broken()
    assert not _fan_out(many(3), pool, 0, lambda training, result: done.append(training.seed))
    assert (sorted(done), pool.restarts) == ([0, 1, 2], 1)


def test_bad_input_ends_it_at_once(tmp_path):
    with pytest.raises(InputError, match=r"Expected data with the SHA-256"):
        run_trainings(many(2), TrainingStore(tmp_path), workers=1)


# Ray


@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_numbers(trainings, tmp_path):
    """By one worker; several are tried by `make test-slow`: each imports for seconds."""
    trainings = trainings[:2]
    here, _ = run_trainings(trainings, TrainingStore(tmp_path / "1"), workers=1)
    store = TrainingStore(tmp_path / "2")
    there, failures = run_trainings(trainings, store, workers=1, cluster="local")
    assert without_time(there) == without_time(here)
    assert not failures


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("127.0.0.1:1", r"Expected a Ray cluster that answers within 10 s at 127.0.0.1:1, but got: Connection refused"),
        ("ray://127.0.0.1:1", r"Expected a Ray cluster that answers"),
        ("nonsense", r"Expected HOST:PORT, ray://HOST:PORT or local as the cluster, but got 'nonsense'"),
    ],
)
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_that_does_not_answer_is_refused(tmp_path, cluster, message):
    with pytest.raises(InputError, match=message):
        run_trainings(many(1), TrainingStore(tmp_path), cluster=cluster)
