"""The report of a search says what its records say: summary, sentences, curves, cells, page and table."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import recorded, search_config
from forgetless.errors import InputError
from forgetless.experiments import load_result
from forgetless.forgetting import Interval
from forgetless.records import made_of, plain
from forgetless.report import cell_drawing, forgetting_curves, report_html, search_headline, search_table
from forgetless.report.canvas import colour, data_uri
from forgetless.runs import RunFolder
from forgetless.search import run, search_arms
from forgetless.search.records import DerivedRecord, EpochRecord
from forgetless.search.result import SearchResult
from forgetless.spaces.cell import CellSpace
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace
from shown import Page, expect_readable, expect_whole, line, printed
from test_report import made_up as made_up_models
from test_report import stored as stored_models

LOST = {"none": 0.200, "matched-lr": 0.10, "freeze": 0.0, "l2": 0.02, "wpl": 0.05}
ARCHITECTURES = {
    "recurrent": "tanh(0) relu(1)",
    "cell": "normal: identity(0)+sep_conv_3x3(1) reduction: max_pool_3x3(1)+max_pool_3x3(0)",
    "nas201": "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|",
}


def made_up(lost=LOST, *, keep=lambda record: True, spread=0.01, **options):
    """A search with the forgetting of each protection given: a number, or a function of seed and epoch."""
    space = options.get("space", "recurrent")
    nodes = {"recurrent": {"nodes": 2}, "cell": {"nodes": 1}}.get(space, {})
    config = search_config(**{**nodes, "epochs": 5, "seeds": 3, "protection": tuple(LOST)} | options)
    architecture = ARCHITECTURES[space]
    scale = 1.0 if space == "recurrent" else 0.1
    records = []
    for arm in search_arms(config):
        noise = spread * (arm.seed - (config.run.seeds - 1) / 2)
        for epoch in range(config.schedule.epochs):
            given_ = lost[arm.protection]
            f = given_(arm.seed, epoch) if callable(given_) else given_ + noise * (arm.protection == "none")
            reward = 0.1 * (epoch + 1) + noise + (0.05 if arm.protection == "wpl" else 0)
            records.append(
                made_of(
                    {
                        "event": "epoch",
                        **dataclasses.asdict(arm),
                        "epoch": epoch,
                        "forgetting_mean": f,
                        "forgetting_best": None if f is None else 2 * f,
                        "forgetting_max": None if f is None else 3 * f,
                        "num_models": 0 if f is None else 10,
                        "num_diverged": 10 if f is None else 0,
                        "multi_model_part": None,
                        "error_first": 6 * scale,
                        "error_consolidated": 6 * scale,
                        "error_second": 6 * scale + (f or 0),
                        "is_protected": False,
                        "penalty": 0.1,
                        "mean_step": 0.5 if arm.protection in {"matched-lr", "wpl"} else 1.0,
                        "mean_net_step": 0.1,
                        "num_passed_over": 0,
                        "learning_rate": 10.0,
                        "strategy_mean_reward": reward,
                        "seconds": {"train": 2.0, "learn": 1.0},
                    },
                    EpochRecord,
                )
            )
        if config.selection.final_samples:
            errors = {"derived": scale * (5 + noise), "random": scale * 5.5}
            records.append(
                made_of(
                    {
                        "event": "derived",
                        **dataclasses.asdict(arm),
                        "architecture": architecture,
                        "reward": 0.6,
                        "random_architecture": architecture,
                        **{
                            f"{name}_{split}_error": e for name, e in errors.items() for split in ("validation", "test")
                        },
                        "seconds": {"derive": 5.0},
                    },
                    DerivedRecord,
                )
            )
    return SearchResult(config, [record for record in records if keep(record)])


def stored(path, result, **config):
    """A run folder that holds a search."""
    folder = RunFolder.create(path, {"experiment": "search", **result.config.to_dict(), **config})
    for record in result.records:
        folder.append(record.to_dict())
    return folder


def entry(result, protection):
    return next(each for each in result.summary() if each.protection == protection)


# The summary


def test_forgetting_is_averaged_over_the_last_half_and_rewards_over_the_last_quarter():
    """Of 5 epochs these are the last 3 and the last 2."""
    result = made_up({"none": lambda seed, epoch: 10.0**epoch * (seed + 1)}, protection=("none",), seeds=2, spread=0.0)
    found = entry(result, "none")
    by_seed = [(1e2 + 1e3 + 1e4) / 3, 2 * (1e2 + 1e3 + 1e4) / 3]
    mean, half = np.mean(by_seed), 12.7062 * np.std(by_seed, ddof=1) / math.sqrt(2)
    assert list(dataclasses.astuple(found.forgetting_mean)) == pytest.approx([mean, mean - half, mean + half], rel=1e-5)
    assert found.forgetting_best.mean == pytest.approx(2 * mean)
    assert found.forgetting_max.mean == pytest.approx(3 * mean)
    assert dataclasses.astuple(found.reward) == pytest.approx((0.45, 0.45, 0.45))
    assert found.seconds == 2 * (5 * 3.0 + 5.0)
    assert (found.num_seeds, found.num_models, found.num_diverged) == (2, 100, 0)
    assert [found.reduction_mean, found.reduction_best, found.reduction_max] == [None] * 3


@pytest.mark.parametrize(("epochs", "half", "quarter"), [(1, [0], [0]), (2, [1], [1]), (8, [4, 5, 6, 7], [6, 7])])
def test_which_epochs_are_averaged(epochs, half, quarter):
    result = made_up(epochs=epochs)
    assert (list(result.forgetting_epochs), list(result.last_quarter)) == (half, quarter)


def protected_from(starts, lost, **options):
    """A search of 8 epochs whose protected arm is protected from one epoch per seed on; `lost` is the unprotected's."""
    arms = {"none": lambda seed, epoch: lost[epoch], "wpl": 0.0}
    result = made_up(arms, protection=tuple(arms), epochs=8, seeds=len(starts), spread=0.0, **options)
    return recorded(
        result,
        lambda record: (
            {"is_protected": record.epoch >= starts[record.seed]}
            if record.event == "epoch" and record.protection == "wpl"
            else {}
        ),
    )


