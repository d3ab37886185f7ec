"""The loss of the 2019 code, against a slow version of it, and the preset of its search."""

import dataclasses
import io
import math
import shlex

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from configs import TINY_TEXT, changed, search_config, without_time
from forgetless.cli import main
from forgetless.errors import DivergedError, InputError
from forgetless.experiments import load_config
from forgetless.options import tables_of, with_preset
from forgetless.presets import preset
from forgetless.protection import Evidence, make_protection
from forgetless.runs import RunFolder
from forgetless.search import Search, SearchArm, SearchConfig, load_task, run
from forgetless.training import train

SMALL = search_config(
    protection=("none", "wpl-2019"),
    strategy="uniform",
    epochs=3,
    **TINY_TEXT,
    vocabulary=200,
    protect_from=0,
    wpl_2019_strength=1e4,
)


@pytest.fixture(scope="module")
def task():
    return load_task(SMALL)


def evidence_of(batches):
    return Evidence(fisher=dict, batches=lambda: batches, loss=F.mse_loss, loss_of=lambda: None)


def make_case():
    """A trunk that two models share, with a weight that one of them does not use, and batches."""
    torch.manual_seed(1)
    trunk = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double()
    unused = nn.Parameter(torch.ones(2, dtype=torch.double))
    models = [nn.Sequential(trunk, nn.Linear(4, 2).double()) for _ in range(2)]
    batches = [(torch.randn(5, 3).double(), torch.randn(5, 2).double()) for _ in range(2)]
    return [*trunk.parameters(), unused], models, batches


def slow_squares(model, weights, batches):
    """The mean over batches of the squared gradient of a batch's mean loss."""
    total = [torch.zeros_like(weight) for weight in weights]
    for inputs, targets in batches:
        gradients = torch.autograd.grad(((model(inputs) - targets) ** 2).mean(), weights)
        total = [each + gradient**2 / len(batches) for each, gradient in zip(total, gradients, strict=True)]
    return total


@pytest.mark.parametrize("compounding", [False, True])
@pytest.mark.parametrize("clip", [0.0, 1e-2])
def test_importance_and_penalty_are_the_formula(clip, compounding):
    shared, models, batches = make_case()
    protection = make_protection("wpl-2019", shared, strength=3.0, share=0.8, clip=clip, compounding=compounding)
    used, expected = shared[:2], [torch.zeros_like(weight) for weight in shared[:2]]
    anchors = []
    for model in models:
        for i, square in enumerate(slow_squares(model, used, batches)):
            new = 0.2 * expected[i] + 0.8 * square
            norm = new.pow(2).sum().sqrt()
            new = new * clip / norm if clip and norm > clip else new
            expected[i] = 3.0 * new if compounding else new
        protection.consolidate(model, evidence_of(batches))
        anchors = [weight.detach().clone() for weight in used]
        with torch.no_grad():
            for weight in shared:
                weight += 0.1 * torch.randn_like(weight)
    factor = 1.0 if compounding else 3.0
    forms = [f * (weight - anchor) ** 2 for f, weight, anchor in zip(expected, used, anchors, strict=True)]
    penalty = protection.extra_loss(None)
    assert penalty.item() == pytest.approx(factor / 2 * sum(form.sum().item() for form in forms), rel=1e-9)
    assert protection.penalty() == penalty.item()
    for i, gradient in enumerate(torch.autograd.grad(penalty, used)):
        torch.testing.assert_close(gradient, factor * expected[i] * (used[i] - anchors[i]).detach())


