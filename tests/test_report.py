"""The report says what the records say: figures, page, table, sentences and command."""

import dataclasses
import io
import shlex

import matplotlib as mpl
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import changed, recorded, two_model_config
from forgetless.errors import InputError
from forgetless.experiments import load_result, two_model
from forgetless.experiments.two_model import TwoModelResult, arms
from forgetless.experiments.two_model.records import RunRecord
from forgetless.experiments.two_model.selection import chosen_strength
from forgetless.forgetting import mean_interval
from forgetless.options import command_line
from forgetless.protection import PROTECTIONS
from forgetless.records import made_of
from forgetless.report import (
    accuracy_curves,
    chain_forgetting,
    forgetting_bars,
    headline,
    report_html,
    summary_table,
    trade_off,
    write_report,
)
from forgetless.report.canvas import colour
from forgetless.runs import RunFolder, write_sealed
from shown import Page, expect_readable, expect_whole, line, printed

LOST = {"none": 0.20, "matched-lr": 0.10, "freeze": 0.0, "l2": 0.02, "wpl": 0.01}


def made_up(lost=LOST, *, keep=lambda arm: True, spread=0.01, **options):
    """A result with the forgetting of each protection given, a number or a function of the arm."""
    options = {"iterations": 100, "iterations_a": 100, "evaluate_every": 25, "seeds": 3} | options
    config = two_model_config(**options)
    runs = []
    for arm in filter(keep, arms(config)):
        noise = spread * (arm.seed - (config.run.seeds - 1) / 2)
        before = 0.95 * arm.convergence + noise
        given_ = lost[arm.protection]
        f = (given_(arm) if callable(given_) else given_) * arm.shared / 3
        f += noise if arm.protection == "none" else 0
        b = 0.9 + noise - (0.02 if arm.protection == "wpl" else 0)
        letters = [chr(ord("A") + j) for j in range(config.chain.models)]
        iterations, num_steps = [0], config.schedule.iterations
        for j in range(config.chain.models - 1):
            iterations += [j * num_steps + i for i in range(25, num_steps + 1, 25)]
        part = np.asarray(iterations) / iterations[-1]
        accuracy = [before, b, *([0.88] * (config.chain.models - 2))]
        forgotten = [f, *([0.05 * (arm.protection == "none")] * (config.chain.models - 2)), 0.0]
        runs.append(
            made_of(
                {
                    **dataclasses.asdict(arm),
                    "wiring": str(config.chain.wiring),
                    "accuracy_a_before": before,
                    "accuracy_a_after": before - f,
                    "accuracy_a_min": before - f,
                    "accuracy_b": b,
                    "forgetting": f,
                    "validation_forgetting": f + 0.001,
                    "validation_b": b + 0.001,
                    "steps_of_a": 100,
                    "mean_step": 0.5 if arm.protection in {"matched-lr", "wpl"} else 1.0,
                    "shared_learning_rate": 0.005,
                    "models": [
                        {"model": letter, "accuracy_before": a, "accuracy_after": a - g, "forgetting": g}
                        for letter, a, g in zip(letters, accuracy, forgotten, strict=True)
                    ],
                    "curve": {
                        "iteration": iterations,
                        "accuracy_a": list(before - f * part),
                        "accuracy_b": list(0.1 + (b - 0.1) * part),
                    },
                    "seconds": 1.5,
                },
                RunRecord,
            )
        )
    return TwoModelResult(config, runs)


def stored(path, result, **options):
    """A run folder that holds a result."""
    config = changed(result.config, **options)
    folder = RunFolder.create(path, {"experiment": "two-model", **config.to_dict()})
    for run in result.runs:
        folder.append(run.to_dict())
    return folder


def mean_of(result, protection, key, **where):
    return 100 * np.mean(
        [
            getattr(run, key)
            for run in result.runs
            if run.protection == protection and all(getattr(run, name) == value for name, value in where.items())
        ]
    )


# Figures


def test_every_protection_has_a_colour_of_its_own():
    assert len({colour(name) for name in PROTECTIONS}) == len(PROTECTIONS)
    assert colour("of a plugin that is gone") not in {colour(name) for name in PROTECTIONS}