@pytest.mark.parametrize(
    ("starts", "lost", "epochs"),
    [
        ((1, 3), [0.9, 0.9, 0.9, 0.1, -0.2, 0.3, -0.1, -0.1], range(3, 6)),  # begins with the later seed
        ((1, 3), [0.9, 0.9, 0.9, -0.1, -0.2, -0.3, -0.1, -0.1], range(4, 8)),  # forgets before protection only
        ((1, 8), [0.1] * 8, range(4, 8)),  # one seed is never protected
        ((0,), [0.1] * 8, range(8)),
    ],
)
def test_forgetting_is_averaged_where_the_unprotected_arm_forgets_and_the_other_is_protected(starts, lost, epochs):
    result = protected_from(starts, lost)
    assert result.forgetting_epochs == epochs
    mean = sum(lost[epoch] for epoch in epochs) / len(epochs)
    assert entry(result, "none").forgetting_mean.mean == pytest.approx(mean)


def test_unfinished_seeds_do_not_decide_which_epochs_are_averaged():
    result = protected_from((1, 4), [0.1] * 8)
    keep = [r for r in result.records if not (r.seed == 1 and r.event == "epoch" and r.epoch == 7)]
    assert SearchResult(result.config, keep).forgetting_epochs == range(1, 8)


def test_forgetting_within_the_noise_of_the_seeds_is_told():
    lost = {"none": lambda seed, epoch: (-0.1, 0.05, 0.2)[seed], "wpl": 0.0}
    assert "do not show forgetting beyond their noise" in search_headline(made_up(lost, protection=tuple(lost)))
    assert "beyond their noise" not in search_headline(made_up())


def test_reductions_and_gains_pair_the_seeds():
    result = made_up(
        {"none": lambda seed, epoch: 0.1 * (seed + 1), "wpl": lambda seed, epoch: 0.03 * seed},
        protection=("none", "wpl"),
    )
    found = entry(result, "wpl")
    assert found.reduction_mean.mean == pytest.approx(1 - 0.03 / 0.2)
    # Seed by seed 100, 85 and 80 % are prevented: no resample of pairs leaves that range, one of single values would.
    assert 0.8 - 1e-9 <= found.reduction_mean.low <= found.reduction_mean.high <= 1 + 1e-9
    assert found.derived_test_error.mean == pytest.approx(5.0)
    assert found.gain.mean == pytest.approx(0.5)
    difference = result.difference("wpl", "none", "forgetting_mean", result.forgetting_epochs)
    assert difference.mean == pytest.approx(0.03 - 0.2)


