"""Ranks, marks, tables and page of a comparison, on made-up numbers and by hand."""

import dataclasses
import io
import itertools
import math

import pytest
from rich.console import Console

from configs import changed, comparison_config, epoch_record, judged_search
from forgetless.comparison import Measure, Row
from forgetless.comparison.result import ComparisonResult
from forgetless.errors import InputError
from forgetless.evaluation.ranking import RankCorrelation
from forgetless.evaluation.records import Ceiling, JudgedBaseline, JudgedBy
from forgetless.forgetting import Interval
from forgetless.report import comparison_table, forgetting_against_quality
from forgetless.report.comparison.findings import headline_sentences
from forgetless.report.comparison.page import comparison_notes, comparison_section, comparison_tables
from forgetless.report.page import report_html
from forgetless.runs import RunFolder
from forgetless.search.result import SearchResult
from shown import expect_readable

SEEDS = 8
CONFIG = comparison_config(
    space="nas201", strategy=("uniform", "enas"), protection=("none", "wpl"), seeds=SEEDS, epochs=3, truth="made-up"
)
# What each seed adds to a row's number: no two differences are equal.
NOISE = [0.0001 * seed * seed for seed in range(SEEDS + 1)]
FREE, HELD, ENAS, ENAS_HELD = (Row(s, p) for s in ("uniform", "enas") for p in ("none", "wpl"))
QUALITY = {
    FREE: [0.30 + n for n in NOISE],
    HELD: [0.20 - n for n in NOISE],  # better on every seed
    ENAS: [0.25 + n for n in NOISE],
    # Worse on all seeds but one.
    ENAS_HELD: [0.25 + n + (-0.001 if seed == 0 else 0.01 + n) for seed, n in enumerate(NOISE)],
}


def judged(row, seed, value, larger=0.5):
    tau = RankCorrelation(Interval(larger + value, None, None), 9)
    return judged_search(
        run=f"{row.strategy}/seed-{seed}",
        **row._asdict(),
        seed=seed,
        found_mean=value,
        found_best=value - 0.01,
        regret=value - 0.1,
        probability_of_surpassing_random=larger + value,
        tau=tau,
        tau_unique=tau,
        tau_top=RankCorrelation(None, 1),
        seconds=100.0,
    )


def judged_by(measure, *, lower_is_better):
    return JudgedBy(options={}, measure=measure, description="Made up.", lower_is_better=lower_is_better)


def epoch(row, seed, number, forgetting):
    return epoch_record(
        seed=seed,
        protection=row.protection,
        epoch=number,
        is_protected=row.protection != "none" and number > 0,
        **dict.fromkeys(("forgetting_mean", "forgetting_best", "forgetting_max"), forgetting),
    )


def forgetting_of(row, seed):
    """Protected models forget a tenth as much as others."""
    return (0.5 if row.strategy == "enas" else 0.3) * (0.1 if row.protection == "wpl" else 1.0) + NOISE[seed]


def result_of(config=CONFIG, quality=QUALITY, seeds=range(SEEDS), about=None, missing=None):
    searches = {}
    for strategy in config.strategy_names:
        records = [
            epoch(row, seed, number, forgetting_of(row, seed) if number else 9.0)
            for row in config.rows
            for seed in seeds
            for number in range(config.search.schedule.epochs)
            if row.strategy == strategy != "random"
        ]
        searches[strategy] = SearchResult(config.search_of(strategy), records)
    evaluations = [judged(row, seed, quality[row][seed]) for row in config.rows for seed in seeds]
    about = about or judged_by("test_error", lower_is_better=True)
    return ComparisonResult(config, searches, evaluations, about, missing or {})


def marks(result, measure):
    return {row: test.mark for row in result.ranked if (test := result.test(row, measure)) is not None}


# The numbers


def test_rows_are_ranked_by_what_is_selected():
    assert result_of().ranked == [HELD, ENAS, ENAS_HELD, FREE]
    larger = result_of(about=judged_by("accuracy", lower_is_better=False))
    assert larger.ranked == [FREE, ENAS_HELD, ENAS, HELD]
    assert larger.best(Measure.FOUND_MEAN) == {FREE}