def test_curves_are_the_means_of_the_records():
    result = made_up(convergence=(1.0, 0.43))
    figure = accuracy_curves(result)
    assert len(figure.axes) == 2
    for ax, convergence in zip(figure.axes, (1.0, 0.43), strict=True):
        for protection in LOST:
            runs = [r for r in result.runs if r.protection == protection and r.convergence == convergence]
            for letter, key in (("A", "accuracy_a"), ("B", "accuracy_b")):
                x, y = line(ax, f"{protection} {letter}")
                np.testing.assert_array_equal(x, runs[0].curve.iteration)
                np.testing.assert_allclose(y, 100 * np.mean([getattr(r.curve, key) for r in runs], axis=0))
        assert line(ax, "before")[1][0] == pytest.approx(
            mean_of(result, "none", "accuracy_a_before", convergence=convergence)
        )
    drawn = {each.get_gid(): each.get_color() for each in figure.axes[0].lines}
    assert all(drawn[f"{name} A"] == drawn[f"{name} B"] == colour(name) for name in LOST)


def test_the_band_spans_the_seeds():
    result = made_up(protection=("none",))
    (band,) = accuracy_curves(result).axes[0].collections
    last = [r.accuracy_a_after * 100 for r in result.runs]
    end = band.get_paths()[0].vertices[:, 1][band.get_paths()[0].vertices[:, 0] == 100]
    assert (end.min(), end.max()) == pytest.approx((min(last), max(last)))
    assert not accuracy_curves(made_up(protection=("none",), seeds=1)).axes[0].collections


def test_bars_dots_and_intervals_are_those_of_the_records():
    result = made_up(shared=(1, 3))
    figure = forgetting_bars(result)
    for ax, shared in zip(figure.axes, (1, 3), strict=True):
        for bar, dots, protection in zip(ax.patches, ax.collections, result.config.arms, strict=True):
            runs = [r for r in result.runs if r.protection == protection and r.shared == shared]
            assert bar.get_gid() == protection
            assert bar.get_width() == pytest.approx(mean_of(result, protection, "forgetting", shared=shared))
            np.testing.assert_allclose(dots.get_offsets()[:, 0], [100 * r.forgetting for r in runs])
        interval = mean_interval(
            [100 * r.forgetting for r in result.runs if r.protection == "none" and r.shared == shared]
        )
        first = next(drawn for drawn in ax.lines if drawn.get_gid() == "interval")
        low, high = ax.get_xlim()
        assert tuple(first.get_xdata()) == pytest.approx((max(interval.low, low), min(interval.high, high)))
    lone = forgetting_bars(made_up(seeds=1)).axes[0]
    assert not [drawn for drawn in lone.lines if drawn.get_gid() == "interval"]


def test_trade_off_draws_every_alpha_and_the_arms_without_one():
    alphas = (0.0, 1e2, 1e4)
    result = made_up(LOST | {"wpl": lambda arm: 0.2 / (1 + arm.strength)}, wpl_strength=alphas, seeds=3)
    (ax,) = trade_off(result).axes
    for key in ("accuracy_a_after", "accuracy_b"):
        for protection in ("wpl", "matched-lr"):
            x, y = line(ax, f"{protection} {key}")
            assert tuple(x) == alphas
            np.testing.assert_allclose(y, [mean_of(result, protection, key, strength=a) for a in alphas])
    assert sorted(set(line(ax, "none")[1])) == pytest.approx(
        sorted(mean_of(result, "none", key) for key in ("accuracy_a_after", "accuracy_b"))
    )
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "100", "1e4"]
    places = ax.transData.transform([(a, 0) for a in alphas])[:, 0]
    assert np.all(np.diff(places) > 50)


def test_trade_off_of_one_alpha_and_of_none():
    assert "several values of α" in " ".join(trade_off(made_up()).get_suptitle().split())
    trade_off(made_up(wpl_strength=(0.0,)))
    with pytest.raises(InputError, match="Expected runs with a strength α under 'freeze'"):
        trade_off(made_up(protection=("none", "freeze")))