def test_only_whole_seeds_count_and_no_reduction_is_over_other_seeds():
    whole = made_up(protection=("wpl", "none"))
    part = made_up(
        protection=("wpl", "none"), keep=lambda r: (r.seed, r.protection, getattr(r, "epoch", 4)) != (2, "none", 4)
    )
    assert part.seeds("none") == [0, 1]
    assert entry(part, "none").num_seeds == 2
    assert entry(part, "wpl").reduction_mean is None
    assert entry(part, "wpl").forgetting_mean == entry(whole, "wpl").forgetting_mean
    assert part.progress == (5, 6)


def test_models_that_diverged_are_left_out_and_counted():
    result = made_up(
        {"none": lambda seed, epoch: None if epoch == 4 or seed == 2 else 0.1 * epoch}, protection=("none",)
    )
    found = entry(result, "none")
    assert found.forgetting_mean.mean == pytest.approx(0.25)  # epochs 2 and 3 of seeds 0 and 1
    assert (found.num_seeds, found.num_models, found.num_diverged) == (3, 80, 70)
    assert "70 trained models diverged and are left out of the averages." in search_headline(result)
    assert "Diverged models, left out: none 70." in printed(search_table(result))


def test_what_is_not_known_is_none():
    result = made_up(protection=("wpl",), seeds=1, final_samples=0)
    found = entry(result, "wpl")
    assert found.forgetting_mean == Interval(pytest.approx(0.05), None, None)
    assert [found.derived_test_error, found.random_test_error, found.gain] == [None] * 3
    assert result.progress == (1, 1)
    assert SearchResult(result.config, []).summary() == []


# Sentences


def test_headline():
    assert search_headline(made_up(spread=0.002)) == (
        "By the end of the epoch models lose 0.200 nats per token on average without protection and lose 0.050 with "
        "the weight plasticity loss: 75 % of the forgetting was prevented (95 % interval 75 %). The control arm, no "
        "protection but smaller steps, loses 0.100: 0.050 more than with the weight plasticity loss. The five best "
        "models of an epoch: 0.400 without, 0.100 with; the one that loses most: 0.600 and 0.150. The reward over the "
        "last quarter is 0.500 with the weight plasticity loss and 0.450 without, more beyond the noise of the seeds. "
        "Trained from scratch, the architecture derived with the weight plasticity loss reaches 5.000 nats per token "
        "on test text, a random one 5.500: better beyond the noise of the seeds."
    )


def in_seed(number, values):
    """Forgetting that only one seed has."""
    return lambda seed, epoch: values if seed == number else None


