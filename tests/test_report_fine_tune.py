"""The report of a fine-tuning says what its records say: figure, sentences, table, page."""

import dataclasses
import math

import pytest

from forgetless.errors import InputError
from forgetless.experiments.fine_tune.config import FineTuneConfig
from forgetless.experiments.fine_tune.records import FineTuneCurve, FineTuneRecord
from forgetless.experiments.fine_tune.result import FineTuneResult
from forgetless.forgetting import mean_interval
from forgetless.report import canvas, report_html
from forgetless.report.fine_tune.figure import frontier_figure, pale
from forgetless.report.fine_tune.findings import compared, sentences_of
from forgetless.report.fine_tune.page import fine_tune_comparison, fine_tune_section, fine_tune_table
from forgetless.runs import RunFolder
from shown import expect_readable, expect_whole, line, printed

OLD, NEW = 5.0, 4.4  # nats per token before
ARMS = {  # (protection, sees, strength): (rise of the old loss, loss on the new text)
    ("none", None, None): (1.20, 3.05),
    ("wpl", "own-samples", 1.0): (0.70, 3.14),
    ("wpl", "own-samples", 10.0): (0.29, 3.54),
    ("wpl", "old-data", 1.0): (0.66, 3.12),
    ("l2", None, 0.1): (0.32, 3.69),
    ("wpl-tolerance", "own-samples", 0.05): (0.04, 4.10),
    ("wpl-tolerance", "own-samples", 0.2): (0.17, 3.50),
}
PALE = {("wpl", "own-samples", 1.0), ("wpl", "own-samples", 10.0), ("l2", None, 0.1)}


def record(seed, to, arm, rise, new, **values):
    protection, on, strength = arm
    passes = 2.0 if protection == "replay" else 1.0
    usual = {
        "old_before": OLD,
        "old_after": OLD + rise,
        "new_before": NEW,
        "new_after": new,
        "new_validation": new + 0.01,
        "expected_loss_increase": 0.9 * rise if on else math.nan,
        "steps": 100,
        "passes": passes,
        "held": 2.0 if protection == "wpl" else 0.0,
        "seconds": 10.0 if protection == "none" else 12.0,
        "curve": FineTuneCurve(step=[0, 100], old=[OLD, OLD + rise], new=[NEW, new]),
    }
    named = {"seed": seed, "to": to, "protection": protection, "on": on, "strength": strength}
    return FineTuneRecord(**{**usual, **named, **values})


def made_up(arms=ARMS, *, to=("kjv-nt",), seeds=3, spread=0.01, keep=lambda run: True):
    """A result with the two losses of each arm given; seeds differ by `spread`, and wpl's new loss by twice as much."""
    strengths = {}
    for protection, _, strength in arms:
        strengths.setdefault(
            (protection, strength), {"name": protection} | ({"strength": strength} if strength else {})
        )
    evidence = list(dict.fromkeys(on for _, on, _ in arms if on)) or ["own-samples"]
    config = FineTuneConfig.from_dict(
        {
            "texts": {"to": list(to)},
            "protections": list(strengths.values()),
            "importance": {"on": evidence},
            "run": {"seeds": seeds},
        }
    )
    runs = [
        record(seed, text, arm, rise + noise, new + noise * (2 if arm[0] == "wpl" else 1))
        for text in to
        for arm, (rise, new) in arms.items()
        for seed in range(seeds)
        for noise in [spread * (seed - (seeds - 1) / 2)]
    ]
    return FineTuneResult.of(config, [run for run in runs if keep(run)])


def points(ax, protection, on=None):
    """The points of a curve: (x, y) → colour."""
    gid = f"{protection} {on}" if on else protection
    drawn = [each for each in ax.lines if each.get_gid() == gid]
    return {tuple(round(float(part[0]), 6) for part in each.get_data()): each.get_color() for each in drawn}


# The figure


