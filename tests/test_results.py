"""The pages of results say what the committed runs say."""

import ast
import importlib
import json
import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

from forgetless import WeightPlasticity, diagonal_fisher

ROOT = Path(__file__).parents[1]


def test_pages_are_up_to_date(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "results")
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    code = runpy.run_path(str(ROOT / "results" / "tables.py"))["main"]()
    assert code == 0, f"{capsys.readouterr().out} Run `python results/tables.py`."


def test_links_of_pages_lead_to_pages():
    pages = [ROOT / "results" / "README.md", *(ROOT / "results" / "pages").glob("*.md")]
    links = {(page.parent / link).resolve() for page in pages for link in re.findall(r"\]\((.*?)\)", page.read_text())}
    assert links == {page.resolve() for page in pages}  # and every page has a link to it


def test_every_fault_that_is_listed_has_its_test():
    for fault, test in json.loads((ROOT / "results" / "faults.json").read_text()).items():
        path, _, name = test.partition("::")
        defined = {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(node, "name")}
        assert name in defined, fault


@pytest.fixture
def split_mnist(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results")
    return importlib.import_module("split_mnist")


def tasks_of(split_mnist, pixels=784, images=64):
    """Two tasks of random images, of which every third pixel is always 0."""
    generator = torch.Generator().manual_seed(0)

    def examples():
        values = torch.rand(images, pixels, generator=generator)
        values[:, ::3] = 0
        return split_mnist.Examples(values, torch.randint(2, (images,), generator=generator))

    return [split_mnist.Task(examples(), examples(), examples(), slice(2 * t, 2 * t + 2)) for t in range(2)]


def test_gradients_of_split_mnist_are_those_of_autograd(split_mnist):
    network, task = split_mnist.Network(0, units=20).double(), tasks_of(split_mnist)[1]
    batch = split_mnist.Examples(task.train.images.double(), task.train.targets)
    loss = torch.nn.functional.cross_entropy(network(batch.images)[:, task.outputs], batch.targets)
    wanted = torch.autograd.grad(loss, list(network.parameters()))
    split_mnist.leave_gradients(network, batch, task.outputs)
    torch.testing.assert_close([weight.grad for weight in network.parameters()], list(wanted), rtol=1e-12, atol=1e-15)


def ordinary_run(split_mnist, arm, tasks, network, steps):
    """The library in the usual loop: autograd, unfused Adam, anew from the first task."""
    optimizer = torch.optim.Adam(network.parameters(), lr=split_mnist.RATE)
    plasticity = WeightPlasticity(network, arm.strength).attach(optimizer)
    for t, task in enumerate(tasks):
        for images, targets in split_mnist.batches(task.train, steps, 10 * arm.seed + t):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images)[:, task.outputs], targets).backward()
            optimizer.step()
        head = split_mnist.Head(network, task.outputs)
        plasticity.consolidate(head, diagonal_fisher(head, [task.train], torch.nn.functional.cross_entropy, "exact"))
    return [split_mnist.scores(network, task.test, task.outputs)[1] for task in tasks]


def test_a_run_of_split_mnist_is_the_usual_loop_on_all_pixels(split_mnist):
    tasks, arm = tasks_of(split_mnist), split_mnist.Arm(3, "EXACT", "proximal", 1e3)
    used = split_mnist.used_pixels([task.train.images for task in tasks])
    assert not used[::3].any()
    whole = split_mnist.Network(arm.seed, units=20)
    first = whole.first.weight.detach().clone()
    wanted = ordinary_run(split_mnist, arm, tasks, whole, steps=12)
    torch.testing.assert_close(whole.first.weight[:, ~used], first[:, ~used], rtol=0, atol=0)
    own = [
        task._replace(**{name: part._replace(images=part.images[:, used]) for name, part in parts(task)})
        for task in tasks
    ]
    network = split_mnist.Network(arm.seed, used, units=20)
    start = split_mnist.first_task(arm.seed, own, network, steps=12)
    trained = {}
    rows = [split_mnist.run(arm, own, network, start, steps=12, trained=known) for known in (None, trained, trained)]
    # An arm leaves what they share as it was, and what was trained so before is taken.
    assert rows[0]["loss"] == rows[1]["loss"] == rows[2]["loss"]
    assert len(trained) == 1
    assert rows[0]["loss"] == pytest.approx(wanted, abs=2e-5)