# name: (forgetting, options, what the headline says, what it never says)
HEADLINES = {
    "nothing forgotten": (
        {"none": -0.1},
        {},
        "without protection, so there is no forgetting to reduce; with the weight plasticity loss they lose 0.050.",
        "prevented",
    ),
    "nothing but rounding": (
        {"none": 1e-17},
        {"spread": 0.0},
        "lose nothing on average without protection, so there is no forgetting to reduce",
        "prevented",
    ),
    "one seed": ({}, {"seeds": 1}, "75 % of the forgetting was prevented (one seed, so no interval)", "beyond"),
    "worse": (
        {"wpl": 0.4},
        {},
        "lose 0.400 with the weight plasticity loss: protection made it worse (reduction −100 %, 95 % interval",
        "prevented",
    ),
    "worse in one seed": ({"wpl": 0.4}, {"seeds": 1}, "protection did not help (reduction −100 %", "made it worse"),
    "better than before": ({"wpl": -0.1}, {}, "improve by 0.100 with the weight plasticity loss: all of", "150 %"),
    "noise": (
        {"wpl": lambda seed, epoch: 0.15 * seed},
        {},
        "The interval includes 0: these seeds do not show that the protection helps.",
        "worse",
    ),
    "control as good": (
        {"matched-lr": 0.05},
        {},
        "loses 0.050, not significantly different from the weight plasticity loss.",
        "more than with",
    ),
    "control better": (
        {"matched-lr": 0.01},
        {},
        "loses 0.010: 0.040 less than with the weight plasticity loss.",
        "more than with",
    ),
    "control in one seed": ({}, {"seeds": 1}, "but smaller steps, loses 0.100. The five", "more than with"),
    "unprotected alone": (
        {},
        {"protection": ("none",)},
        "without protection on average. What protection changes takes both arms with the same seeds: `--protection no",
        "prevented",
    ),
    "protected alone": ({}, {"protection": ("wpl",)}, "`--protection none wpl`", "prevented"),
    "another protection": (
        {},
        {"protection": ("none", "freeze")},
        "lose nothing with frozen shared weights",
        "control",
    ),
    "one architecture": ({}, {"single": True}, "nothing here is one model overwriting another", "diverged"),
    "all diverged": ({"wpl": in_seed(9, 0)}, {}, "All models diverged with the weight plasticity loss.", "prevented"),
    "diverged in different seeds": (
        {"none": in_seed(0, 0.2), "wpl": in_seed(1, 0.1)},
        {"seeds": 2},
        "models lose 0.100 nats per token with the weight plasticity loss on average.",
        "prevented",
    ),
    "one seed of two diverged": (
        {"none": 0.2, "wpl": in_seed(1, 0.1)},
        {"seeds": 2, "spread": 0.0},
        "50 % of the forgetting was prevented (one seed, so no interval)",
        "bound",
    ),
    "derived as good as random": (
        {},
        {"spread": 1.0},
        "a random one 5.500, no significant difference.",
        "better",
    ),
    "derived in one seed": ({}, {"seeds": 1}, "a random one 5.500, in one seed.", "better"),
    "images": (
        {},
        {"space": "nas201", "data": "cifar10"},
        "lose 20.0 points of accuracy on average without protection and lose 5.0 with",
        "nats",
    ),
}


@pytest.mark.parametrize("case", HEADLINES)
def test_headline_is_honest(case):
    lost, options, expected, never = HEADLINES[case]
    result = made_up(LOST | lost, **({"spread": 0.002} | options))
    text = search_headline(result)
    assert expected in text
    assert never not in text


def test_means_of_two_arms_are_over_the_seeds_that_both_have():
    """Seed 2 is wpl's no more: what the unprotected arm lost and won there is in no sentence."""
    lost = {"none": lambda seed, epoch: 0.2 if seed < 2 else 9.0, "wpl": lambda seed, epoch: 0.05}
    options = {"protection": ("none", "wpl"), "spread": 0.0}
    result = made_up(lost, **options, keep=lambda r: (r.seed, r.protection) != (2, "wpl"))
    for record in result.epochs("none", 2):
        record.strategy["mean_reward"] = 77.0
    text = search_headline(result)
    assert text.startswith("So far, with 5 of 6 searches finished: By the end of the epoch models lose 0.200")
    assert "0.400 without, 0.100 with; the one that loses most: 0.600 and 0.150" in text
    assert "0.500 with the weight plasticity loss and 0.450 without" in text


def test_a_control_arm_that_could_not_be_matched_is_told():
    """Seed by seed: 200 and 50 % in two of them are not 100 % together."""
    steps = (0.25, 1.0, 0.5)
    result = recorded(
        made_up(),
        lambda record: (
            {"mean_step": steps[record.seed]} if record.event == "epoch" and record.protection == "wpl" else {}
        ),
    )
    assert "(in 2 of 3 seeds with steps of 50 to 200 % the protected arm's size)" in search_headline(result)


# Curves


def test_curves_are_the_means_of_the_records():
    result = made_up(seeds=2)
    figure = forgetting_curves(result)
    keys = ("forgetting_mean", "forgetting_best", "forgetting_max", "strategy_mean_reward")
    for ax, key in zip(figure.axes, keys, strict=True):
        for protection in LOST:
            x, y = line(ax, protection)
            assert list(x) == [1, 2, 3, 4, 5]
            records = [[r.number(key) for r in result.epochs(protection) if r.epoch == epoch] for epoch in range(5)]
            np.testing.assert_allclose(y, np.mean(records, axis=1))
            (drawn,) = [each for each in ax.lines if each.get_gid() == protection]
            assert drawn.get_color() == colour(protection)
    assert len(figure.axes[0].collections) == 5  # a band each
    title = " ".join(figure.get_suptitle().split())
    assert title == (
        "By the end of an epoch its models lose 0.200 nats per token without protection and 0.050 with weight "
        "plasticity"
    )