def test_points_are_the_means_and_dominated_ones_are_pale():
    (ax,) = frontier_figure(made_up()).axes
    for (protection, on, strength), place in ARMS.items():
        shade = canvas.colour(protection)
        expected = pale(shade) if (protection, on, strength) in PALE else shade
        assert points(ax, protection, on)[place] == expected
    for arm, (rise, new) in ARMS.items():
        better = [other for other, (x, y) in ARMS.items() if x < rise and y < new]
        assert bool(better) == (arm in PALE)


def test_the_frontier_goes_through_the_arms_that_are_not_pale_and_nothing_is_below_it():
    (ax,) = frontier_figure(made_up()).axes
    x, y = line(ax, "frontier")
    best = sorted(place for arm, place in ARMS.items() if arm not in PALE)
    assert list(zip(x, y, strict=True))[1:-1] == [pytest.approx(place) for place in best]
    assert (x[0], y[-1]) == pytest.approx((best[0][0], best[-1][1]))
    for rise, new in ARMS.values():
        assert new >= min(at for place, at in best if place <= rise + 1e-9) - 1e-9


def test_every_budget_is_a_line_and_every_arm_on_the_frontier_has_its_strength():
    (ax,) = frontier_figure(made_up()).axes
    assert sorted(line(ax, "budget")[0]) == pytest.approx([0.05, 0.05, 0.2, 0.2])
    assert sorted(text.get_text() for text in ax.texts) == ["0.05", "0.2", "1", "no protection"]


def test_arms_on_the_frontier_have_intervals_and_these_need_seeds():
    drawn = [each for each in frontier_figure(made_up()).axes[0].lines if each.get_gid() == "interval"]
    assert len(drawn) == 2 * (len(ARMS) - len(PALE)) - 1  # new losses are compared with that of the unprotected arm
    (ax,) = frontier_figure(made_up(seeds=1)).axes
    assert not [each for each in ax.lines if each.get_gid() == "interval"]


@pytest.mark.parametrize("to", [("kjv-nt",), ("kjv-nt", "ptb"), ("kjv-nt", "ptb", "my-texts/of mine")])
def test_a_panel_for_each_new_text_and_no_text_on_another(to):
    figure = frontier_figure(made_up(to=to))
    expect_readable(figure)
    assert len(figure.axes) == len(to)
    assert "of mine" in figure.axes[-1].get_title(loc="left") or len(to) < 3


def test_what_is_far_away_stands_at_the_end_of_the_axis_and_hides_nothing():
    (usual,) = frontier_figure(made_up()).axes
    far = {**ARMS, ("l2", None, 0.001): (9.0, 3.3), ("l2", None, 1e4): (0.5, 9.0)}
    (ax,) = frontier_figure(made_up(far)).axes
    assert ax.get_xlim() == usual.get_xlim()
    markers = {each.get_marker(): each.get_data() for each in ax.lines if each.get_gid() == "l2"}
    assert markers[">"][0][0] == ax.get_xlim()[1]
    assert markers["^"][1][0] == ax.get_ylim()[1]


def test_the_start_is_on_the_axis_and_an_arrow_where_it_is_far_above():
    before = {each.get_gid(): each for each in frontier_figure(made_up()).axes[0].lines}["before"]
    assert before.get_marker() == "o"
    assert [part[0] for part in before.get_data()] == [0, NEW]
    result = made_up()
    runs = [dataclasses.replace(run, new_before=8.0) for run in result.runs]
    (ax,) = frontier_figure(dataclasses.replace(result, runs=runs)).axes
    before = {each.get_gid(): each for each in ax.lines}["before"]
    assert before.get_marker() == "^"
    assert "8.00" in ax.get_title(loc="left")


def test_one_strength_is_a_point_and_one_arm_is_enough():
    (ax,) = frontier_figure(made_up({("none", None, None): (0.0, 3.0)}, seeds=1)).axes
    assert len(points(ax, "none")) == 1
    expect_readable(ax.figure)


def test_without_a_run_there_is_no_figure():
    with pytest.raises(InputError, match="at least one finished run to draw"):
        frontier_figure(made_up(keep=lambda run: False))


# Sentences


