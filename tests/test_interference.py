"""Who overwrites whom: against slow references, without a trace in the search, and from the command line."""

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

from configs import changed, recorded, search_config
from forgetless.cli import main
from forgetless.errors import InputError
from forgetless.experiments import load_result
from forgetless.experiments.interference import load_interference
from forgetless.interference import Interference, InterferenceRecord, measure_interference
from forgetless.options import command_line
from forgetless.report import forgetting_curves, interference_map, interference_table, report_html
from forgetless.runs import CHECKPOINT, INTERFERENCE, RunFolder, read_sealed, write_sealed
from forgetless.search import Search, SearchArm, fixed_sample, load_task, make_space, measure_arms, run
from forgetless.search.arms import FORMAT

IMAGES = search_config(
    protect_from=0,
    space="nas201",
    protection=("none", "wpl"),
    learning_rate=0.05,
    momentum=0.9,
    epochs=2,
    models_per_epoch=2,
    batches_per_model=2,
    strategy_steps=1,
    samples_per_step=2,
    final_samples=0,
    evaluation_batches=1,
    interference_models=3,
    units=2,
    batch_size=16,
    max_gradient_norm=5.0,
)
TEXT = changed(
    IMAGES,
    space="recurrent",
    data="kjv",
    optimizer="adam",
    learning_rate=0.01,
    dropout=0.2,
    weight_drop=0.1,
    units=4,
    nodes=2,
    batch_size=4,
    num_steps=5,
)


@functools.cache
def data_of(space):
    return load_task(IMAGES if space == IMAGES.space else TEXT)


@pytest.fixture(autouse=True)
def _data_is_read_once(monkeypatch):
    monkeypatch.setattr("forgetless.search.arms.load_task", lambda config: data_of(config.space))


def searched(config, protection):
    """A search after one epoch."""
    search = Search(config, data_of(config.space), SearchArm(0, protection))
    search.one_epoch({}, lambda phase, values: None)
    return search


def interference(matrix, error=None):
    """One with this matrix: change_ii = −1."""
    matrix = np.array(matrix, dtype=float)
    n = len(matrix)
    return Interference(tuple("abcdefgh"[:n]), np.zeros(n) if error is None else np.array(error), matrix - 1)


# The measurement


def test_closed_form_of_one_shared_weight():
    """Training j sets the weight to t_j, and err_i is its squared distance from t_i: the matrix is (t_j − t_i)²."""
    targets, weight = np.array([1.0, -2.0, 0.5]), np.zeros(1)

    @contextlib.contextmanager
    def undone():
        before = weight.copy()
        yield
        weight[:] = before

    def train(j):
        weight[:] = targets[j]

    def error(i):
        return (weight[0] - targets[i]) ** 2

    found = measure_interference(range(3), train, error, undone)
    squares = (targets[:, None] - targets) ** 2
    np.testing.assert_allclose(found.error, targets**2)
    np.testing.assert_allclose(found.change, squares - targets**2)
    np.testing.assert_allclose(found.matrix, squares)
    assert found.multi_model_part.mean == pytest.approx(squares.sum() / 6)
    assert (found.largest, found.num_diverged) == (9, 0)
    assert found.share_worse == pytest.approx(4 / 6)  # 4 of (t_j − t_i)² > t_i²
    found = measure_interference(range(3), train, error, undone, diverged_above=3.0)
    assert np.isnan(found.error[1])
    assert found.num_diverged == 4  # err_1 is 4 before any training, err_0 and err_2 are 9 and 6.25 after that of 1


@pytest.mark.parametrize(("config", "protection"), [(IMAGES, "none"), (IMAGES, "wpl"), (TEXT, "wpl"), (TEXT, "freeze")])
def test_against_a_copy_of_the_search_for_each_architecture(config, protection):
    search = searched(config, protection)
    sample = fixed_sample(search.strategy.space, 3, seed=7)
    found = search.interference(sample, 1, num_batches=3)
    random_state = torch.get_rng_state()
    start = config.schedule.models_per_epoch * config.schedule.batches_per_model
    batches = list(search.task.training_batches(start + 3, torch.Generator().manual_seed(0)))[start:]
    error = [search.rewards.error(architecture, "forgetting") for architecture in sample]
    assert list(found.error) == error
    for j, trained in enumerate(sample):
        twin = copy.deepcopy(search, {id(search.task): search.task})
        torch.set_rng_state(random_state)
        twin.supernet.train()
        loss_of = twin.task.loss_of(twin.supernet, trained)
        with twin.protection.during(twin.optimizer):
            for batch in batches:
                twin.optimizer.zero_grad()
                loss = loss_of(batch)
                if loss.requires_grad:  # not where everything is frozen
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(twin.supernet.parameters(), config.optimizer.max_gradient_norm)
                twin.optimizer.step()
        after = [twin.rewards.error(architecture, "forgetting") for architecture in sample]
        assert list(found.change[j]) == [b - a for a, b in zip(error, after, strict=True)]
    assert (found.change != 0).any()