def test_marks_are_those_of_sign_flips_and_holm_by_hand():
    """All 2⁸ signs, and the smaller p of two times 2."""

    def p_of(row, reference):
        differences = [QUALITY[row][seed] - QUALITY[reference][seed] for seed in range(SEEDS)]
        sums = [
            sum(sign * d for sign, d in zip(signs, differences, strict=True))
            for signs in itertools.product((-1, 1), repeat=SEEDS)
        ]
        return sum(abs(value) >= abs(sum(differences)) - 1e-12 for value in sums) / len(sums)

    p_values = {HELD: p_of(HELD, FREE), ENAS_HELD: p_of(ENAS_HELD, ENAS)}
    small, large = p_values[HELD], p_values[ENAS_HELD]
    assert small == 2 / 256
    assert small < large
    adjusted = {HELD: 2 * small, ENAS_HELD: max(2 * small, large)}
    result = result_of()
    for row, reference in ((HELD, FREE), (ENAS_HELD, ENAS)):
        test = result.test(row, Measure.FOUND_MEAN)
        assert test.reference == reference
        assert test.p == pytest.approx(p_values[row])
        assert test.adjusted_p == pytest.approx(adjusted[row])
    assert marks(result, Measure.FOUND_MEAN) == {HELD: "better", ENAS_HELD: "worse"}
    # Where larger is better, the same numbers say the opposite.
    assert marks(result, Measure.TAU) == {HELD: "worse", ENAS_HELD: "better"}
    assert marks(result, Measure.FORGETTING) == {HELD: "better", ENAS_HELD: "better"}
    assert marks(result, Measure.TAU_TOP) == {}
    assert marks(result, Measure.SECONDS) == {}


def test_no_mark_where_the_correction_takes_it():
    """Seven seeds that agree: 2 · 2⁻⁷ = 0.0156 is significant among three comparisons, and not among four."""
    few = changed(CONFIG, seeds=7, allow_few_seeds=True)
    quality = {row: [0.1 * i + n for n in NOISE] for i, row in enumerate(CONFIG.rows)}
    assert set(marks(result_of(few, quality, range(7)), Measure.FOUND_MEAN).values()) == {"worse"}
    more = changed(few, protection=("none", "l2", "wpl"))
    quality = {row: [0.1 * i + n for n in NOISE] for i, row in enumerate(more.rows)}
    found = result_of(more, quality, range(7))
    assert [test.adjusted_p for test in found.tests if test.measure == "found_mean"] == [4 / 64] * 4
    assert set(marks(found, Measure.FOUND_MEAN).values()) == {None}
    assert "With 7 seeds no difference can be significant." in comparison_notes(found)
    assert "No difference in quality is significant." in headline_sentences(found)


def test_a_seed_that_one_side_lacks_is_left_out_of_the_test():
    result = result_of()
    kept = [r for r in result.evaluations if (r.seed, r.protection, r.strategy) != (2, "wpl", "uniform")]
    test = dataclasses.replace(result, evaluations=kept).test(HELD, Measure.FOUND_MEAN)
    assert test.num_seeds == SEEDS - 1
    differences = [QUALITY[HELD][seed] - QUALITY[FREE][seed] for seed in range(SEEDS) if seed != 2]
    assert test.difference.mean == pytest.approx(sum(differences) / len(differences))


def test_forgetting_counts_from_the_first_protected_epoch_for_all_rows():
    entry = result_of().summary().rows[0]
    assert entry.forgetting_epochs == (1, 3)
    assert entry.seeds["forgetting_mean"]["3"] == pytest.approx(forgetting_of(HELD, 3))


def test_another_task_than_the_benchmark_s_is_noted_once():
    assert not any("ranked on one task" in note for note in comparison_notes(result_of()))
    other = changed(CONFIG, truth="nas201-digits")
    found = [n for n in comparison_notes(result_of(other)) if "ranked on one task" in n]
    assert found == ["The search had units 4; nas201-digits has 2: ranked on one task, judged by another."]


def test_a_row_that_lacks_seeds_though_its_searches_ended_is_named():
    """All that one selected diverged: its mean is over the others, and looks better for it."""
    result = result_of()
    assert not any("gave no number" in note for note in comparison_notes(result))
    evaluations = [
        dataclasses.replace(r, found_mean=math.nan)
        if (r.seed, r.protection, r.strategy) == (7, "none", "uniform")
        else r
        for r in result.evaluations
    ]
    lacking = dataclasses.replace(result, evaluations=evaluations)
    notes = comparison_notes(lacking)
    assert [note for note in notes if " seeds" in note and note.startswith("  ")] == [
        f"  quality of uniform, none: {SEEDS - 1} of {SEEDS} seeds."
    ]
    # What is not finished is told of by itself.
    unfinished = dataclasses.replace(lacking, missing={"uniform/seed-7": ""})
    assert not any("gave no number" in note for note in comparison_notes(unfinished))