def test_intervals_of_the_new_loss_are_of_its_difference_to_no_protection():
    result = made_up()
    by_arm = {(entry.protection, entry.on, entry.strength): entry for entry in compared(result)}
    for arm, entry in by_arm.items():
        own = {run.seed: run for run in result.runs if (run.protection, run.on, run.strength) == arm}
        free = {run.seed: run for run in result.runs if run.protection == "none"}
        apart = mean_interval([own[seed].new_after - free[seed].new_after for seed in own])
        assert entry.new.mean == pytest.approx(ARMS[arm][1])
        if arm[0] != "none":
            assert entry.new.high - entry.new.mean == pytest.approx(apart.high - apart.mean)
            assert entry.new.low - entry.new.mean == pytest.approx(apart.low - apart.mean)
    assert by_arm["none", None, None].new.high is None
    alone = made_up({arm: place for arm, place in ARMS.items() if arm[0] != "none"})
    assert compared(alone) == alone.summary()


def test_sentences_have_the_numbers_of_the_records():
    first, kept, best = sentences_of(made_up())
    assert "on kjv-nt without protection" in first
    assert "loss on kjv-ot rises by 1.200 [1.175, 1.225] nats per token (5.00 to 6.20)" in first
    assert "new text goes from 4.40 to 3.05" in first
    assert "lost no more than allowed in 6 of 6 runs" in kept
    assert "(0.05 nats: 3 of 3, 80 % used; 0.2 nats: 3 of 3, 85 % used)." in kept
    assert "Of 7 arms none is better on both texts than these 4: no protection; " in best
    assert "weight plasticity on old data at α\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1;" in best
    assert "plasticity on own samples at α" not in best


def test_a_budget_that_is_passed_is_said_to_be():
    arms = {("wpl-tolerance", "own-samples", 0.05): (0.05, 4.0)}
    (kept,) = [told for told in sentences_of(made_up(arms)) if "allowed" in told]
    assert "in 2 of 3 runs (0.05 nats: 100 % used)." in kept
    improved = made_up({("budget", "own-samples", 0.1): (-0.2, 4.0)})
    (gained,) = [told for told in sentences_of(improved) if "allowed" in told]
    assert gained == "A budget on own samples lost no more than allowed in 3 of 3 runs (0.1 nats: 0 % used)."


def test_where_nothing_is_lost_or_the_old_loss_falls():
    assert "changes by 0.000" in sentences_of(made_up({("none", None, None): (0.0, 3.0)}, spread=0))[0]
    assert "falls by 0.200 [0.175, 0.225]" in sentences_of(made_up({("none", None, None): (-0.2, 3.0)}))[0]


def test_without_an_unprotected_arm():
    result = made_up({arm: place for arm, place in ARMS.items() if arm[0] != "none"})
    assert "under protection, the loss on kjv-ot differs by +0.040 to +0.700 nats" in sentences_of(result)[0]
    assert "12.0 s" in "\n".join(printed(fine_tune_table(result)))


def test_several_new_texts_have_a_finding_each():
    section = fine_tune_section(made_up(to=("kjv-nt", "ptb")))
    assert "rises by 1.200 [1.175, 1.225] on kjv-nt and by 1.200 [1.175, 1.225] on ptb" in section["sentences"][0]
    assert [name for name, _ in section["findings"]] == ["On kjv-nt", "On ptb"]


def test_an_unfinished_run_says_so():
    told = sentences_of(made_up(keep=lambda run: run.seed == 0))
    assert told[0].startswith("So far, with 7 of ")
    assert " nats per token" in told[0]
    assert sentences_of(made_up(keep=lambda run: False)) == ["No run is finished yet."]
    assert "Unfinished: 7 of " in "\n".join(printed(fine_tune_table(made_up(keep=lambda run: run.seed == 0))))