def test_a_chain_is_drawn_model_by_model():
    result = made_up(models=4, protection=("none", "wpl"))
    (ax,) = chain_forgetting(result).axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["A", "B", "C"]
    heights = {name: [p.get_height() for p in ax.patches if p.get_gid() == name] for name in ("none", "wpl")}
    assert heights["none"] == pytest.approx([20, 5, 5])
    assert heights["wpl"] == pytest.approx([1, 0, 0])
    (curves,) = accuracy_curves(result).axes
    parts = [drawn.get_xdata() for drawn in curves.lines if drawn.get_gid() == "none B"]
    assert [(x[0], x[-1]) for x in parts] == [(0, 100), (125, 200), (225, 300)]
    assert [text.get_text() for text in curves.texts] == ["B trains", "C trains", "D trains"]


def test_several_alphas_are_chosen_between_on_validation_data_alone():
    changes = {
        1e3: {"validation_forgetting": 0.05, "validation_b": 0.9, "forgetting": -0.5},
        1e4: {"validation_forgetting": 0.01, "validation_b": 0.9, "forgetting": 0.011},
        1e5: {"validation_forgetting": 0.0, "validation_b": 0.8, "forgetting": -0.5},
    }
    result = recorded(
        made_up(wpl_strength=(1e3, 1e4, 1e5)), lambda run: changes[run.strength] if run.protection == "wpl" else {}
    )
    assert chosen_strength(result, "wpl") == chosen_strength(result, "matched-lr") == 1e4
    assert chosen_strength(result, "l2") == 1.0
    assert chosen_strength(result, "none") is None
    bars = {bar.get_gid(): bar.get_width() for bar in forgetting_bars(result).axes[0].patches}
    assert bars["wpl"] == pytest.approx(1.1)
    # A strength that is better but lacks a seed is compared on the seeds that all have; equal ones go to the lowest.
    fewer = TwoModelResult(result.config, [r for r in result.runs if (r.seed, r.strength) != (2, 1e4)])
    assert chosen_strength(fewer, "wpl") == 1e4
    equal = made_up(wpl_strength=(1e5, 1e3))
    assert chosen_strength(equal, "wpl") == 1e3


@pytest.mark.parametrize("draw", [accuracy_curves, forgetting_bars, trade_off, chain_forgetting])
def test_figures_touch_no_global_state_and_need_runs(draw):
    before = dict(mpl.rcParams)
    result = made_up(seeds=1)
    with mpl.rc_context({"axes.facecolor": "black", "text.color": "red", "font.size": 30}):
        figure = draw(result)
        assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)
    assert dict(mpl.rcParams) == before
    assert figure.get_figwidth() == 9
    figure.savefig(io.BytesIO(), format="png", dpi=20)
    with pytest.raises(InputError, match=r"Expected at least one finished run"):
        draw(TwoModelResult(result.config, []))


@pytest.mark.parametrize(
    "options",
    [
        {"convergence": (1.0, 0.55, 0.43, 0.38), "shared": (1, 3), "models": 3},
        {"protection": ("none", "matched-lr", "freeze", "l2", "wpl"), "wpl_strength": (0.0, 1.0, 1e3, 1e12)},
        {
            "lost": {**LOST, "wpl-tolerance": 0.02},
            "protection": ("none", "wpl", "wpl-tolerance"),
            "wpl_tolerance_strength": (0.003, 0.1),
            "convergence": (1.0, 0.38),
        },
    ],
)
def test_no_text_covers_another_or_leaves_the_figure(options):
    result = made_up(seeds=2, **options)
    for draw in (accuracy_curves, forgetting_bars, trade_off, chain_forgetting):
        expect_readable(draw(result))


# The page