def test_strategies_are_tested_against_each_other_over_the_same_epochs():
    """Both forget the same but in the last epoch, which is not averaged over where unprotected models get better."""
    records, lost = {}, {"uniform": [9.0, 0.5, -0.01], "enas": [9.0, 0.5, 0.01]}
    for strategy, values in lost.items():
        rows = [row for row in CONFIG.rows if row.strategy == strategy]
        records[strategy] = [
            epoch(row, seed, number, value + NOISE[seed])
            for row in rows
            for seed in range(SEEDS)
            for number, value in enumerate(values)
        ]

    def result(reference):
        config = changed(CONFIG, reference=reference)
        searches = {name: SearchResult(config.search_of(name), found) for name, found in records.items()}
        return ComparisonResult(config, searches, [], None, {})

    own, shared = result(None), result("uniform")
    assert [entry.forgetting_epochs for entry in own.summary().rows] == [(1, 2), (1, 2), (1, 3), (1, 3)]
    assert [entry.forgetting_epochs for entry in shared.summary().rows] == [(1, 2)] * 4
    for row in (ENAS, ENAS_HELD):
        test = shared.test(row, Measure.FORGETTING)
        assert test.reference == FREE
        assert test.difference.mean == pytest.approx(0, abs=1e-12)
        assert test.mark is None
    assert "Forgetting: mean over epoch 2. Negative is progress." in comparison_notes(shared)
    assert "  epochs 2 to 3 of enas." in comparison_notes(own)


@pytest.fixture
def with_random():
    """What searches nothing, beside two that do."""
    config = changed(CONFIG, strategy=("random", "uniform", "enas"), seeds=9)
    return result_of(config, {**QUALITY, Row("random", "none"): [0.5 + n for n in NOISE]}, range(9))


def test_random_is_one_row_and_the_reference_of_what_is_unprotected(with_random):
    random = Row("random", "none")
    assert [row for row in with_random.config.rows if row.strategy == "random"] == [random]
    references = {t.row: t.reference for t in with_random.tests if t.measure == "found_mean"}
    assert references == {FREE: random, ENAS: random, HELD: FREE, ENAS_HELD: ENAS}
    assert marks(with_random, Measure.FOUND_MEAN)[FREE] == "better"
    assert {t.row for t in with_random.tests if t.measure == "forgetting_mean"} == {HELD, ENAS_HELD}
    assert with_random.interval(random, Measure.FORGETTING) is None


# What people see


def text_of(result):
    console = Console(width=80, file=io.StringIO())
    console.print(comparison_table(result))
    return console.file.getvalue()


def test_the_terminal_has_every_row_ranked_and_marked():
    lines = text_of(result_of()).splitlines()
    assert max(map(len, lines)) <= 80
    (first, second, third, last) = (line.split() for line in lines[3:7])
    mean = 100 * sum(QUALITY[HELD][:SEEDS]) / SEEDS
    assert first[:3] == ["1", "uniform,", "wpl"]
    assert first[3] == f"{mean:.1f}"
    assert first[4].endswith("*✓")
    assert second[4][-1].isdigit()
    assert third[4].endswith("✗")
    assert last[:3] == ["4", "uniform,", "none"]
    assert "✓ better, ✗ worse than none of the same strategy" in map(str.strip, lines)


def test_long_names_stay_whole_at_80_columns(with_random):
    config = changed(with_random.config, protection=("none", "wpl", "matched-lr"), interference_every=1)
    quality = {row: [0.2 + 0.01 * i + n for n in NOISE] for i, row in enumerate(config.rows)}
    text = text_of(result_of(config, quality, range(9)))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert text.count("uniform, matched-lr") == 3


def test_the_sentences_say_no_more_than_the_tests():
    said = headline_sentences(result_of())
    assert said[0].startswith("uniform with weight plasticity selects the best architectures: test error 19.8")
    assert said[1] == "Its difference from uniform with no protection is significant (p = 0.016)."
    assert (
        "Significantly better architectures than the same strategy with no protection: uniform with weight plasticity."
        in said
    )
    assert "Significantly worse ones than the same strategy with no protection: enas with weight plasticity." in said
    empty = dataclasses.replace(result_of(), evaluations=[], missing={"enas/seed-1": ""})
    assert headline_sentences(empty) == ["Nothing has been judged yet: 15 of 16 searches are finished."]


def test_rows_that_are_equally_good_are_not_passed_over():
    assert not any("equally good" in sentence for sentence in headline_sentences(result_of()))
    equal = result_of(quality={**QUALITY, ENAS: QUALITY[HELD]})
    assert "1 other row selects equally good ones." in headline_sentences(equal)


def test_a_search_of_few_samples_selects_all_of_them():
    assert "mean of the 5 best of each search" in text_of(result_of())
    few = result_of(changed(CONFIG, final_samples=3))
    assert "mean of the 3 best of each search" in text_of(few)


