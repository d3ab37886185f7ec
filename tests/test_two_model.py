import dataclasses
import json
import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs import changed, recorded, two_model_config, without_time
from forgetless import diagonal_fisher, matching
from forgetless.errors import InputError
from forgetless.experiments import two_model
from forgetless.experiments.two_model import Arm, TwoModelConfig, arms, run
from forgetless.experiments.two_model.mlp import chain_of_models, shared_parameters
from forgetless.experiments.two_model.records import RunRecord
from forgetless.experiments.two_model.training import Trainer
from forgetless.forgetting import Interval
from forgetless.plasticity import WeightPlasticity
from forgetless.protection import PROTECTIONS, ProtectionOptions
from forgetless.protection.none import NoProtection
from forgetless.tasks.images import ImageClassification
from test_report import made_up

SMALL = {"seeds": 1, "iterations": 40, "iterations_a": 60, "evaluate_every": 20, "width": 24}
STRONG = {"wpl_strength": (1e7,)}


@pytest.fixture(scope="module")
def result():
    return run(two_model_config(**SMALL | STRONG | {"seeds": 2}, convergence=(1.0, 0.6)))


def test_every_arm_is_run_once(result):
    made = [r.arm for r in result.runs]
    assert made == arms(result.config)
    assert len(made) == 2 * 2 * 5


def test_later_seeds_alone_give_the_same_numbers(result):
    later = run(changed(result.config, first_seed=1, seeds=1)).runs
    assert without_time(later) == without_time([r for r in result.runs if r.seed == 1])


def test_arms_of_one_seed_start_from_the_same_models_and_differ_afterwards(result):
    for convergence in (1.0, 0.6):
        group = [r for r in result.runs if r.seed == 0 and r.convergence == convergence]
        assert len({(r.accuracy_a_before, r.steps_of_a) for r in group}) == 1
        assert len({r.curve.accuracy_b[0] for r in group}) == 1
        assert len({json.dumps(r.curve.to_dict()) for r in group}) > 2


def test_the_numbers_of_a_run_agree_with_each_other(result):
    for r in result.runs:
        assert r.forgetting == r.accuracy_a_before - r.accuracy_a_after
        assert r.curve.iteration == [0, 2, 5, 10, 20, 40]
        assert r.curve.accuracy_a[0] == r.accuracy_a_before
        assert r.curve.accuracy_a[-1] == r.accuracy_a_after
        assert r.curve.accuracy_b[-1] == r.accuracy_b
        assert r.accuracy_a_min == min(r.curve.accuracy_a)
        assert r.models[0].forgetting == r.forgetting
        assert r.models[1].accuracy_before == r.accuracy_b
        assert r.mean_step >= 0


def test_freeze_forgets_nothing_and_protection_helps(result):
    by = {(s.protection, s.convergence): s for s in result.summary()}
    for convergence in (1.0, 0.6):
        plain, frozen = by["none", convergence], by["freeze", convergence]
        assert frozen.forgetting == Interval(0.0, 0.0, 0.0)
        assert plain.forgetting.mean > 0.1
        assert by["wpl", convergence].forgetting.mean < plain.forgetting.mean
        assert frozen.reduction.mean == 1.0


def test_a_stopped_early_is_stopped_early(result):
    steps = {(r.seed, r.convergence): r.steps_of_a for r in result.runs}
    for seed in (0, 1):
        assert steps[seed, 1.0] == 60
        assert 1 <= steps[seed, 0.6] < 60


def test_the_matched_arm_steps_as_far_as_the_protected_one(result):
    for r in result.runs:
        if r.protection == "matched-lr":
            wpl = next(
                o for o in result.runs if o.protection == "wpl" and (o.seed, o.convergence) == (r.seed, r.convergence)
            )
            assert r.shared_learning_rate < 0.005
            assert r.mean_step == pytest.approx(wpl.mean_step, rel=0.05)