def test_the_page_needs_nothing_else(tmp_path):
    folder = stored(tmp_path / "run", made_up(wpl_strength=(1e3, 1e5), models=3))
    path = write_report([folder], tmp_path / "report.html")
    assert path == tmp_path / "report.html"
    page = expect_whole(path.read_text(encoding="utf-8"))
    assert page.tags.count("img") == 4  # curves, bars, the chain, the trade-off
    for expected in (
        headline(load_result(folder)).split(":")[0],
        "forgetless two-model",
        "torch",
        "mean step"[:4],
        "α",
    ):
        assert expected in page.text
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_the_same_folders_give_the_same_bytes(tmp_path):
    folder = stored(tmp_path / "run", made_up(seeds=2))
    first, second = (write_report([folder], tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_everything_is_escaped(tmp_path):
    nasty = "<script>alert('&')</script>"
    result = made_up(seeds=1, protection=("none", "wpl"), data=f"/data/{nasty}", data_dir='a "quoted" & dir')
    folder = stored(tmp_path / "a & <b>", result)
    write_sealed(
        folder.path / "environment.json", {"processor": "<i>Fast</i>", "git_revision": None}, folder.header.digest
    )
    html = report_html([folder])
    page = Page(html)
    assert "script" not in page.tags
    assert "i" not in page.tags
    assert nasty in page.text
    assert "a & <b>" in page.text
    assert "<i>Fast</i>" in page.text
    assert "not known" in page.text


def test_several_folders_are_compared(tmp_path):
    two = {"protection": ("none", "wpl"), "seeds": 2}
    folders = [
        stored(tmp_path / "one", made_up(**two)),
        stored(tmp_path / "two", made_up(**two, optimizer="sgd", convergence=(1.0, 0.43))),
        stored(tmp_path / "three", made_up(protection=("none",), seeds=1)),
    ]
    page = Page(report_html(folders))
    assert page.ids == ["run-1", "run-2", "run-3"]
    assert page.links[:3] == ["#run-1", "#run-2", "#run-3"]
    assert "Side by side" in page.text
    assert "optimizer.name adam sgd adam" in page.text
    assert "batch_size" not in page.text
    same = Page(report_html([folders[2], folders[2]]))
    assert "All options are the same." in same.text


def test_real_runs_become_a_page(tmp_path):
    config = two_model_config(iterations=12, iterations_a=12, evaluate_every=6, seeds=1, width=16, models=3)
    result = two_model.run(config)
    folder = stored(tmp_path / "run", result)
    assert load_result(folder).summary() == result.summary()
    text = Page(report_html([folder])).text
    assert "one seed" in text
    assert "This run is not complete" not in text


def test_unfinished_runs_say_so(tmp_path):
    result = made_up(keep=lambda arm: (arm.seed, arm.protection) in {(0, "none"), (0, "wpl"), (1, "none")}, seeds=2)
    folder = stored(tmp_path / "run", result)
    page = Page(report_html([folder]))
    assert "3 of 10 runs are finished" in page.text
    assert headline(result).startswith("So far, with 3 of 10 runs finished: Training B cost A 19.5 points")
    assert "one seed, so no interval" in headline(result)
    nothing = stored(tmp_path / "empty", TwoModelResult(result.config, []))
    page = Page(report_html([nothing, folder]))
    assert "No run is finished yet." in page.text
    assert "img" in page.tags


def test_bad_folders_are_refused(tmp_path):
    result = made_up(seeds=1)
    with pytest.raises(InputError, match="Expected at least one run folder"):
        write_report([], tmp_path / "report.html")
    folder = stored(tmp_path / "run", result)
    folder.append({"seed": 0})
    with pytest.raises(InputError, match=r"line 6 of .* it lacks accuracy_a_after"):
        report_html([folder])
    good = stored(tmp_path / "good", result)
    with pytest.raises(InputError, match="Expected a report file that can be written"):
        write_report([good], tmp_path / "nowhere" / "report.html")
    # The machine that makes the report need not have the device that made the run.
    assert "--device cuda:7" in Page(report_html([stored(tmp_path / "gpu", result, device="cuda:7")])).text


# Sentences


def test_headline_of_one_panel():
    assert headline(made_up(LOST | {"none": 0.142, "wpl": 0.001}, spread=0.002)) == (
        "Training B cost A 14.2 points of accuracy without protection and 0.1 with the weight plasticity loss: 99 % of "
        "the forgetting was prevented (95 % interval 99 %), and B pays 2.0 points. The control arm, no protection but "
        "smaller steps of the shared weights, prevented 30 %; the weight plasticity loss keeps 9.9 points more of A."
    )


# name: (forgetting, options, what the headline says, what it never says)
HEADLINES = {
    "nothing forgotten": (
        {"none": -0.01},
        {},
        "improved A by 1.0 points without protection (95.0 to 96.0 %), so there is no forgetting to reduce",
        "prevented",
    ),
    "exactly nothing forgotten": ({"none": 0.0}, {"spread": 0.0}, "cost A nothing without protection", "prevented"),
    "worse": (
        {"wpl": 0.4},
        {},
        "and 40.0 with the weight plasticity loss: protection made it worse (reduction −100 %",
        "was prevented",
    ),
    "worse in one seed": (
        {"wpl": 0.4},
        {"seeds": 1},
        "protection did not help (reduction −100 %, one seed, so no interval)",
        "was prevented",
    ),
    "better than before": (
        {"wpl": -0.02},
        {},
        "with the weight plasticity loss A gained 2.0: all of the forgetting was prevented (95 % interval 100 %)",
        "110 %",
    ),
    "one seed": ({}, {"seeds": 1}, "95 % of the forgetting was prevented (one seed, so no interval)", "95 % interval"),
    "noise": ({}, {"spread": 0.2}, "the seeds do not show forgetting beyond their noise", "clearly"),
    "unprotected alone": (
        {},
        {"protection": ("none",)},
        "cost A 20.0 points of accuracy without protection (95.0 to 75.0 %), and B reached 90.0 %",
        "was prevented",
    ),
    "protected alone": (
        {},
        {"protection": ("wpl",)},
        "How much of it was prevented takes an unprotected arm of the same seeds: `--protection none wpl`",
        "of the forgetting",
    ),
    "another protection": (
        {},
        {"protection": ("none", "freeze")},
        "and nothing with frozen shared weights: all of the forgetting was prevented",
        "control",
    ),
    "control as good": (
        {"matched-lr": 0.01},
        {"spread": 0.0},
        "prevented 95 %; over these 3 seeds the two are not significantly different",
        "keeps",
    ),
    "control better": (
        {"matched-lr": 0.0},
        {},
        "and keeps 1.0 points more of A than the weight plasticity loss",
        "significantly",
    ),
    "chain": (
        {},
        {"models": 3},
        "Averaged over A and B, 12.5 points are lost without protection, 0.5 with it.",
        "nothing",
    ),
    "long chain": ({}, {"models": 6}, "Training B to F cost A 20.0", "and F"),
    "several strengths": (
        {},
        {"wpl_strength": (1e3, 1e5)},
        "This is at α = 1e3, chosen among 2 on validation data",
        "test data",
    ),
    "panels": (
        {},
        {"shared": (1, 3)},
        "In 2 settings, training B cost A 6.7 to 20.0 points of accuracy without protection and 0.3 to 1.0 with",
        "more in",
    ),
    "panels without forgetting": (
        {"none": -0.1},
        {"shared": (1, 3)},
        "without protection there is no forgetting to reduce",
        "prevented",
    ),
    "panels of which one is worse": (
        {"none": 0.3, "wpl": lambda arm: 0.6 if arm.shared == 1 else 0.0},
        {"shared": (1, 3)},
        "−100 to 100 % of the forgetting was prevented; with protection it was more in 1 of them",
        "no forgetting",
    ),
    "panels of which one does not forget": (
        {"none": lambda arm: 0.2 if arm.shared == 1 else -0.2},
        {"shared": (1, 3)},
        "in 1 of them there was no forgetting to reduce",
        "it was more",
    ),
    "panels unprotected alone": (
        {},
        {"shared": (1, 3), "protection": ("none",)},
        "In 2 settings, training B cost A 6.7 to 20.0 points of accuracy without protection.",
        "was prevented",
    ),
}


@pytest.mark.parametrize("case", HEADLINES)
def test_headline_is_honest(case):
    lost, options, expected, never = HEADLINES[case]
    result = made_up(LOST | lost, **({"spread": 0.002} | options))
    text = headline(result)
    assert expected in text
    assert never not in text
    for draw in (accuracy_curves, forgetting_bars, chain_forgetting):
        assert draw(result).get_suptitle()


def test_a_control_arm_that_could_not_be_matched_is_told():
    result = recorded(made_up(), lambda run: {"mean_step": 0.25} if run.protection == "wpl" else {})
    assert "with steps of 200 % the protected arm's size)" in headline(result)
    # What is too much in one seed is not made good by too little in another.
    steps = {0: 0.4, 1: 0.625}
    result = recorded(result, lambda run: {"mean_step": steps.get(run.seed, 0.5)} if run.protection == "wpl" else {})
    assert "in 2 of 3 seeds with steps of 80 to 125 % the protected" in headline(result)


# The terminal


def table_lines(result):
    return printed(summary_table(result))


def test_the_table_holds_the_summary_in_80_columns():
    result = made_up(LOST | {"none": 0.142}, convergence=(1.0, 0.43), wpl_strength=(1e3, 1e5), spread=0.004)
    lines = table_lines(result)
    assert max(map(len, lines)) <= 80
    assert not any("…" in text for text in lines)
    rows = [text.split() for text in lines if text.startswith("wpl")]
    assert len(rows) == 4
    wpl = next(e for e in result.summary() if e.protection == "wpl")
    assert rows[0][:3] == ["wpl", "1e3", f"{100 * wpl.accuracy_a_before.mean:.1f}"]
    assert f"{100 * wpl.reduction.mean:.1f}" in rows[0]
    assert "A stopped at 43 %" in lines
    assert lines[-2] == "In % and points of test accuracy; ± and [ ]: 95 % interval over 3 seeds."
    assert len([text for text in table_lines(made_up(seeds=1)) if "±" in text]) == 0


def test_the_table_says_what_is_missing():
    lines = table_lines(made_up(LOST | {"none": -0.05}))
    assert any("none to reduce" in text and text.startswith("wpl") for text in lines)
    assert any("no forgetting to reduce" in text for text in lines)
    unfinished = table_lines(made_up(keep=lambda arm: arm.seed < 2))
    assert "Unfinished: 10 of 15 runs. Go on with `forgetless resume`." in unfinished
    alone = table_lines(made_up(protection=("wpl",)))
    assert next(text for text in alone if text.startswith("wpl")).split()[-1] == "–"
    assert "Unfinished: 0 of 15 runs. Go on with `forgetless resume`." in table_lines(
        TwoModelResult(made_up().config, [])
    )


# The command


def read_back(command):
    """The configuration that a command line asks for."""
    first, second, *words = shlex.split(command)
    assert (first, second) == ("forgetless", "two-model")
    return two_model_config(shlex.join(words)) if words else two_model_config()


def test_command_line_prints_what_differs():
    assert command_line(two_model_config(), "two-model") == "forgetless two-model"
    config = two_model_config(
        data="mnist", convergence=(1.0, 0.43), wpl_strength=(1e5, 2.5e6), iterations_a=10, data_dir="my data"
    )
    assert command_line(config, "two-model") == (
        "forgetless two-model --data mnist --convergence 1 0.43 --wpl.strength 1e5 2.5e6 --iterations-a 10 "
        "--data-dir 'my data'"
    )


finite = st.floats(0, 1e300, allow_nan=False, allow_subnormal=False)


@st.composite
def configurations(draw):
    options = {
        "data": draw(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), min_size=1).filter(lambda s: s[0] != "-")
        ),
        "wiring": draw(st.sampled_from(["crossed", "prefix"])),
        "shared": draw(st.lists(st.integers(1, 3), min_size=1)),
        "convergence": draw(st.lists(st.floats(1e-9, 1), min_size=1, max_size=3)),
        "momentum": draw(st.floats(0, 0.999)),
        "seeds": draw(st.integers(1, 10**5)),
        "optimizer": draw(st.sampled_from(["sgd", "adam", "adamw"])),
        "protection": draw(st.lists(st.sampled_from(["none", "freeze", "l2", "wpl"]), min_size=1)),
    }
    rate = draw(st.none() | st.floats(1e-12, 1e3))
    if rate is not None:
        options["learning_rate"] = rate
    if "wpl" in options["protection"]:
        options |= {"wpl_strength": draw(st.lists(finite, min_size=1, max_size=4)), "wpl_damping": draw(finite)}
    return two_model_config(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()})


@settings(deadline=None)
@given(configurations())
def test_command_line_reads_back_as_the_same_configuration(config):
    assert read_back(command_line(config, "two-model")) == config