def test_the_picture_has_a_point_per_row_with_its_intervals(with_random):
    figure = forgetting_against_quality(with_random)
    (ax,) = figure.axes
    expect_readable(figure)
    points = {line.get_gid(): line.get_data() for line in ax.lines}
    for row in (FREE, HELD, ENAS, ENAS_HELD):
        (x,), (y,) = points[str(row)]
        assert x == pytest.approx(100 * with_random.interval(row, Measure.FORGETTING).mean)
        assert y == pytest.approx(100 * with_random.interval(row, Measure.FOUND_MEAN).mean)
    assert "random" in points
    assert len([line for line in ax.lines if line.get_gid() == "interval"]) == 8
    assert ax.yaxis_inverted()
    with pytest.raises(InputError, match=r"Expected a finished search to draw, but got none"):
        forgetting_against_quality(dataclasses.replace(with_random, evaluations=[]))


def test_the_page_of_a_comparison_that_has_hardly_begun(tmp_path):
    folder = RunFolder.create(tmp_path / "run", {"experiment": "compare", **CONFIG.to_dict()})
    folder.append({"event": "failed", "unit": "enas/seed-3", "reason": "ValueError: no luck"})
    page = report_html([folder])
    assert "0 of 16 searches are finished" in page
    assert "ValueError: no luck" in page
    assert "forgetless</span> <span>compare" in page
    assert page == report_html([folder])


def test_rows_say_which_rules_without_a_search_they_beat():
    """Random selects 50 % errors on every seed, `parameters` 40 %; of one rule, that is the best proxy too."""
    baselines = [
        JudgedBaseline(
            run=f"{strategy}/seed-{seed}", rule="parameters", seed=seed, found=[], found_mean=0.4, found_best=0.4,
            regret=0.1, tau=0.5, tau_top=None,
        )
        for seed in range(9)
        for strategy in ("uniform", "enas")
    ]  # fmt: skip
    config = changed(CONFIG, seeds=9, strategy=("uniform",))
    result = dataclasses.replace(result_of(config, seeds=range(9)), baselines=baselines)
    gains, rules = comparison_tables(result)[-2:]
    assert [(row.label, str(row.cells[-1])) for row in gains.rows] == [
        ("uniform, wpl", "random, parameters, best proxy"),
        ("uniform, none", "random, parameters, best proxy"),
    ]
    p = 6 * 2 * 2**-9  # six tests, in each of which every seed agrees
    assert str(gains.rows[1].cells[1]).endswith(f"({p:.3f})✓")
    assert [(row.label, row.cells[0].text) for row in rules.rows] == [("parameters", "40.0 ±0.0")]
    assert result.summary().baselines[0].num_seeds == 9
    assert max(map(len, text_of(result).splitlines())) <= 80


def test_rankings_stand_above_the_ceiling_of_their_truth():
    ceiling = Ceiling(num_seeds=5, half=2, num_splits=15, tau=0.7, tau_unique=0.6, tau_top=0.25)
    about = dataclasses.replace(judged_by("test_error", lower_is_better=True), options={"truth": "a"}, ceiling=ceiling)
    result = result_of(about=about)
    (ranks,) = (part for part in comparison_tables(result) if "τ" in part.columns)
    last = ranks.rows[-1]
    assert [row.is_ranked for row in ranks.rows] == [True] * len(result.ranked) + [False]
    cells = dict(zip(ranks.columns, last.cells, strict=True))
    assert (last.label, cells["τ"], cells["τ top"]) == ("half-split ceiling", "0.70", "0.25")
    assert "τ between 2 and 2 other seeds of the truth's 5," in " ".join(comparison_notes(result))
    assert max(map(len, text_of(result).splitlines())) <= 80
    unknown = dataclasses.replace(about, ceiling=None)
    assert "Ceiling of τ: unknown" in " ".join(comparison_notes(result_of(about=unknown)))


def test_the_page_has_the_tables_of_the_terminal():
    result = result_of(missing={"enas/seed-3": "ValueError: no luck"})
    section = comparison_section(result)
    assert section["tables"] == comparison_tables(result)
    assert section["missing"] == [("enas/seed-3", "ValueError: no luck")]
    assert "Missing: enas/seed-3 (of 16)." in section["notes"]
    tested = {tuple(cells[:3]): cells[3:] for cells in section["tests"]}
    assert len(tested) == len(section["tests"]) == len(result.tests)
    difference = 100 * sum(QUALITY[HELD][seed] - QUALITY[FREE][seed] for seed in range(SEEDS)) / SEEDS
    found = tested["found mean", "uniform, wpl", "uniform, none"]
    assert found[0].startswith(f"−{-difference:.1f}")
    assert found[1:] == ["0.008", "0.016", "better"]
    cells = section["tables"][0].rows[0].cells
    assert (cells[0].mark, cells[0].is_best, cells[0].signs) == ("better", True, "*✓")