def parts(task):
    return [(name, getattr(task, name)) for name in ("train", "held_out", "test")]


def test_a_tolerance_of_split_mnist_is_calibrated_on_what_is_held_out(split_mnist, monkeypatch):
    told, tasks, network = [], tasks_of(split_mnist), split_mnist.Network(0, units=4)
    plasticity = types.SimpleNamespace(calibrate=lambda increase, _optimizer: told.append(increase))
    calibration = split_mnist.Calibration(network, plasticity, None)
    for task in tasks:
        calibration.add(task)
    with torch.no_grad():
        network.last.bias += torch.arange(10.0)  # moves the two outputs of each task apart by 1
    losses = [split_mnist.scores(network, task.held_out, task.outputs)[1] for task in tasks]
    grown = max(loss - before for loss, (_, before) in zip(losses, calibration.earlier, strict=True))
    for step in range(1, 26):
        calibration.after(step, 25)
    assert told == pytest.approx([grown] * 7 * split_mnist.MOST_TRIES)  # after 1, 2, 4, 8, 10, 20 and 25
    assert grown > split_mnist.TOLERANCE
    monkeypatch.setattr(calibration, "increase", lambda: split_mnist.TOLERANCE)
    told.clear()
    calibration.after(1, 25)
    assert told == [split_mnist.TOLERANCE]


def test_seeds_of_split_mnist_have_every_fisher_and_strength(split_mnist):
    arms = list(split_mnist.arms(30))
    proximal = {(arm.fisher, arm.strength) for arm in arms if arm.form == "proximal"}
    assert len(arms) == len(set(arms)) == 1 + 5 + 70
    assert proximal == {(fisher, 10.0**power) for fisher in split_mnist.FISHERS for power in range(14)}


@pytest.fixture
def benchmark_batches(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "results")
    return importlib.import_module("benchmark_batches")


def test_reliability_is_that_of_the_published_example(benchmark_batches):
    """Shrout and Fleiss 1979, table 2: six targets, four judges; ICC(3, 1) is 0.71 in their table 4."""
    ratings = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert round(benchmark_batches.reliability(ratings), 2) == 0.71
    assert benchmark_batches.reliability([[1, 2], [3, 4], [7, 8]]) == pytest.approx(
        1
    )  # seeds that differ for all alike


def test_the_ceiling_that_follows_from_a_reliability(benchmark_batches):
    """With r_n = 1/2 it is tau of two normal variables whose squared correlation is 1/2."""
    found = benchmark_batches.in_three_hours(0.1, num_functions=100, cpu_seconds=12.0)
    assert found == {"seeds": 9, "tau": 0.5}
    assert benchmark_batches.in_three_hours(-0.2, 100, 12.0)["tau"] == 0


def test_a_summary_of_trainings(benchmark_batches):
    rows = [
        {"recipe": recipe, "seed": seed, "architecture": cell, "test_error": error + seed / 100, "cpu_seconds": 2.0}
        for recipe, sign in (("constant-200", 1), ("linear-200", -1))
        for seed in (0, 1)
        for cell, error in (("a", 4 + sign * 0.3), ("b", 4.0), ("c", 4 - sign * 0.3))
    ]
    rows[0]["test_error"] = None
    found = benchmark_batches.summary(benchmark_batches.STUDIES["recurrent-3"], rows, 6.9, 188)
    first, second = found["recipes"]["constant-200"], found["recipes"]["linear-200"]
    assert (first["cells"], first["seeds"], first["diverged"]) == (3, 2, pytest.approx(1 / 6, abs=1e-4))
    assert (second["best"], second["halves"], second["reliability"]) == (3.705, 1, 1)
    assert second["noise"] == pytest.approx(0.01 / 2**0.5, abs=1e-4)
    assert second["spread"] == pytest.approx(0.3)
    assert found["tau"] == {"constant-200 / linear-200": {"tau": -1, "cells": 3, "seeds": 2}}