def test_diverged_runs_are_named_and_in_no_mean():
    result = made_up()
    bad = record(1, "kjv-nt", ("l2", None, 0.1), math.nan, 3.0)
    records = [run for run in result.runs if run.arm != bad.arm] + [bad]
    lost = FineTuneResult.of(result.config, records)
    sentence = sentences_of(lost)[-1]
    assert sentence.startswith("Diverged, and in no mean: L2 anchor")
    assert "with seed 1." in sentence
    place = (pytest.approx(0.32), pytest.approx(3.69))
    assert [each for each in points(frontier_figure(lost).axes[0], "l2") if each == place]
    assert [row for row in fine_tune_section(lost)["seeds"] if "–" in row]
    only = FineTuneResult.of(result.config, [dataclasses.replace(run, old_after=math.nan) for run in result.runs])
    assert sentences_of(only)[0].startswith("Diverged")
    assert fine_tune_section(only)["figures"] == []


# Tables


def test_the_table_fits_a_terminal_with_a_line_for_each_arm():
    lines = printed(fine_tune_table(made_up()))
    assert max(map(len, lines)) <= 80
    words = [" ".join(told.split()) for told in lines]
    assert "none +1.200 ±0.025 3.050* ×1.00 1 0" in words
    assert "wpl own 10 +0.290 ±0.025 3.540 ±0.025 ×1.20 1 2" in words
    assert [told.split()[0] for told in lines[3 : 3 + len(ARMS)]] == [protection for protection, _, _ in ARMS]


def test_what_is_seen_of_the_past_is_a_column_only_where_it_differs():
    same = {arm: place for arm, place in ARMS.items() if arm[1] != "old-data"}
    lines = printed(fine_tune_table(made_up(same)))
    assert "sees" not in lines[1]
    assert "Seen of the past: own samples." in "\n".join(lines)
    assert "sees" in printed(fine_tune_table(made_up()))[1]


def test_one_seed_has_no_interval():
    text = "\n".join(printed(fine_tune_table(made_up(seeds=1))))
    assert "one seed gives no interval" in text
    assert "±" not in text


def test_the_page_has_a_line_for_each_arm_and_each_run():
    section = fine_tune_section(made_up(to=("kjv-nt", "ptb")))
    assert [name for name, _ in section["panels"]] == ["kjv-nt", "ptb"]
    rows = section["panels"][0][1]
    assert [row.is_chosen for row in rows] == [arm not in PALE for arm in ARMS]
    wpl = next(row for row in rows if row.cells[:2] == ["own samples", "1"])
    assert list(wpl.cells[2:]) == ["+0.700 ±0.025", "+0.630 ±0.022", "3.140 ±0.025", "×1.20", "1", "2"]
    assert len(section["columns"]) == len(wpl.cells)
    assert section["num_runs"] == len(section["seeds"]) == 2 * 3 * len(ARMS)


def test_beside_other_runs_stand_the_arms_on_the_frontier():
    rows = fine_tune_comparison(made_up())
    assert len(rows) == len(ARMS) - len(PALE)
    assert rows[0] == ["kjv-nt", "no protection", "+1.200 ±0.025", "3.050", "×1.00"]


def stored(path, result):
    """A run folder that holds a result."""
    folder = RunFolder.create(path, {"experiment": "fine-tune", **result.config.to_dict()})
    for run in [*result.runs, *result.diverged]:
        folder.append(run.to_dict())
    return folder


def test_the_page_is_whole_and_says_what_the_sentences_say(tmp_path):
    result = made_up(to=("kjv-nt", "ptb"), keep=lambda run: run.seed < 2)
    folder = stored(tmp_path / "run", result)
    page = expect_whole(report_html([folder]))
    for sentence in sentences_of(result):
        assert sentence.replace("\N{NO-BREAK SPACE}", " ") in page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert f"28 of {result.progress[1]} runs are finished" in page.text
    assert "pretraining and F is the model’s diagonal Fisher" in page.text
    assert "matched-lr" not in page.text
    assert "shared weights" not in page.text


def test_runs_side_by_side(tmp_path):
    folders = [stored(tmp_path / name, made_up(seeds=seeds)) for name, seeds in (("first", 2), ("second", 3))]
    text = expect_whole(report_html(folders)).text
    assert "2 runs: first , second" in text
    assert "Arms on the frontier." in text
    assert "Models that share weights" not in text