def test_images_are_in_points_and_one_seed_has_no_band():
    result = made_up(space="nas201", seeds=1)
    figure = forgetting_curves(result)
    assert line(figure.axes[0], "none")[1] == pytest.approx([20.0] * 5)
    assert line(figure.axes[3], "none")[1] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert [ax.get_ylabel() for ax in figure.axes] == ["err₂ − err₁, points of accuracy"] * 3 + ["accuracy"]
    assert not figure.axes[0].collections


def test_an_epoch_in_which_all_diverged_is_a_gap():
    result = made_up({"none": lambda seed, epoch: None if epoch == 1 else 0.1}, protection=("none",))
    x, y = line(forgetting_curves(result).axes[0], "none")
    assert list(np.asarray(x)[np.isnan(y)]) == [2]


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 1, "seeds": 1},
        {"epochs": 150, "lost": LOST | {"none": 1234.5}},
        {"space": "nas201", "epochs": 12, "lost": LOST | {"none": -1e-5}},
        {"protection": ("none",), "strategy": "uniform"},
    ],
)
def test_no_text_covers_another_or_leaves_the_figure(options):
    figure = forgetting_curves(made_up(**options))
    assert figure.get_figwidth() == 9
    expect_readable(figure)


def test_curves_need_an_epoch():
    with pytest.raises(InputError, match="Expected at least one finished epoch to draw"):
        forgetting_curves(SearchResult(made_up().config, []))


# Cells


SPACES = {"recurrent": RecurrentSpace(4), "cell": CellSpace(3), "nas201": Nas201Space()}


@settings(deadline=None, max_examples=5)
@given(data=st.data())
@pytest.mark.parametrize("name", SPACES)
def test_a_drawn_cell_has_every_node_arrow_and_operation(name, data):
    space = SPACES[name]
    architecture = space.decode([data.draw(st.integers(0, options - 1)) for options in space.num_choices])
    figure = cell_drawing(architecture)
    graphs = list(architecture.graphs().values())
    assert len(figure.axes) == len(graphs)
    for ax, edges in zip(figure.axes, graphs, strict=True):
        boxes = {p.get_gid().removeprefix("node ") for p in ax.patches if p.get_gid()}
        assert boxes == {node for edge in edges for node in edge[:2]}
        assert len([p for p in ax.patches if not p.get_gid()]) == len(edges)  # the arrows
        texts = [text.get_text().split() for text in ax.texts]
        for source, target, label in edges:
            assert any(words[0] == source for words in texts)
            assert any(words[0] == target for words in texts)
            if target in {"h'", "output"} or name == "recurrent":
                assert [target, label.replace("concatenate", "concat.")] in texts
        if name != "recurrent":
            said = sorted(" ".join(words).replace("×", "x") for words in texts)
            for label in {edge.label for edge in edges} - {"concatenate"}:
                wanted = sum(edge.label == label for edge in edges)
                assert said.count(label.replace("_", " ")) == wanted
    expect_readable(figure)


@pytest.mark.parametrize("name", SPACES)
def test_the_same_cell_gives_the_same_bytes(name):
    architecture = SPACES[name].decode([options - 1 for options in SPACES[name].num_choices])
    assert data_uri(cell_drawing(architecture)) == data_uri(cell_drawing(architecture))


def test_a_cell_without_any_operation_says_so():
    (ax,) = cell_drawing(Nas201Space().parse("|none~0|+|none~0|none~1|+|none~0|none~1|none~2|")).axes
    assert [text.get_text() for text in ax.texts] == ["no operation at all"]


# The page