def test_unprotected_training_is_a_plain_loop():
    """The harness adds nothing: the same numbers from a loop written out here."""
    config = two_model_config(**SMALL, protection=("none",), optimizer="sgd")
    record = run(config).runs[0]
    task = two_model.load_task(config)
    a, b = chain_of_models(config.chain.wiring, 3, num_inputs=64, num_classes=10, width=24, seed=0)
    for model, steps, seed in ((a, 60, 0), (b, 40, 1000)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for x, y in task.training_batches(steps, torch.Generator().manual_seed(seed)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert record.accuracy_a_after == 1 - task.error(a, "test")
    assert record.accuracy_b == 1 - task.error(b, "test")


def test_wpl_in_the_harness_is_wpl_in_a_plain_loop():
    config = two_model_config(**SMALL, protection=("wpl",), wpl_strength=(1e5,))
    record = run(config).runs[0]
    task = two_model.load_task(config)
    a, b = chain_of_models(config.chain.wiring, 3, num_inputs=64, num_classes=10, width=24, seed=0)
    plasticity = WeightPlasticity(shared_parameters([a, b]), 1e5, damping=1e-3)
    for model, steps, seed in ((a, 60, 0), (b, 40, 1000)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
        plasticity.attach(optimizer)
        for x, y in task.training_batches(steps, torch.Generator().manual_seed(seed)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        if model is a:
            plasticity.consolidate(a, diagonal_fisher(a, task.batches("importance"), task.loss))
    assert record.accuracy_a_after == 1 - task.error(a, "test")
    assert record.accuracy_b == 1 - task.error(b, "test")


def test_alpha_zero_is_no_protection():
    result = run(two_model_config(**SMALL, protection=("none", "wpl"), wpl_strength=(0.0,)))
    plain, zero = result.runs
    assert plain.curve == zero.curve


def test_interrupted_and_resumed_gives_the_same_numbers(result):
    class PowerCutError(Exception):
        pass

    finished = []

    def keep(record):
        finished.append(RunRecord.from_dict(json.loads(json.dumps(record.to_dict())), "a record", "the run folder"))
        if len(finished) == 4:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        run(result.config, on_run=keep)
    resumed = run(result.config, finished=finished)
    assert without_time(resumed.runs) == without_time(result.runs)


def test_a_chain_reports_every_model():
    config = two_model_config(**SMALL, models=4, protection=("none", "freeze"))
    plain, frozen = run(config).runs
    assert [m.model for m in plain.models] == ["A", "B", "C", "D"]
    assert plain.curve.iteration[-1] == 3 * 40
    assert plain.models[3].forgetting == 0.0  # the last one was overwritten by nobody
    assert all(m.forgetting == 0.0 for m in frozen.models)
    assert sum(m.forgetting for m in plain.models) > 0.1


def test_summary_against_numpy(result):
    plain = [r for r in result.runs if r.protection == "none" and r.convergence == 1.0]
    held = [r for r in result.runs if r.protection == "wpl" and r.convergence == 1.0]
    summary = next(s for s in result.summary() if s.protection == "wpl" and s.convergence == 1.0)
    forgotten, free = ([r.forgetting for r in runs] for runs in (held, plain))
    assert summary.forgetting.mean == pytest.approx(np.mean(forgotten))
    assert summary.reduction.mean == pytest.approx(1 - np.mean(forgotten) / np.mean(free))
    assert summary.cost_b.mean == pytest.approx(
        np.mean([p.accuracy_b - h.accuracy_b for p, h in zip(plain, held, strict=True)])
    )
    assert summary.num_seeds == 2


def test_no_forgetting_to_reduce_is_no_percentage(result):
    gained = recorded(result, lambda run: {"forgetting": -0.01} if run.protection == "none" else {})
    assert {entry.reduction for entry in gained.summary()} == {None}


def test_every_alpha_up_to_1e12_stays_finite():
    for optimizer in ("sgd", "adam"):
        options = {"protection": ("wpl",), "wpl_strength": (0.0, 1e3, 1e6, 1e9, 1e12), "iterations": 20}
        config = two_model_config(**SMALL | options, optimizer=optimizer)
        assert len(arms(config)) == 5
        for r in run(config).runs:
            assert math.isfinite(r.mean_step)
            assert r.accuracy_a_after > 0.3 or r.strength == 0


COUPLED = {"protection": ("none", "coupling")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": (4,)}, "Expected shared between 1 and 3 for crossed wiring, but got 4"),
        ({"shared": (5,), "wiring": "prefix"}, "Expected shared between 1 and 4 for prefix wiring, but got 5"),
        ({"convergence": (0.0,)}, r"Expected convergence in \(0, 1\], but got 0.0"),
        ({"convergence": (1.5,)}, "but got 1.5"),
        ({"convergence": (math.nan,)}, "but got nan"),
        ({"wpl_strength": (-1.0,)}, "Expected the strength of wpl to be finite and at least 0, but got -1.0"),
        ({"wpl_strength": (math.nan,)}, "Expected the strength of wpl to be finite and at least 0, but got nan"),
        (
            {"protection": ("wpl-tolerance",), "wpl_tolerance_strength": (0.01, 0.0)},
            "Expected a finite tolerance above 0, but got 0.0. Where nothing",
        ),
        (
            {"protection": ("wpl-tolerance",), "wpl_tolerance_strength": (-1.0,)},
            "Expected a finite tolerance above 0, but got -1.0",
        ),
        ({"protection": ("wpl-tolerance",), "wpl_tolerance_strength": (math.nan,)}, "Expected a finite tolerance"),
        ({"l2_strength": (math.inf,)}, "Expected the strength of l2 to be finite"),
        ({"protection": ("wlp",)}, "Did you mean 'wpl'"),
        ({"protection": ()}, "Expected at least one protection"),
        ({"protection": ("none", "matched-lr")}, "Expected wpl among the protections"),
        ({"wiring": "prefiks"}, "Did you mean 'prefix'"),
        ({"optimizer": "adamm"}, "Did you mean 'adam'"),
        ({"activation": "rellu"}, "Did you mean 'relu'"),
        ({"fisher": "empiric"}, "Did you mean 'empirical'"),
        ({"seeds": 0}, "Expected seeds to be at least 1, but got 0"),
        ({"models": 1}, "Expected models to be at least 2, but got 1"),
        ({"iterations": 0}, "Expected iterations to be at least 1"),
        ({"width": 0}, "Expected width to be at least 1"),
        ({"learning_rate": -0.1}, "Expected learning_rate to be finite and above 0"),
        ({"wpl_damping": -1.0}, "Expected damping to be finite and at least 0"),
        (COUPLED | {"coupling_prior": 0.0}, "Expected prior to be finite and above 0"),
        (COUPLED | {"coupling_num_rows": 0}, "Expected num_rows to be at least 1"),
        (COUPLED | {"coupling_num_examples": 0}, "Expected num_examples to be at least 1"),
        (COUPLED | {"coupling_strength": (-1.0,)}, "Expected the strength of coupling to be finite and at least 0"),
        ({"coupling_prior": 0.1}, "Expected --coupling.prior together with coupling, but the protection is none, "),
        ({"momentum": 1.0}, r"Expected momentum in \[0, 1\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        two_model_config(**options)


def test_a_device_that_is_not_there():
    """Only who trains needs it: a run made elsewhere can be read."""
    config = two_model_config(**SMALL, device="gpu")
    for start in (two_model.load_task, run):
        with pytest.raises(InputError, match="Expected a device that this machine has, but got 'gpu'"):
            start(config)


def test_config_round_trip_and_unknown_option():
    config = two_model_config(**SMALL, wpl_strength=(1e7, 10.0), shared=(1, 3))
    values = json.loads(json.dumps(config.to_dict()))
    assert TwoModelConfig.from_dict(values) == config
    with pytest.raises(InputError, match="Did you mean 'chain'"):
        TwoModelConfig.from_dict({"chian": {}})
    with pytest.raises(InputError, match="Did you mean 'shared'"):
        TwoModelConfig.from_dict({"chain": {"sharde": [1]}})
    with pytest.raises(InputError, match="Did you mean 'strength'"):
        TwoModelConfig.from_dict({"protections": [{"name": "wpl", "strenght": 1.0}]})


@pytest.mark.parametrize("fisher", ["exact", "empirical"])
def test_the_exact_fisher_is_the_importance_of_wpl_if_asked_for(fisher, monkeypatch):
    """What is consolidated is the sum over classes weighted by their probability, and for `empirical` it is not."""
    found = []
    consolidate = WeightPlasticity.consolidate

    def noted(self, model, importance, **options):
        images, _ = next(two_model.load_task(two_model_config(**SMALL)).batches("importance"))
        expected = torch.zeros_like(model.layers[-1].weight)
        for image in images:
            logits = model(image.unsqueeze(0))
            losses, shares = -logits.log_softmax(-1)[0], logits.detach().softmax(-1)[0]
            for loss, share in zip(losses, shares, strict=True):
                gradient = torch.autograd.grad(loss, model.layers[-1].weight, retain_graph=True)[0]
                expected += share * gradient.square() / len(images)
        name = next(n for n, p in model.named_parameters() if p is model.layers[-1].weight)
        found.append(torch.allclose(importance[name], expected, rtol=1e-3, atol=1e-8))
        consolidate(self, model, importance, **options)

    monkeypatch.setattr(WeightPlasticity, "consolidate", noted)
    changes = {"iterations": 2, "iterations_a": 20, "protection": ("wpl",)}
    run(two_model_config(**SMALL | STRONG | changes, fisher=fisher))
    assert found == [fisher == "exact"]


def test_coupling_prevents_forgetting():
    options = {"protection": ("none", "coupling"), "coupling_num_rows": 20, "coupling_num_examples": 20}
    config = two_model_config(**SMALL, **options)
    plain, held = run(config).runs
    assert plain.validation_forgetting > 0.02
    assert held.validation_forgetting < 0.2 * plain.validation_forgetting


def test_training_batches_are_shuffled_passes():
    task = two_model.load_task(two_model_config(**SMALL))
    size = len(task.data.train.labels)
    batches = list(task.training_batches(size // 128 + 2, torch.Generator().manual_seed(3)))
    assert [len(y) for _, y in batches] == [128] * (size // 128 + 2)
    first_pass = torch.cat([x.flatten(1) for x, _ in batches[: size // 128]])
    images = {tuple(row.tolist()) for row in task.data.train.images.flatten(1)}
    drawn = {tuple(row.tolist()) for row in first_pass}
    assert drawn <= images
    assert len(drawn) >= len(first_pass) - (size - len(images))  # each once, but for images that occur twice
    again = list(task.training_batches(3, torch.Generator().manual_seed(3)))
    assert all(torch.equal(x, z) for (x, _), (z, _) in zip(batches, again, strict=False))
    assert not torch.equal(batches[0][0], batches[size // 128][0])


def test_error_is_counted_over_the_whole_split_and_restores_the_mode():
    task = two_model.load_task(two_model_config(**SMALL))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.Dropout(0.9)).train()
    logits = model[1](task.data.test.images.flatten(1))
    expected = sum(int(row.argmax()) != int(y) for row, y in zip(logits, task.data.test.labels, strict=True))
    assert task.error(model, "test") == expected / len(task.data.test.labels)
    assert model.training
    assert isinstance(task, ImageClassification)


def test_the_matched_arm_of_an_arm_that_does_not_move_does_not_move():
    config = two_model_config(**SMALL, protection=("none", "wpl", "matched-lr"), wpl_strength=(1e12,))
    task = two_model.load_task(config)
    trainer = Trainer(config, task, arms(config)[0])
    still = trainer.run(Arm(0, 3, 1.0, "matched-lr", 1e12), SimpleNamespace(mean_step=0.0))
    assert still.shared_learning_rate == 0
    assert still.forgetting == 0


def test_the_closest_try_counts_where_none_is_close_enough(monkeypatch):
    monkeypatch.setattr(matching, "_MOST_TRIES", 3)
    monkeypatch.setattr(matching, "_WITHIN", 0.0)
    tried = []
    config = two_model_config(**SMALL | STRONG, protection=("wpl", "matched-lr"))
    trainer = Trainer(config, two_model.load_task(config), arms(config)[0])
    plain = trainer._train_rest
    monkeypatch.setattr(trainer, "_train_rest", lambda *a: tried.append(plain(*a)) or tried[-1])
    kept = trainer.run(Arm(0, 3, 1.0, "matched-lr", 1e7), SimpleNamespace(mean_step=1e-3))
    assert len(tried) == 3
    assert abs(kept.mean_step - 1e-3) == min(abs(r.mean_step - 1e-3) for r in tried)


def test_a_diverged_try_is_never_the_closest(monkeypatch):
    config = two_model_config(**SMALL | STRONG, protection=("wpl", "matched-lr"))
    trainer = Trainer(config, two_model.load_task(config), arms(config)[0])
    steps = iter([math.nan, 0.5, 1.0])
    any_run = made_up(seeds=1).runs[0]
    monkeypatch.setattr(trainer, "_train_rest", lambda arm, rate: dataclasses.replace(any_run, mean_step=next(steps)))
    assert trainer.run(Arm(0, 3, 1.0, "matched-lr", 1e7), SimpleNamespace(mean_step=1.0)).mean_step == 1.0


@pytest.mark.usefixtures("restored_registries")
def test_a_protection_that_watches_a_may_have_no_strength():
    @dataclass(frozen=True, kw_only=True)
    class WatchingOptions(ProtectionOptions):
        """None of its own."""

    watched = []

    @PROTECTIONS.register
    class Watching(NoProtection):
        """Notes which trainings it saw."""

        name: ClassVar[str] = "watching"
        label: ClassVar[str] = "watching"
        Options: ClassVar[type[ProtectionOptions]] = WatchingOptions
        watches: ClassVar[bool] = True

        def during(self, optimizer):
            watched.append(optimizer)
            return super().during(optimizer)

    run(two_model_config(**SMALL | {"protection": ("watching",), "iterations": 2, "iterations_a": 2}))
    assert len(watched) == 2