# It leaves no trace


def values(state):
    """All tensors and numbers in a nested state, in order."""
    if isinstance(state, dict):
        return [pair for key in state for pair in (key, *values(state[key]))]
    if isinstance(state, list | tuple):
        return [value for item in state for value in values(item)]
    return [state.tolist() if isinstance(state, torch.Tensor) else state]


@pytest.mark.parametrize(
    ("config", "protection", "training"), [(IMAGES, "wpl", True), (TEXT, "wpl", False), (IMAGES, "freeze", False)]
)
def test_the_state_is_what_it_was(config, protection, training):
    search = searched(config, protection)
    search.supernet.train(training)
    before = copy.deepcopy(values(search.state_dict()))
    search.interference(fixed_sample(search.strategy.space, 2, seed=3), 1)
    assert values(search.state_dict()) == before
    assert search.supernet.training == training
    assert all(weight.requires_grad for weight in search.supernet.parameters())


def test_undone_even_if_training_fails():
    search = searched(TEXT, "wpl")
    before = copy.deepcopy(values(search.state_dict()))

    def interrupted():
        with search._undone():
            search._train(search.strategy.space.sample(torch.Generator()), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert values(search.state_dict()) == before


@pytest.mark.parametrize("config", [IMAGES, changed(TEXT, protection=("wpl", "matched-lr"))])
def test_a_search_that_logs_it_finds_the_same_numbers(config):
    states: tuple[list, list] = ([], [])
    plain, logged = (
        run(
            changed(config, interference_every=every),
            on_epoch=lambda record, state, kept=kept: kept.append(values({**state, "config": 0, "record": 0})),
        )
        for every, kept in zip((0, 2), states, strict=True)
    )
    assert states[0] == states[1]
    for without, record in zip(plain, logged, strict=True):
        assert dataclasses.replace(without, seconds={}) == dataclasses.replace(
            record, seconds={}, multi_model_part=None
        )
        is_measured = record.epoch == 1
        assert (record.multi_model_part is not None) == is_measured == ("interference" in record.seconds)


# Degenerate cases


def test_identical_architectures_do_not_interfere():
    search = searched(TEXT, "none")
    (one,) = fixed_sample(search.strategy.space, 1, seed=0)
    found = search.interference([one] * 3, 1)
    assert (found.change != 0).all()
    assert not found.matrix.any()
    assert dataclasses.astuple(found.multi_model_part) == (0, 0, 0)


def test_where_nothing_can_move_there_is_no_interference():
    search = searched(changed(IMAGES, protection=("l2",), l2_strength=1e30), "l2")
    sample = fixed_sample(search.strategy.space, 3, seed=0)
    for architecture in sample:
        search._consolidate(architecture, {})
    found = search.interference(sample, 1)
    assert not found.change.any()
    assert found.share_worse == 0


def test_one_architecture_is_refused():
    search = Search(IMAGES, data_of(IMAGES.space), SearchArm(0, "none"))
    with pytest.raises(InputError, match="Expected at least 2 architectures to measure interference, but got 1"):
        search.interference(fixed_sample(search.strategy.space, 1, seed=0), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"interference_every": -1}, "Expected interference_every to be at least 0, but got -1"),
        ({"interference_models": 1}, "Expected interference_models to be at least 2, but got 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        search_config(**options)


def test_fixed_sample():
    space = make_space(TEXT)  # 32 architectures
    sample = fixed_sample(space, 8, seed=1)
    assert len(set(sample)) == 8
    assert fixed_sample(space, 4, seed=1) == sample[:4]
    assert fixed_sample(space, 4, seed=2) != sample[:4]
    assert set(fixed_sample(space, 40, seed=1)[:32]) == set(space)


# The number and its interval


def test_multi_model_part_and_what_is_left_out():
    nan = math.nan
    found = interference([[0, 1, 2], [3, 0, nan], [5, 6, 0]])
    assert found.multi_model_part.mean == pytest.approx(17 / 5)
    assert (found.num_diverged, found.largest) == (1, 6)
    found = Interference(("a", "b"), np.zeros(2), np.array([[nan, 1.0], [2.0, 3.0]]))  # a diverges if it is trained
    assert found.num_diverged == 1
    assert dataclasses.astuple(found.multi_model_part) == (-2, None, None)
    assert (found.matrix.diagonal() == 0).all()
    lost = Interference(("a", "b", "c"), np.zeros(3), np.full((3, 3), nan))
    assert lost.num_diverged == 6
    assert math.isnan(lost.multi_model_part.mean)
    assert recorded_of(lost).to_dict()["multi_model_part"]["mean"] is None


def test_interval_is_a_bootstrap_over_architectures():
    generator = np.random.default_rng(5)
    matrix = generator.normal(size=(5, 5)) + generator.normal(size=5)
    np.fill_diagonal(matrix, 0)
    matrix[1, 3] = math.nan
    part = interference(matrix).multi_model_part
    means = []
    for _ in range(3000):
        drawn = generator.integers(5, size=5)
        kept = [matrix[j, i] for j, i in itertools.product(drawn, drawn) if j != i and not math.isnan(matrix[j, i])]
        if kept:
            means.append(sum(kept) / len(kept))
    low, high = np.quantile(means, [0.025, 0.975])
    assert (part.low, part.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    assert part.low < part.mean < part.high
    assert interference(matrix).multi_model_part == part


def recorded_of(found, protection="none"):
    return InterferenceRecord.of(found, seed=0, protection=protection, epochs=2, num_batches=2)


def test_dict_round_trip():
    record = recorded_of(interference([[0, 1, math.nan], [3, 0, 4], [5, 6, 0]], error=[1, math.nan, 3]))
    values = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    again = InterferenceRecord.from_dict(values, "a record", "a file")
    assert again.to_dict() == recorded_of(again.found).to_dict() == values
    with pytest.raises(ValueError, match="Expected 2 errors and 2 × 2 changes"):
        dataclasses.replace(record, architectures=["a", "b"]).found  # noqa: B018


# Command line, figure and report


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished search."""
    path = tmp_path_factory.mktemp("interference") / "run"
    words = command_line(changed(IMAGES, interference_every=1), "search").split()
    options = words[2:]
    assert main(["search", *options, "--output", str(path)]) == 0
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_command_measures_every_arm_as_the_search_did(folder, capfd):
    assert main(["interference", str(folder), "--models", "3", "--json"]) == 0
    out = capfd.readouterr().out
    arms = json.loads(out)["arms"]
    assert read_sealed(folder / INTERFERENCE, RunFolder(folder).header.digest) == {"arms": arms}
    assert [(arm["seed"], arm["protection"], arm["epochs"], arm["num_batches"]) for arm in arms] == [
        (0, "none", 2, 2),
        (0, "wpl", 2, 2),
    ]
    assert arms[0]["architectures"] == arms[1]["architectures"]
    last = [record for record in RunFolder(folder).records() if record["epoch"] == 1]
    assert [arm["multi_model_part"]["mean"] for arm in arms] == [record["multi_model_part"] for record in last]
    assert (folder / "interference.png").read_bytes().startswith(b"\x89PNG")


def test_the_first_seed_of_a_search_is_measured_whatever_it_is(tmp_path, capfd):
    config = changed(IMAGES, first_seed=3, seeds=2, epochs=1)
    folder = RunFolder.create(tmp_path / "run", {"experiment": "search", **config.to_dict()})
    assert main(["resume", str(folder.path)]) == 0
    capfd.readouterr()
    assert main(["interference", str(folder.path), "--models", "2", "--batches", "1", "--json"]) == 0
    arms = json.loads(capfd.readouterr().out)["arms"]
    assert [(arm["seed"], arm["protection"]) for arm in arms] == [(3, "none"), (3, "wpl")]


def test_table_and_report(folder, capfd):
    output = folder.parent / "elsewhere"
    assert main(["interference", str(folder), "--models", "2", "--batches", "1", "--output", str(output)]) == 0
    out = capfd.readouterr().out
    assert str(output / "interference.png") in out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    assert not (folder / INTERFERENCE).exists()
    assert load_interference(RunFolder(folder)) == []
    assert "Who overwrites whom" not in report_html([RunFolder(folder)])
    shutil.copy(output / INTERFERENCE, folder)
    assert "Who overwrites whom" in report_html([RunFolder(folder)])
    digest = RunFolder(folder).header.digest
    for damaged, previous in (([{}], digest), (read_sealed(folder / INTERFERENCE, digest)["arms"], "another run")):
        write_sealed(folder / INTERFERENCE, {"arms": damaged}, previous)
        assert main(["report", str(folder)]) == 2
        assert "interference.json" in capfd.readouterr().err


def test_one_arm_of_the_newest_checkpoint(folder, capfd):
    for path in folder.glob("trained-*.pt"):
        path.unlink()
    (folder / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes()[:1000])
    assert main(["interference", str(folder), "--models", "2", "--batches", "1", "--json"]) == 0
    captured = capfd.readouterr()
    assert "is damaged" in captured.err
    assert [(arm["protection"], arm["epochs"]) for arm in json.loads(captured.out)["arms"]] == [("wpl", 1)]


def bad_folders(folder):
    """Arguments that are refused, and what is said."""
    two_model = RunFolder.create(folder.parent / "two", {"experiment": "two-model"}).path
    yield [str(two_model)], "Expected the run of a search"
    yield [str(folder), "--models", "1"], "models"
    yield [str(folder), "--batches", "0"], "batches"
    yield [str(folder), "--seed", "3"], "Expected a finished search or a checkpoint in"
    yield [str(folder), "--protection", "l2"], "Expected protection to be one of none, wpl"
    yield [str(folder / "nothing")], "Expected a run folder"


def test_bad_input_is_one_sentence(folder, capfd):
    for arguments, message in bad_folders(folder):
        assert main(["interference", *arguments]) == 2
        captured = capfd.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert captured.out == ""
    for path in folder.glob("*.pt"):
        path.unlink()
    assert main(["interference", str(folder)]) == 2
    assert "but got none. Go on with `forgetless resume`" in capfd.readouterr().err


def test_states_of_another_configuration_are_refused(whole):
    state = RunFolder(whole).load_trained(0, "wpl")
    with pytest.raises(InputError, match=r"got space.units 3 \(there 2\)"):
        measure_arms(changed(load_result(RunFolder(whole)).config, units=3), [state])


def test_a_state_from_before_there_were_options_is_read():
    stored = search_config().to_dict()
    del stored["interference"]
    search_config().expect_own_state({"format": FORMAT, "config": stored}, FORMAT)
    with pytest.raises(InputError, match=r"got interference.every 2 \(there 0\)"):
        search_config(interference_every=2).expect_own_state({"format": FORMAT, "config": stored}, FORMAT)


def arms_of(*matrices):
    return [recorded_of(interference(matrix), name) for name, matrix in zip(("none", "wpl"), matrices, strict=False)]


def test_map_shows_every_entry_on_one_scale(whole):
    result = load_result(RunFolder(whole))
    wide = [[0, 0.2, -0.1], [0.1, 0, math.nan], [0.1, 0.3, 0]]
    figure = interference_map(result, arms_of(wide, [[0, 0.1, 0], [0, 0, 0], [0, 0, 0]]))
    panels = figure.axes[:2]
    meshes = [ax.collections[0] for ax in panels]
    assert all((mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((-30, 30)) for mesh in meshes)
    shown = meshes[0].get_array()
    np.testing.assert_allclose(shown.filled(math.nan), 100 * np.array(wide))
    assert panels[0].get_title("left").startswith("no protection\nmulti-model part 12.0\n95 % interval")
    assert panels[0].get_ylim() == (3.5, 0.5)
    with pytest.raises(InputError, match="Expected at least one measured arm"):
        interference_map(result, [])


def test_cells_say_what_is_missing(whole):
    result = load_result(RunFolder(whole))
    lost = arms_of(np.full((3, 3), math.nan))
    interference_map(result, lost)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(interference_table(result, lost))
    assert "Pairs that diverged, left out: none 6." in captured.get()


def test_curve_and_summary_of_the_search(whole):
    result = load_result(RunFolder(whole))
    assert [ax.get_title("left")[:3] for ax in forgetting_curves(result).axes] == ["(a)", "(b)", "(c)", "(d)", "(e)"]
    drawn = forgetting_curves(result).axes[4].lines
    (line,) = (line for line in drawn if line.get_gid() == "none")
    parts = [record.multi_model_part for record in result.epochs("none")]
    np.testing.assert_allclose(line.get_ydata(), 100 * np.array(parts))
    entries = {entry.protection: entry for entry in result.summary()}
    free, held = (
        np.mean([result.epochs(arm)[epoch].multi_model_part for epoch in result.forgetting_epochs])
        for arm in ("none", "wpl")
    )
    assert entries["none"].multi_model_part.mean == pytest.approx(free)
    if free > 0:
        assert entries["wpl"].reduction_multi_model.mean == pytest.approx(1 - held / free)
    without = recorded(result, lambda record: {"multi_model_part": None} if record.event == "epoch" else {})
    assert len(forgetting_curves(without).axes) == 4
    assert without.summary()[0].multi_model_part is None


def test_curve_joins_the_measured_epochs_only(whole):
    result = load_result(RunFolder(whole))
    config = changed(result.config, epochs=7, interference_every=3, protection=("none",))
    first = result.epochs("none")[0]
    parts = [0.01 * e if e in {2, 5} else None for e in range(7)]
    records = [dataclasses.replace(first, epoch=e, multi_model_part=part) for e, part in enumerate(parts)]
    (line,) = (
        line
        for line in forgetting_curves(dataclasses.replace(result, config=config, records=records)).axes[4].lines
        if line.get_gid() == "none"
    )
    assert list(line.get_xdata()) == [3, 6]
    np.testing.assert_allclose(line.get_ydata(), [2, 5])
