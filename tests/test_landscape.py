"""The landscape: the plane against slow arithmetic, surfaces against losses, paths against their records."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from configs import landscape_config
from forgetless import diagonal_fisher
from forgetless.cli import main
from forgetless.errors import InputError
from forgetless.experiments import RUN_KINDS, load_result
from forgetless.experiments.landscape import ArmRecord, SurfaceRecord, running, walking
from forgetless.experiments.landscape.plane import Plane, ellipse, plane_through
from forgetless.experiments.landscape.records import read_records
from forgetless.experiments.landscape.surface import grid_axes, loss_surface
from forgetless.experiments.two_model import load_task, run
from forgetless.experiments.two_model.mlp import chain_of_models, shared_parameters
from forgetless.report import report_html
from forgetless.report.landscape.figure import landscape_figure
from forgetless.report.landscape.findings import finding
from forgetless.runs import RunFolder

SMALL = (
    "--seeds 2 --iterations 40 --iterations-a 60 --width 16 --evaluate-every 10 --points 4 --images 50 "
    "--protection none ewc freeze wpl"
)
KIND = RUN_KINDS["landscape"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("landscape") / "run"
    assert main(["landscape", *SMALL.split(), "--output", str(path)]) == 0
    return RunFolder(path)


def random_plane(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, size, generator=generator)
    return plane_through(list(ends), ends), ends, generator


# The plane


@given(st.integers(2, 20), st.integers(0, 100))
def test_projection_is_that_of_least_squares(size, seed):
    plane, ends, generator = random_plane(size, seed)
    moves = torch.randn(5, size, generator=generator)
    basis = ends.double().numpy().T
    for move, inside, far in zip(moves, plane.coordinates(moves), plane.outside(moves), strict=True):
        weights = np.linalg.lstsq(basis, move.double().numpy(), rcond=None)[0]
        np.testing.assert_allclose(plane.at(*inside.tolist()).numpy(), basis @ weights, atol=1e-9)
        np.testing.assert_allclose(far.item(), np.linalg.norm(move.double().numpy() - basis @ weights), atol=1e-9)


def test_directions_are_orthonormal_and_point_to_the_ends():
    plane, ends, _ = random_plane(30)
    torch.testing.assert_close(plane.directions @ plane.directions.T, torch.eye(2, dtype=torch.float64))
    inside = plane.coordinates(ends)
    torch.testing.assert_close(plane.outside(ends), torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    assert inside[0, 0] > 0
    assert abs(inside[0, 1]) < 1e-12
    assert inside[1, 1] > 0


def test_where_an_end_did_not_move_the_furthest_point_takes_its_place():
    points = torch.tensor([[1.0, 0, 0], [2.0, 0.5, 0], [4.0, 0, 0], [0.0, 0, 0]])
    plane = plane_through([points[2], points[3]], points)
    torch.testing.assert_close(plane.directions, torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64))
    with pytest.raises(InputError, match="span a plane, but all their points are on one line"):
        plane_through([points[2], points[3]], points[[0, 2, 3]])
    with pytest.raises(InputError, match="span a plane"):
        plane_through([points[3], points[3]], points[[3]])


def test_the_form_is_the_quadratic_of_the_fisher_information():
    plane, _, generator = random_plane(12)
    fisher = torch.rand(12, generator=generator)
    for x, y in ((1.0, 0.0), (0.3, -2.0)):
        point = torch.tensor([x, y], dtype=torch.float64)
        slow = sum(f * v**2 for f, v in zip(fisher.tolist(), plane.at(x, y).tolist(), strict=True)) / 2
        assert (point @ plane.form(fisher) @ point / 2).item() == pytest.approx(slow, rel=1e-12)


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.floats(-0.9, 0.9), st.floats(0.001, 2))
def test_the_quadratic_is_the_rise_on_the_whole_ellipse(first, second, correlation, rise):
    mixed = correlation * (first * second) ** 0.5
    form = np.array([[first, mixed], [mixed, second]])
    points = ellipse(form.tolist(), rise, 50)
    np.testing.assert_allclose(np.einsum("ni,ij,nj->n", points, form, points) / 2, rise, rtol=1e-9)
    np.testing.assert_allclose(points[0], points[-1], atol=1e-9)


def test_an_ellipse_without_curvature_in_a_direction_is_long_and_finite():
    points = ellipse([[1.0, 0.0], [0.0, 0.0]], 0.5)
    assert np.isfinite(points).all()
    assert np.abs(points[:, 1]).max() > 1e5
    assert np.abs(points[:, 0]).max() == pytest.approx(1.0, rel=1e-4)


def test_a_grid_holds_the_paths_and_the_origin():
    x, y = grid_axes(torch.tensor([[1.0, 3.0], [9.0, 3.0]], dtype=torch.float64), 5)
    assert len(x) == len(y) == 5
    assert x[0] < 0 < 9 < x[-1]
    assert y[0] < 0 < 3 < y[-1]


def test_a_surface_is_the_loss_at_each_point_and_leaves_the_weights():
    model = torch.nn.Linear(3, 1, bias=False)
    before = model.weight.detach().clone()
    plane = Plane(torch.eye(3, dtype=torch.float64)[:2])
    surface = loss_surface(model, [model.weight], plane, ([0.0, 1.0], [0.0, 2.0]), lambda m: m.weight.sum().item())
    at = float(before.sum())
    np.testing.assert_allclose(surface, [[at, at + 1], [at + 2, at + 3]], atol=1e-5)
    assert torch.equal(model.weight, before)


# The records


def test_each_path_starts_at_a_and_the_first_and_the_last_end_in_the_plane(made):
    result = load_result(made)
    assert [arm.protection for arm in result.arms] == ["none", "ewc", "freeze", "wpl"] * 2
    for arm in result.arms:
        assert arm.steps == [0, 1, 2, 5, 10, 20, 30, 40]
        assert (arm.x[0], arm.y[0], arm.outside[0], arm.predicted[0]) == (0, 0, 0, 0)
        assert arm.loss_a[0] == result.surfaces[arm.seed].loss_a_before
        assert arm.length_in_plane <= arm.length * (1 + 1e-9)
        if arm.protection in {"none", "wpl"}:
            assert arm.outside[-1] < 1e-6
            assert arm.measures.share_of_end == pytest.approx(1)
        if arm.protection == "freeze":
            assert set(arm.x + arm.y + arm.outside) == {0}
            assert set(arm.loss_a) == {arm.loss_a[0]}
            assert arm.measures.share_of_length is None


def test_trainings_are_those_of_two_models(made):
    """Observed or not, the numbers of every arm are the same."""
    result = load_result(made)
    records = run(result.config.two_models).runs
    for arm, record in zip(result.arms, records, strict=True):
        for key in ("seed", "protection", "strength", "accuracy_a_before", "accuracy_a_after", "accuracy_b"):
            assert getattr(arm, key) == getattr(record, key)


def test_what_is_expected_is_the_quadratic_of_the_fisher_that_protections_get(made, tmp_path):
    """Written out again from A's weights, for the unprotected arm of the first seed."""
    result = load_result(made)
    config, arm = result.config, result.arms[0]
    walker = walking.Walker(config, load_task(config.two_models), config.arms[:1], lambda *_: None, lambda _: None)
    walker.walk(lambda: None)
    task = walker.task
    a, _ = chain_of_models(config.pair.wiring, 3, num_inputs=64, num_classes=10, width=16, seed=0)
    a.load_state_dict(walker.trainer.start[0])
    fisher = diagonal_fisher(a, task.batches("importance"), task.loss)
    names = {name: weight for name, weight in a.named_parameters() if name.split(".")[1] in {"1", "2", "3"}}
    slow = torch.cat([fisher[name].flatten() for name in names]).double()
    move = (walker.ways[0].weights[-1] - torch.cat([weight.detach().flatten() for weight in names.values()])).double()
    assert arm.predicted[-1] == pytest.approx((slow * move**2).sum().item() / 2, rel=1e-5)
    assert move.norm().item() == pytest.approx(arm.measures.distance, rel=1e-6)
    assert len(shared_parameters(walker.trainer.models)) == len(names)