def test_what_the_code_compounds_to():
    """g² = 1 and α = 60: 54, 378, 2,322, 13,986; with the clip, norm 600 whatever g² is."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    unit = [(torch.ones(1, 1), torch.full((1, 1), 0.5))]  # the gradient of (w − 0.5)² at 0 is −1

    def found(**options):
        protection = make_protection("wpl-2019", [model.weight], strength=60.0, **options)
        for _ in range(4):
            protection.consolidate(model, evidence_of(unit))
            yield protection.state_dict()["importances"][0].item()

    assert list(found(compounding=True, clip=0.0)) == pytest.approx([54, 378, 2322, 13986])
    assert list(found(compounding=True)) == pytest.approx([54, 378, 600, 600])
    assert list(found()) == pytest.approx([0.9, 0.99, 0.999, 0.9999])


def test_loss_and_penalty_share_one_clip():
    shared, models, batches = make_case()
    protection = make_protection("wpl-2019", shared, strength=1e3)
    protection.consolidate(models[0], evidence_of(batches))
    model = models[1]
    with torch.no_grad():
        for weight in shared:
            weight += 1
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [weight.detach().clone() for weight in model.parameters()]
    inputs, targets = batches[0]
    loss = F.mse_loss(model(inputs), targets) + protection.extra_loss(None)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    norm = math.sqrt(sum(gradient.pow(2).sum().item() for gradient in gradients))
    assert norm > 0.25
    train([batches[0]], lambda batch: F.mse_loss(model(batch[0]), batch[1]), optimizer, protection,
          max_gradient_norm=0.25)  # fmt: skip
    for weight, old, gradient in zip(model.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(weight.detach(), old - 0.25 / norm * gradient, rtol=1e-5, atol=1e-8)


def test_alpha_falls_from_epoch_15_and_importance_goes_every_second_epoch():
    shared, models, batches = make_case()
    protection = make_protection("wpl-2019", shared)
    alphas = []
    for epoch in (0, 1, 14, 15, 16, 74, 75):
        protection.begin_epoch(epoch)
        assert (protection.extra_loss(None) is None) == (epoch % 2 == 0 or epoch == 75)
        alphas.append(protection.alpha)
        protection.consolidate(models[0], evidence_of(batches))
    assert alphas == [60, 60, 60, 59, 58, 0, 0]


def test_without_strength_it_is_plain_training(task):
    config = changed(SMALL, wpl_2019_strength=0.0)
    records = [dataclasses.replace(each, protection="", is_protected=False) for each in run(config, task=task)]
    plain, held = without_time(records)[:3], without_time(records)[3:]
    assert plain == held


def test_it_holds_and_a_killed_search_goes_on_bit_for_bit(task):
    states = []

    def keep(record, state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        states.append(buffer.getvalue())

    records = run(SMALL, on_epoch=keep, task=task)
    plain, held = records[:3], records[3:]
    assert sum(each.mean_net_step for each in held) < sum(each.mean_net_step for each in plain)
    for done in (4, 5):
        state = torch.load(io.BytesIO(states[done - 1]), weights_only=True)
        again = run(SMALL, records=records[:done], checkpoint=state, task=task)
        assert without_time(again) == without_time(records)


def test_a_model_that_diverged_is_not_taken_in():
    shared, models, batches = make_case()
    protection = make_protection("wpl-2019", shared)
    broken = [(batches[0][0] * math.inf, batches[0][1])]
    with pytest.raises(DivergedError, match="Expected finite"):
        protection.consolidate(models[0], evidence_of(broken))
    assert protection.penalty() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, r"share in \[0, 1\], but got 1.5"),
        ({"clip": -1.0}, "clip to be finite and at least 0"),
        ({"fall": math.nan}, "fall to be finite and at least 0"),
        ({"reset_every": -1}, "reset_every to be at least 0"),
        ({"strength": -1.0}, "strength of wpl-2019 to be finite and at least 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        make_protection("wpl-2019", [], **options)


# ---- the preset ----------------------------------------------------------------------------------------------


def with_options(**given):
    """The preset's configuration with options of the command line beside it, by their paths."""
    paths = {name.replace("__", "."): value for name, value in given.items()}
    return SearchConfig.from_dict(tables_of(SearchConfig, with_preset(SearchConfig, preset("benyahia2019"), paths)))


def test_the_preset_is_the_published_search():
    config = with_options()
    assert config == SearchConfig.from_dict(preset("benyahia2019"))
    assert (config.space.nodes, config.space.units, config.task.num_steps, config.data.name) == (12, 1000, 35, "ptb")
    assert config.schedule.num_batches == 150 * 61 * 7
    assert config.arms == ("none", "wpl-2019")
    assert config.options_of("wpl-2019").strength == 60
    assert config.rates.in_words == " falling (by 0.96 per epoch from epoch 16)"
    assert (config.strategy.learning_rate, config.protect.start) == (3.5e-4, 5)


def test_options_beside_a_preset_win():
    config = with_options(space__recurrent__units=8, protections=("none", "wpl"), strategy="uniform")
    assert (config.space.units, config.space.nodes) == (8, 12)
    assert config.arms == ("none", "wpl")
    assert config.strategy_name == "uniform"
    with pytest.raises(InputError, match="Expected preset to be one of benyahia2019, but got 'benyahia'"):
        preset("benyahia")


def test_a_command_with_a_preset_leaves_a_complete_configuration(tmp_path, capsys, without_pictures):
    small = (
        "--data kjv --recurrent.nodes 2 --recurrent.units 4 --text.vocabulary 100 --epochs 1 --models-per-epoch 2 "
        "--batches-per-model 2 --batch-size 4 --strategy-steps 1 --final-samples 0 --protect-from 0"
    )
    words = ["search", "--preset", "benyahia2019", "--output", str(tmp_path / "run"), *shlex.split(small)]
    assert main(words) == 0, capsys.readouterr().err
    config = load_config(RunFolder(tmp_path / "run"))
    assert config.space.units == 4
    assert config.optimizer.learning_rate == 20
    assert config.options_of("wpl-2019").clip == 10
    text = (tmp_path / "run" / "config.toml").read_text()
    assert "factor = 0.96" in text
    assert "preset" not in text
    assert main(["search", "--preset", "nobody"]) == 2
    assert "Expected preset to be one of benyahia2019" in capsys.readouterr().err


def test_the_search_tells_the_protection_its_epoch(task):
    config = changed(SMALL, wpl_2019_fall=10.0, wpl_2019_fall_from=1, wpl_2019_strength=15.0)
    search = Search(config, task, SearchArm(0, "wpl-2019"))
    alphas = []
    for _ in range(3):
        search.one_epoch({}, lambda phase, values: None)
        alphas.append(search.protection.alpha)
    assert alphas == [15, 5, 0]
