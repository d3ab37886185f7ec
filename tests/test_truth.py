"""The reader of truth files: what it reads, and one clear error for each thing that can be wrong with a file."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import forgetless.evaluation.truth
from forgetless import InputError
from forgetless.evaluation.truth import Truth, benchmark_names, read_truth
from forgetless.spaces.cell import CellSpace
from forgetless.spaces.nas201 import Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace

SPACE = RecurrentSpace(2)

OURS = """\
# version: 3
# unit: share of wrong images
# command: forgetless benchmark recurrent-2 --seeds 3
# a note without a key
architecture,validation_error,validation_error_std,test_error,test_error_std,parameters,seconds
tanh(0) relu(1),0.11,0.01,0.25,0.01,100,1.5
relu(0) relu(0),0.10,0.02,0.125,0.01,100,1.25
tanh(0) identity(1),0.12,0.02,0.5,0.01,100,1.25
"""

PUBLISHED = """\
index,arch,cifar10_test,cifar10_test_12ep,iso_group
0,|avg_pool_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|,85.5,69.5,17
1,|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|,93.5,88.25,4
2,|skip_connect~0|+|none~0|none~1|+|avg_pool_3x3~0|none~1|none~2|,85.5,71.0,17
"""


def written(folder: Path, text: str, name: str = "truth.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# ---- what is read ------------------------------------------------------------------------------------------------


def test_a_benchmark_of_ours(tmp_path: Path) -> None:
    truth = read_truth(written(tmp_path, OURS), SPACE)
    assert [str(architecture) for architecture in truth.architectures] == [
        "tanh(0) relu(1)",
        "relu(0) relu(0)",
        "tanh(0) identity(1)",
    ]
    assert truth.column == "test_error"
    assert truth.values.tolist() == [0.25, 0.125, 0.5]
    assert truth.qualities.tolist() == [-0.25, -0.125, -0.5]
    assert (str(truth.best_architecture), truth.best_value) == ("relu(0) relu(0)", 0.125)
    assert [truth.regret(architecture) for architecture in truth.architectures] == [0.125, 0, 0.375]
    assert truth.groups.tolist() == [0, 1, 2]
    assert (len(truth), truth.num_unique, truth.is_complete) == (3, 3, False)
    assert truth.about["version"] == "3"
    assert truth.about["command"] == "forgetless benchmark recurrent-2 --seeds 3"
    assert truth.description == (
        "test_error of truth.csv: 3 of the 32 architectures of its space, 3 structurally unique; smaller is better."
    )


def test_published_accuracies(tmp_path: Path) -> None:
    truth = read_truth(str(written(tmp_path, PUBLISHED)), Nas201Space())
    first, second, third = truth.architectures
    assert truth.column == "cifar10_test"
    assert (truth.best_architecture, truth.best_value) == (second, 93.5)
    assert (truth.quality(first), truth.regret(first), truth.regret(second)) == (85.5, 8.0, 0.0)
    assert truth.groups.tolist() == [0, 1, 0]
    assert truth.num_unique == 2
    assert truth.positions([third, first, third]).tolist() == [2, 0, 2]
    assert truth.description.endswith("2 structurally unique; larger is better.")


def test_another_column_by_name(tmp_path: Path) -> None:
    truth = read_truth(written(tmp_path, OURS), SPACE, "validation_error")
    assert truth.best_value == 0.1
    short = read_truth(written(tmp_path, PUBLISHED), Nas201Space(), "cifar10_test_12ep")
    assert short.values.tolist() == [69.5, 88.25, 71.0]
    assert "After 12 epochs of training: not the quantity of the columns without that ending." in short.description


def test_the_only_column_of_qualities_needs_no_name(tmp_path: Path) -> None:
    text = "architecture,accuracy,accuracy_std,seconds\ntanh(0) relu(1),0.5,0.1,3\n"
    assert read_truth(written(tmp_path, text), SPACE).column == "accuracy"


def test_byte_order_mark_quotes_spaces_and_blank_lines(tmp_path: Path) -> None:
    text = '\ufeff# unit: share\r\narchitecture, test_error\r\n"tanh(0)  relu(1)", 0.5\r\n\r\nrelu(0) relu(0),1e-1\r\n'
    truth = read_truth(written(tmp_path, text), SPACE)
    assert truth.about == {"unit": "share"}
    assert truth.values.tolist() == [0.5, 0.1]
    assert SPACE.parse("tanh(0) relu(1)") in truth


@settings(deadline=None)
@given(st.lists(st.integers(0, 31), min_size=1, max_size=32, unique=True), st.data())
def test_what_is_written_is_read(tmp_path_factory, chosen: list[int], data: st.DataObject) -> None:
    members = [list(SPACE)[place] for place in chosen]
    values = data.draw(st.lists(st.floats(-1e9, 1e9), min_size=len(chosen), max_size=len(chosen)))
    lines = [f"{member},{value!r}" for member, value in zip(members, values, strict=True)]
    path = written(tmp_path_factory.mktemp("truth"), "\n".join(["architecture,accuracy", *lines]))
    truth = read_truth(path, SPACE)
    assert list(truth.architectures) == members
    assert truth.values.tolist() == values
    assert truth.best_value == max(values)
    assert all(truth.regret(member) >= 0 for member in members)
    assert truth.is_complete == (len(chosen) == 32)


def test_nas_bench_201_is_read_whole(shared_data: Path) -> None:
    truth = read_truth(shared_data / "nasbench201.csv", Nas201Space())
    assert truth.is_complete
    assert truth.num_unique == 6_466
    assert truth.best_value == 94.373
    assert truth.description.startswith("cifar10_test of nasbench201.csv: 15,625 of the 15,625 architectures")


def test_a_shipped_benchmark_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetless.evaluation.truth, "BENCHMARKS", tmp_path)
    assert benchmark_names() == ()
    with pytest.raises(InputError, match=r"a benchmark \(none is installed\), but got 'recurrent-2'"):
        read_truth("recurrent-2", SPACE)
    written(tmp_path, OURS, "recurrent-2.csv")
    assert benchmark_names() == ("recurrent-2",)
    assert read_truth("recurrent-2", SPACE).source == "recurrent-2.csv"
    with pytest.raises(InputError, match=r"a benchmark \(recurrent-2\), but got 'recurrent', and there is no such"):
        read_truth("recurrent", SPACE)


# ---- what is refused ---------------------------------------------------------------------------------------------


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a CSV file or the name of a benchmark .*but got '.*missing\.csv'"):
        read_truth(tmp_path / "missing.csv", SPACE)
    with pytest.raises(InputError, match=r"a truth file, but got the folder .*\. Name the CSV file in it\."):
        read_truth(tmp_path, SPACE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a header and one line per architecture in .*truth\.csv, but got an empty file"),
        ("# unit: share\n", r"but got an empty file"),
        ("architecture,test_error\n", r"but got an empty file"),
        ("name,test_error\na,1\n", r"a column architecture or arch in .*, but got name, test_error"),
        ("architecture,a,a\ntanh(0) relu(1),1,2\n", r"different column names in .*, but got architecture, a, a"),
        ("architecture,a,b\ntanh(0) relu(1),1,2\n", r"cifar10_test or test_error, or one column .*, but got a, b\."),
        ("architecture,seconds\ntanh(0) relu(1),1\n", r"one column of qualities, in .*, but got none\."),
        ("architecture,a\ntanh(0) relu(1),1,2\n", r"2 cells on line 2 of .*, like its header, but got 3"),
        ("# x: y\narchitecture,a\ntanh(0) relu(1),1\nrelu(0)\n", r"2 cells on line 4 of .*, but got 1"),
        (
            "architecture,a\ntanh(0) relu(1),1\nrelu(0) rel(0),2\n",
            r"truth\.csv, line 3: Expected an activation .*'rel'",
        ),
        ("architecture,a\nhello,1\n", r"truth\.csv, line 2: Expected an activation"),
        ("architecture,a\ntanh(0) relu(1),high\n", r"a finite number in column a on line 2 of .*, but got 'high'"),
        ("#\n#\narchitecture,a\ntanh(0) relu(1),nan\n", r"a finite number in column a on line 4 of .*, but got 'nan'"),
        ("architecture,a\ntanh(0) relu(1),inf\n", r"a finite number .*, but got 'inf'"),
        ("architecture,a\ntanh(0) relu(1),\n", r"a finite number .*, but got ''"),
        (
            "# x: y\narchitecture,a\ntanh(0) relu(1),1\nrelu(0) relu(1),1\ntanh(0)   relu(1),2\n",
            r"every architecture once in .*, but got 'tanh\(0\) relu\(1\)' on lines 3 and 5",
        ),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=message):
        read_truth(path, SPACE)


def test_an_unknown_column_is_told_which_there_are(tmp_path: Path) -> None:
    ours, published = written(tmp_path, OURS), written(tmp_path, PUBLISHED, "published.csv")
    with pytest.raises(InputError, match=r"one of validation_error, test_error, but got 'test'\. Did you mean"):
        read_truth(ours, SPACE, "test")
    with pytest.raises(InputError, match=r"one of cifar10_test, cifar10_test_12ep, but got 'iso_group'"):
        read_truth(published, Nas201Space(), "iso_group")


@pytest.mark.parametrize(
    ("space", "first", "other"),
    [
        (SPACE, "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|", r"Nas201Space\(\)"),
        (SPACE, "tanh(0) relu(1) relu(2)", r"RecurrentSpace\(num_nodes=3"),
        (RecurrentSpace(2, ("tanh", "relu")), "tanh(0) sigmoid(1)", r"RecurrentSpace\(num_nodes=2"),
        (Nas201Space(), "tanh(0) relu(1)", r"RecurrentSpace\(num_nodes=2"),
        (SPACE, str(next(iter(CellSpace(2)))), r"CellSpace\(num_blocks=2"),
    ],
)
def test_a_truth_file_of_another_space(tmp_path: Path, space, first: str, other: str) -> None:
    path = written(tmp_path, f"architecture,test_error\n{first},0.5\n")
    with pytest.raises(InputError, match=rf"a truth file for .*, which is for another space: line 2 has .* of {other}"):
        read_truth(path, space)


def test_a_truth_file_of_more_operations_than_the_space_has(tmp_path: Path) -> None:
    """Its first lines are of both spaces."""
    path = written(tmp_path, "architecture,test_error\ntanh(0) relu(1),0.5\ntanh(0) sigmoid(1),0.4\n")
    with pytest.raises(InputError, match=r"is for another space: line 3 has 'tanh\(0\) sigmoid\(1\)', of "):
        read_truth(path, RecurrentSpace(2, ("tanh", "relu")))


def test_how_many_trainings_diverged_is_no_quality() -> None:
    with pytest.raises(InputError, match=r"one of validation_error, test_error, but got 'num_diverged'"):
        read_truth("recurrent-3", RecurrentSpace(3), "num_diverged")


def test_only_the_first_architecture_makes_it_another_space(tmp_path: Path) -> None:
    path = written(tmp_path, "architecture,test_error\ntanh(0) relu(1),0.5\ntanh(0),0.5\n")
    with pytest.raises(InputError, match=r"truth\.csv, line 3: Expected node 2 of 2"):
        read_truth(path, SPACE)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00arch", b'architecture,a\n"tanh(0) relu(1)' + b" " * 200_000])
def test_files_that_are_no_text_or_no_csv(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "truth.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a truth file of comma-separated text, but got .*truth\.csv"):
        read_truth(path, SPACE)


def test_an_architecture_that_the_truth_lacks(tmp_path: Path) -> None:
    truth = read_truth(written(tmp_path, OURS), SPACE)
    unknown = SPACE.parse("sigmoid(0) sigmoid(0)")
    assert unknown not in truth
    for ask in (truth.quality, truth.regret, lambda architecture: truth.positions([architecture])):
        with pytest.raises(InputError, match=r"that truth\.csv has, but got 'sigmoid\(0\) sigmoid\(0\)'\. It has 3 of"):
            ask(unknown)


@pytest.mark.parametrize(
    ("cells", "values", "groups", "message"),
    [
        ([], [], [], r"got 0 architectures, 0 values and 0 groups"),
        (["tanh(0) relu(1)"], [1.0, 2.0], [0], r"got 1 architectures, 2 values and 1 groups"),
        (["tanh(0) relu(1)"], [math.nan], [0], r"finite values in accuracy of here"),
        (["tanh(0) relu(1)"] * 2, [1.0, 2.0], [0, 1], r"every architecture once in here"),
    ],
)
def test_a_truth_is_checked(cells: list[str], values: list[float], groups: list[int], message: str) -> None:
    members = tuple(map(SPACE.parse, cells))
    with pytest.raises(InputError, match=message):
        Truth(SPACE, members, np.array(values), np.array(groups), "accuracy", "here")


def test_a_truth_of_another_space_is_refused() -> None:
    members = (RecurrentSpace(3).parse("tanh(0) relu(1) relu(2)"),)
    with pytest.raises(InputError, match=r"an architecture of RecurrentSpace\(num_nodes=2"):
        Truth(SPACE, members, np.array([1.0]), np.array([0]), "accuracy", "here")


@pytest.mark.parametrize(
    ("column", "is_lower"),
    [
        *((name, True) for name in ("error", "Error", "test_loss", "valLoss", "perplexity", "Test PPL", "nll", "MSE")),
        *((name, True) for name in ("rmse", "cross_entropy", "test_err", "bpc")),
        *((name, False) for name in ("accuracy", "cifar10_test", "top1", "mAP", "score", "f1", "fidelity", "reward")),
    ],
)
def test_losses_are_better_the_lower_they_are(tmp_path: Path, column: str, is_lower: bool) -> None:
    truth = read_truth(written(tmp_path, f"architecture,{column}\ntanh(0) relu(1),1\nrelu(0) relu(0),2\n"), SPACE)
    assert truth.lower_is_better == is_lower
    assert truth.best_value == (1 if is_lower else 2)
    assert truth.description.endswith("smaller is better." if is_lower else "larger is better.")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_other_separators_are_read(tmp_path: Path, separator: str) -> None:
    truth = read_truth(written(tmp_path, OURS.replace(",", separator)), SPACE)
    assert truth.values.tolist() == [0.25, 0.125, 0.5]


# ---- a column per training seed ----------------------------------------------------------------------------------

SEEDS = """\
# guessing: 0.9
architecture,validation_error_seed0,validation_error_seed1,test_error_seed10,test_error_seed9,test_error_seed11,seconds
tanh(0) relu(1),0.1,0.2,0.3,0.1,0.5,1
relu(0) relu(0),0.2,0.1,0.2,inf,0.4,1
tanh(0) identity(1),0.2,0.1,nan,inf,0.2,1
"""


def test_the_median_over_seeds_is_the_truth(tmp_path: Path) -> None:
    """Columns are in the order of their seeds, and what diverged counts as guessing."""
    truth = read_truth(written(tmp_path, SEEDS), SPACE)
    assert (truth.column, truth.lower_is_better) == ("test_error_median", True)
    assert truth.values.tolist() == [0.3, 0.4, 0.9]
    assert truth.trainings is not None
    np.testing.assert_array_equal(truth.trainings.values[1], [math.inf, 0.2, 0.4])


@pytest.mark.parametrize(
    ("column", "name", "values"),
    [
        ("mean", "test_error_mean", [0.3, 0.5, 2 / 3]),
        ("std", "test_error_std", [0.2, 0.13**0.5, (2 / 3 * 0.49 / 2) ** 0.5]),
        ("diverged", "test_error_diverged", [0, 1 / 3, 2 / 3]),
        ("validation_error_median", "validation_error_median", [0.15, 0.15, 0.15]),
    ],
)
def test_other_statistics_by_name(tmp_path: Path, column: str, name: str, values: list[float]) -> None:
    truth = read_truth(written(tmp_path, SEEDS), SPACE, column)
    assert (truth.column, truth.lower_is_better) == (name, True)
    assert truth.values == pytest.approx(values)


def test_the_only_quality_with_seeds_needs_no_name(tmp_path: Path) -> None:
    text = "architecture,flops,accuracy_seed0,accuracy_seed1\ntanh(0) relu(1),7,80,90\nrelu(0) relu(0),7,10,20\n"
    truth = read_truth(written(tmp_path, text), SPACE)
    assert (truth.column, truth.lower_is_better, truth.values.tolist()) == ("accuracy_median", False, [85, 15])
    assert read_truth(written(tmp_path, text), SPACE, "flops").trainings is None
    assert read_truth(written(tmp_path, text), SPACE, "diverged").lower_is_better


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        (SEEDS.replace("# guessing: 0.9\n", ""), None, r"truth\.csv: Expected the quality of guessing, .* for 3\."),
        (SEEDS.replace("0.9", "high"), None, r"a number on the line `# guessing:` of .*, but got 'high'"),
        (SEEDS.replace("nan", "bad"), None, r"a number in column test_error_seed10 on line 5 of .*, but got 'bad'"),
        (SEEDS, "test_error_seed9", r"test_error_diverged, but got 'test_error_seed9'"),
        (
            "architecture,a_seed0\ntanh(0) relu(1),1\n",
            "std",
            r"at least 2 seeds for the std, but got the shape",
        ),
    ],
)
def test_what_can_be_wrong_with_seeds(tmp_path: Path, text: str, column: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_truth(written(tmp_path, text), SPACE, column)