@pytest.mark.parametrize("space", ARCHITECTURES)
def test_the_page_needs_nothing_else(tmp_path, space):
    result = made_up(space=space, seeds=2, protection=("none", "wpl"))
    folder = stored(tmp_path / "run", result)
    html = report_html([folder])
    page = expect_whole(html)
    assert page.tags.count("img") == 1 + 2  # the curves, and a cell per protection
    for expected in (search_headline(result).split(":")[0], ARCHITECTURES[space], "forgetless search", "torch"):
        assert expected in page.text
    assert ("points of accuracy" in page.text) == (space != "recurrent")
    assert "This run is not complete" not in page.text
    assert report_html([folder]) == html


def test_two_models_and_searches_on_one_page(tmp_path):
    folders = [
        stored_models(tmp_path / "models", made_up_models(seeds=2)),
        stored(tmp_path / "text", made_up(seeds=2)),
        stored(tmp_path / "images", made_up(seeds=2, space="nas201", strategy="uniform")),
    ]
    page = expect_whole(report_html(folders))
    assert page.ids == ["run-1", "run-2", "run-3"]
    assert "Two models side by side" in page.text
    assert "Searches side by side" in page.text
    assert "strategy.name enas uniform" in page.text
    assert "forgetless two-model" in page.text
    assert "forgetless search --space nas201" in page.text


def test_unfinished_searches_say_so(tmp_path):
    result = made_up(keep=lambda r: r.seed == 0 and r.protection == "none" and getattr(r, "epoch", 9) < 2)
    page = Page(report_html([stored(tmp_path / "run", result)]))
    assert "No search has all its epochs yet: 2 epochs so far." in page.text
    assert "0 of 15 searches are finished" in page.text
    assert page.tags.count("img") == 1
    empty = stored(tmp_path / "empty", SearchResult(result.config, []))
    page = Page(report_html([empty]))
    assert "No search has all its epochs yet: no epoch yet." in page.text
    assert "img" not in page.tags
    assert printed(search_table(load_result(empty))) == [
        "Unfinished: 0 of 15 searches. Go on with `forgetless resume`."
    ]


def test_real_searches_become_a_page_and_every_key_is_documented(tmp_path):
    sizes = {"epochs": 1, "models_per_epoch": 2, "batches_per_model": 2, "samples_per_step": 2, "units": 2}
    config = search_config(space="nas201", strategy_steps=1, final_samples=2, final_batches=2, batch_size=16, **sizes)
    result = SearchResult(config, run(config))
    folder = stored(tmp_path / "run", result)
    assert load_result(folder).summary() == result.summary()
    assert "one seed" in expect_whole(report_html([folder])).text
    pages = Path(__file__).parents[1] / "docs"
    documented = (pages / "metrics.md").read_text(encoding="utf-8").split("# Searches")[1]
    for record in plain([*result.records, *result.summary()]):
        for key in record:
            assert f"`{key}`" in documented


def test_damaged_records_are_refused(tmp_path):
    folder = stored(tmp_path / "run", made_up(seeds=1, protection=("wpl",)))
    report_html([folder])
    folder.append({"event": "epoch", "seed": 0})
    with pytest.raises(
        InputError, match=r"Expected a record of search in line 7 of .* it lacks epoch, error_consolidated"
    ):
        report_html([folder])


# The terminal


@pytest.mark.parametrize("space", ["recurrent", "nas201"])
@pytest.mark.parametrize("factor", [1.0, 40.0])
def test_the_table_is_80_columns_wide_and_leaves_nothing_out(space, factor):
    """Every value is there, with all its digits, whatever its width; a cell may go on in the next line."""
    lost = {name: lambda seed, epoch, f=f: factor * (f - 0.07 + 0.028 * seed) for name, f in LOST.items()}
    result = made_up(lost, seeds=2, spread=0.05 * factor, space=space)
    result = recorded(result, lambda r: {"seconds": {"train": 45_240 / 12 if r.protection == "wpl" else 115 / 12}})
    lines = printed(search_table(result))
    assert max(map(len, lines)) <= 80
    assert not any("…" in text for text in lines)
    words = {word for text in lines for word in text.split()}
    scale, digits = (1, 3) if space == "recurrent" else (100, 1)
    for found in result.summary():
        for key in ("forgetting_mean", "forgetting_best", "forgetting_max", "derived_test_error", "gain"):
            interval = getattr(found, key)
            mean, half = interval.mean, interval.high - interval.mean
            assert {f"{scale * mean:.{digits}f}".replace("-", "−"), f"±{scale * half:.{digits}f}"} <= words
    assert {"12", "34", "55"} <= words