def test_the_surfaces_at_the_ends_are_the_losses_there(made):
    """At the origin A's loss is that before B's training; at the end of an arm in the plane B's is that after it."""
    config = load_result(made).config
    arms = [arm for arm in config.arms if arm.seed == 0]
    walker = walking.Walker(config, load_task(config.two_models), arms, lambda *_: None, lambda _: None)
    walker.walk(lambda: None)
    found = {record.protection: record for record in walker.records()[1:]}
    moves = torch.stack([walker.ways[i].weights[-1] - walker.anchor for i in (0, 3)])
    plane = plane_through(list(moves), moves)
    a, b = walker.trainer.models
    for name in ("none", "wpl"):
        end = ([found[name].x[-1]], [found[name].y[-1]])
        b.load_state_dict(walker.ways[[arm.protection for arm in arms].index(name)].model_b)
        walking.set_weights(walker.trainer.shared, walker.anchor)
        assert loss_surface(b, walker.trainer.shared, plane, end, walker._loss)[0][0] == pytest.approx(
            found[name].loss_b[-1], rel=1e-4
        )
        a.load_state_dict(walker.trainer.start[0])
        assert (
            loss_surface(a, walker.trainer.shared, plane, ([0.0], [0.0]), walker._loss)[0][0] == found[name].loss_a[0]
        )
        assert loss_surface(a, walker.trainer.shared, plane, end, walker._loss)[0][0] == pytest.approx(
            found[name].loss_a[-1], rel=1e-4
        )


def test_records_come_back_as_they_were_written(made):
    for record in read_records(load_result(made).config, made):
        assert type(record).from_dict(json.loads(json.dumps(record.to_dict())), "a record", "a line") == record
        assert isinstance(record, SurfaceRecord | ArmRecord)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("steps"), "it lacks steps"),
        (lambda r: r.update(more=1), "it has 'more', which nothing writes"),
        (lambda r: r.update(x="0"), "x is '0' where"),
        (lambda r: r.update(seed=9), "the configuration asks for in line 1 .* but got arm none of seed 9"),
        (lambda r: r.update(event="epoch"), "event is 'epoch'"),
    ],
)
def test_a_damaged_record_is_refused(made, tmp_path, change, message):
    folder = RunFolder.create(tmp_path / "run", {"experiment": "landscape", **load_result(made).config.to_dict()})
    record = next(record for record in made.records() if record["event"] == "arm")
    change(record)
    folder.append(record)
    with pytest.raises(InputError, match=message):
        load_result(folder)


# Interruptions


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.mark.parametrize("kept", [0, 2, 7])
def test_records_that_are_missing_are_made_again_and_the_same(made, tmp_path, kept):
    shutil.copytree(made.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    with folder.writing():
        folder.replace_records(made.records()[:kept])
    assert main(["resume", str(folder.path)]) == 0
    assert without_time(folder.records()) == without_time(made.records())


@pytest.mark.parametrize("arms", [0, 1, 3])
def test_killed_after_an_arm_a_run_goes_on_without_making_it_again(made, tmp_path, monkeypatch, arms):
    config = load_result(made).config
    folder = RunFolder.create(tmp_path / "run", {"experiment": "landscape", **config.to_dict()})
    trained = []
    original = walking.Trainer.run

    def run_or_die(trainer, arm, protected):
        if len(trained) == arms:
            raise KeyboardInterrupt
        trained.append(arm)
        return original(trainer, arm, protected)

    monkeypatch.setattr(walking.Trainer, "run", run_or_die)
    with folder.writing(), pytest.raises(KeyboardInterrupt):
        running.run_in_folder(config, folder)
    first = list(trained)
    trained.clear()
    arms = -1
    with folder.writing():
        running.run_in_folder(config, folder)
    assert first + trained == config.arms
    assert without_time(folder.records()) == without_time(made.records())


# Commands and pages


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--protection none", "at least two protections"),
        ("--protection none wpl matched-lr", "but matched-lr tries several learning rates. Leave it out."),
        ("--points 1", "points to be at least 2"),
        ("--rise 0", "rise to be finite and above 0"),
        ("--images 0", "images to be at least 1"),
        ("--shared 5", "shared between 1 and 3"),
        ("--convergence 0", "convergence in (0, 1]"),
        ("--data nowhere", "nowhere"),
        ("--width 1000 --evaluate-every 1 --iterations 100000", "paths that fit"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tmp_path, capfd, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["landscape", *words.split()]) == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_json_has_every_record_and_a_summary(tmp_path, capfd):
    words = "--seeds 1 --iterations 4 --iterations-a 4 --width 4 --points 2 --protection none wpl --json"
    assert main(["landscape", *words.split(), "--output", str(tmp_path / "run")]) == 0
    told = json.loads(capfd.readouterr().out)
    assert without_time(told["records"]) == without_time(RunFolder(tmp_path / "run").records())
    assert [entry["protection"] for entry in told["summary"]] == ["none", "wpl"]
    assert set(told["summary"][0]["rise"]) == {"mean", "low", "high"}


def test_the_page_and_the_table_say_what_the_records_say(made):
    result = load_result(made)
    page = report_html([made])
    assert finding(result) in page
    assert "Every seed (8 arms)" in page
    assert "In the paper’s figure 2" in page
    assert "This run is not complete" not in page
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(KIND.table(result))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "means over 2 seeds" in text


def test_the_figure_has_a_panel_per_arm_with_its_path_and_ellipses(made):
    result = load_result(made)
    figure = landscape_figure(result, 1)
    for ax, arm in zip(figure.axes, result.arms[4:], strict=True):
        (path,) = (line for line in ax.lines if line.get_gid() == arm.protection)
        np.testing.assert_array_equal(path.get_xdata(), arm.x)
        drawn = [line.get_xydata() for line in ax.lines if line.get_gid() == "ellipse"]
        form = np.array(result.surfaces[1].form)
        levels = [np.einsum("ni,ij,nj->n", points, form, points) / 2 for points in drawn]
        np.testing.assert_allclose([level.mean() for level in levels], [0.01, 0.1])


def test_a_run_that_has_only_begun_has_a_page(made, tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"experiment": "landscape", **load_result(made).config.to_dict()})
    assert "No seed is finished yet." in report_html([folder])
    with folder.writing():
        for record in made.records()[:3]:
            folder.append(record)
    assert "3 of 10 records are finished" in report_html([folder])
    with pytest.raises(InputError, match="at least one finished arm"):
        landscape_figure(load_result(folder), 1)


def test_an_arm_that_diverged_is_told_and_in_no_mean(tmp_path):
    config = landscape_config(
        "--seeds 1 --protection none wpl ewc --iterations 8 --iterations-a 4 --width 4 --points 2"
    )
    folder = RunFolder.create(tmp_path / "run", {"experiment": "landscape", **config.to_dict()})
    with folder.writing():
        running.run_in_folder(config, folder)
        records = folder.records()
        lost = {key: [None] * len(records[2][key]) for key in ("x", "y", "outside", "loss_a", "loss_b", "predicted")}
        lost |= {"length": None, "length_in_plane": None, "loss_b_surface": [[None] * 2] * 2}
        folder.replace_records([*records[:2], records[2] | lost, records[3]])
    result = load_result(folder)
    assert [entry.protection for entry in result.summary()] == ["none", "ewc"]
    page = report_html([folder])
    assert "Diverged, and in no mean: elastic" not in page
    assert "Diverged, and in no mean: weight plasticity, α\xa0=\xa010 with seed 0." in page