def test_the_table_fits_typical_values_without_a_break():
    result = made_up(
        {"none": -0.106, "wpl": lambda seed, epoch: -0.106 + 0.04 * seed},
        protection=("none", "wpl"),
        seeds=2,
        spread=0.04,
    )
    result = recorded(result, lambda r: {"seconds": {"train": 45_240 / 12 if r.protection == "wpl" else 115 / 12}})
    lines = printed(search_table(result))
    assert sum(text.startswith("wpl ") for text in lines) == 2
    assert next(text for text in lines if text.startswith("wpl")).split()[1:3] == ["−0.086", "±0.254"]
    assert sum(text.endswith(("1 min 55 s", "12 h 34 min")) for text in lines) == 2


def test_the_table_says_what_is_missing():
    lines = printed(search_table(made_up(LOST | {"none": -0.05})))
    assert any(text.startswith("wpl") and text.endswith("none to reduce") for text in lines)
    assert "none to reduce: without protection the models do not forget on average." in lines
    lines = printed(search_table(made_up(seeds=1, final_samples=0)))
    assert "One seed gives no interval. Negative forgetting is progress." in lines
    assert not any("±" in text or "[" in text for text in lines)
    assert next(text for text in lines if text.startswith("wpl")).split() == ["wpl", "0.050", "0.100", "0.150", "75"]


class _Counted(list):
    """A list that counts what is read of it."""

    read = 0

    def __iter__(self):
        for each in super().__iter__():
            _Counted.read += 1
            yield each


def test_records_are_read_as_often_however_many_seeds_there_are():
    """A report of a hundred thousand records must not look through all of them once per seed."""
    read = []
    for seeds in (4, 8, 16):
        result = made_up(seeds=seeds)
        _Counted.read = 0
        counted = SearchResult(result.config, _Counted(result.records))
        search_table(counted)
        forgetting_curves(counted)
        counted.progress  # noqa: B018
        read.append(_Counted.read / len(result.records))
    assert read[0] == read[1] == read[2] <= 3


# What findings and pictures are made of


def test_quantities_by_epoch_are_those_of_the_seeds_that_have_them():
    result = made_up(lost={**LOST, "none": lambda seed, epoch: None if (seed, epoch) == (0, 1) else seed + epoch})
    found = result.by_epoch("none", "forgetting_mean")
    assert found == {0: [0, 1, 2], 1: [2, 3], 2: [2, 3, 4], 3: [3, 4, 5], 4: [4, 5, 6]}
    assert result.by_epoch("none", "strategy_entropy_of_nothing") == {}


def test_the_best_derived_architecture_is_that_of_the_lowest_validation_error():
    result = made_up()
    errors = {0: 0.3, 1: None, 2: 0.2}
    records = [
        dataclasses.replace(record, derived_validation_error=errors[record.seed])
        if isinstance(record, DerivedRecord)
        else record
        for record in result.records
    ]
    best = dataclasses.replace(result, records=records).best_derived("wpl")
    assert (best.seed, best.protection) == (2, "wpl")
    epochs = [record for record in result.records if not isinstance(record, DerivedRecord)]
    assert dataclasses.replace(result, records=epochs).best_derived("wpl") is None


def test_pairs_are_over_the_seeds_that_both_arms_have():
    result = made_up(lost={**LOST, "none": 0.5, "wpl": 0.1}, spread=0.0)
    kept = [record for record in result.records if (record.seed, record.protection) != (0, "wpl")]
    whole, some = result, dataclasses.replace(result, records=kept)
    epochs = range(5)
    assert whole.paired("none", "wpl", "forgetting_mean", epochs) == pytest.approx([0.5, 0.1])
    assert some.paired("none", "wpl", "mean_step", epochs) == pytest.approx(
        [
            sum(arm[seed] for seed in (1, 2)) / 2
            for arm in (result.by_seed(name, "mean_step", epochs) for name in ("none", "wpl"))
        ]
    )
    assert some.paired("none", "ewc", "forgetting_mean", epochs) == []
