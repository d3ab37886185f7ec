"""The space of NAS-Bench-Graph: one notation per function, and the benchmark's table."""

import csv
import math
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetless import InputError
from forgetless.evaluation.truth import read_truth
from forgetless.report.search.cells import cell_drawing
from forgetless.spaces.graph import NUM_UNIQUE, GraphArchitecture, GraphSpace, table
from forgetless.spaces.graph.canonical import GRAPH_LINKS, GRAPH_OPERATIONS, canonical
from forgetless.spaces.nas201 import Nas201Space
from forgetless.strategies import make_strategy

SPACE = GraphSpace()


@st.composite
def notations(draw):
    links = tuple(draw(st.integers(0, node)) for node in range(4))
    return links, tuple(draw(st.sampled_from(GRAPH_OPERATIONS)) for _ in range(4))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def everything():
    return list(SPACE)


def test_the_space_has_the_architectures_of_the_benchmark(everything, request):
    """Of 59,049 decisions, the 26,206 that the published table has, in its order."""
    assert len(everything) == len(set(everything)) == NUM_UNIQUE == SPACE.size
    decisions = [SPACE.encode(architecture) for architecture in everything]
    assert decisions == sorted(decisions)
    source = np.random.default_rng(0)
    assert all(SPACE.decode(source.integers(9, size=5)) in set(everything) for _ in range(3))
    path = request.getfixturevalue("shared_data") / "nasbenchgraph.csv"
    with path.open() as file:
        assert [row["arch"] for row in csv.DictReader(file)] == list(map(str, everything))


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        ("0121|gcn,gin,fc,cheb", "0112|gcn,gin,cheb,fc"),  # the order of nodes
        ("0000|fc,gat,fc,gcn", "0000|gat,gcn,fc,fc"),  # of equal ones
        ("0012|fc,gat,gcn,gin", "0012|gat,fc,gin,gcn"),  # of equal chains
        ("0012|gat,gat,gcn,gat", "0012|gat,gat,gat,gcn"),
        ("0123|gcn,skip,fc,gat", "0123|skip,gcn,fc,gat"),  # a skip in a chain
        ("0122|gcn,skip,fc,gat", "0122|skip,gcn,gat,fc"),  # one that two nodes read
        ("0112|gcn,skip,fc,gat", "0122|skip,gcn,gat,fc"),
        ("0123|gcn,fc,gat,skip", "0123|skip,gcn,fc,gat"),  # one at the end of a chain
        ("0000|skip,gcn,gcn,gcn", "0111|skip,gcn,gcn,gcn"),  # the features as an output
        ("0112|gcn,gat,skip,fc", "0112|gcn,gat,skip,fc"),  # units as an output stay
        ("0111|gcn,skip,skip,skip", "0111|gcn,skip,skip,skip"),
        ("0122|fc,skip,skip,skip", "0122|skip,fc,skip,skip"),
        ("0123|skip,skip,skip,skip", "0123|skip,skip,skip,fc"),  # nothing at all
    ],
)
def test_one_notation_per_function(given_, kept):
    assert str(SPACE.parse(given_)) == kept


@settings(deadline=None)
@given(notations(), st.data())
def test_the_notation_does_not_depend_on_the_one_given(notation, data):
    links, operations = notation
    found = canonical(links, operations)
    assert canonical(*found) == found
    assert found[0] in GRAPH_LINKS
    # Any order of nodes in which each comes after what it reads.
    keys = data.draw(st.permutations(range(4)))
    order = []
    while len(order) < 4:
        ready = [n for n in range(1, 5) if n not in order and (links[n - 1] == 0 or links[n - 1] in order)]
        order.append(min(ready, key=lambda n: keys[n - 1]))
    place = {0: 0} | {node: number for number, node in enumerate(order, 1)}
    again = tuple(place[links[node - 1]] for node in order), tuple(operations[node - 1] for node in order)
    assert canonical(*again) == found


@settings(deadline=None)
@given(notations())
def test_an_architecture_is_a_value_that_prints_and_is_read_back(notation):
    architecture = GraphArchitecture(*notation)
    assert SPACE.parse(f" {architecture}\n") == architecture
    assert SPACE.decode(SPACE.encode(architecture)) == architecture
    assert pickle.loads(pickle.dumps(architecture)) == architecture
    assert architecture in SPACE
    assert not any(architecture.are_raw[leaf] for leaf in architecture.leaves)


def test_sampling_is_uniform_over_architectures(everything):
    """Those with four nodes that may change places have up to 24 notations, and are drawn no more often."""
    source = generator()
    drawn = [SPACE.sample(source) for _ in range(4000)]
    shares = Counter(GRAPH_LINKS.index(architecture.links) for architecture in drawn)
    trees = Counter(GRAPH_LINKS.index(architecture.links) for architecture in everything)
    for tree, number in trees.items():
        expected = 4000 * number / NUM_UNIQUE
        assert abs(shares[tree] - expected) < 5 * math.sqrt(expected)
    first, second = generator(1), generator(1)
    assert [SPACE.sample(first) for _ in range(9)] == [SPACE.sample(second) for _ in range(9)]


def test_a_mutation_is_another_architecture():
    source = generator()
    for text in ("0000|gat,gat,gat,gat", "0123|skip,skip,skip,fc", "0112|gcn,gat,skip,fc"):
        architecture = SPACE.parse(text)
        assert all(SPACE.mutate(architecture, source) != architecture for _ in range(50))


@pytest.mark.parametrize("name", ["enas", "evolution", "nao", "uniform", "random"])
def test_strategies_search_it(name):
    strategy = make_strategy(name, SPACE, seed=1, num_steps=3)
    for _ in range(2):
        proposed = strategy.propose(4)
        assert all(architecture in SPACE for architecture in proposed)
        strategy.learn(proposed, [0.1, 0.4, 0.2, 0.3])


def test_its_drawing_has_every_node_and_operation():
    graphs = SPACE.parse("0112|gcn,gat,skip,fc").graphs()
    assert [tuple(edge) for edge in graphs["cell"]] == [
        ("0", "1", "gcn"),
        ("1", "2", "gat"),
        ("1", "3", "skip"),
        ("2", "4", "fc"),
        ("3", "output", "concatenate"),
        ("4", "output", "concatenate"),
    ]
    (ax,) = cell_drawing(SPACE.parse("0112|gcn,gat,skip,fc")).axes
    assert {"gcn", "gat", "skip", "fc"} <= {text.get_text() for text in ax.texts}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1123|gcn,gcn,gcn,gcn", "Expected node 0 at position 0 of .*, but got '1123'"),
        ("0133|gcn,gcn,gcn,gcn", "Expected the node that node 3 reads, 0 … 2, at position 2"),
        ("012", "at position 3 of '012', but got the end of the text"),
        ("0123,gcn,gcn,gcn,gcn", r"Expected '\|' at position 4"),
        ("0123|gcn,gcm,gcn,gcn", "at position 9 of .*, but got 'gcm'. Did you mean 'gcn'"),
        ("0123|gcn,gcn,gcn", "Expected ',' at position 16"),
        ("0123|gcn,gcn,gcn,gcn,gcn", "Expected the end after 4 operations at position 20"),
    ],
)
def test_a_wrong_text_is_refused_with_a_position(text, message):
    with pytest.raises(InputError, match=message):
        SPACE.parse(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GraphArchitecture((0, 1), ("fc",) * 4), "Expected 4 links, but got 2"),
        (lambda: GraphArchitecture((0,) * 4, ("fc",)), "Expected 4 operations, but got 1"),
        (lambda: GraphArchitecture((0, 2, 0, 0), ("fc",) * 4), r"node 2 to read one of the nodes 0 … 1, but got 2"),
        (lambda: GraphArchitecture((0,) * 4, ("fc", "fc", "fc", "conv")), "Expected operation to be one of gat, gcn"),
        (lambda: SPACE.encode(next(iter(Nas201Space()))), "Expected an architecture of GraphSpace"),
        (lambda: SPACE.decode((0, 0, 0, 0, 9)), "Expected decision 4 of GraphSpace"),
    ],
)
def test_what_is_no_architecture_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


# ---- the table ---------------------------------------------------------------------------------------------------

FEW = ("0000|gat,gat,gat,gat", "0112|gcn,gat,skip,fc", "0123|skip,skip,skip,fc")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A folder like that of the package, with three architectures, and nothing in any folder of data."""
    for number, graph in enumerate(table.GRAPHS):
        rows = {
            0: {"valid_perf": 0.5 + number / 100, "perf": 0.25, "latency": 0.1, "para": np.float64(1.5)},
            61087: {"valid_perf": 0.625, "perf": 1 / 3, "latency": 0.1, "para": np.float64(2.25)},
            88887: {"valid_perf": 0.75, "perf": 0.875, "latency": 0.1, "para": np.float64(1 / 3)},
        }
        (tmp_path / f"{graph}.bench").write_bytes(pickle.dumps(rows, protocol=3))
    monkeypatch.setattr(table, "GraphSpace", lambda: map(SPACE.parse, FEW))
    monkeypatch.setattr(table, "_package", lambda: tmp_path)
    monkeypatch.setattr(table, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("forgetless.data.sources.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv("FORGETLESS_DATA", raising=False)
    return tmp_path


def test_the_package_s_table_is_a_truth_by_name(package):
    truth = read_truth("nasbenchgraph", SPACE, "citeseer_test")
    assert list(map(str, truth.architectures)) == list(FEW)
    assert truth.values.tolist() == [25.0, 33.33, 87.5]
    assert (truth.column, truth.source, truth.lower_is_better) == ("citeseer_test", "nasbenchgraph.csv", False)
    assert read_truth("nasbenchgraph", SPACE, "citeseer_valid").values.tolist() == [51.0, 62.5, 75.0]
    assert read_truth("nasbenchgraph", SPACE, "params_cora").values.tolist() == [1.5, 2.25, 0.333333]
    assert (package / "cache" / "nasbenchgraph.csv").is_file()


def test_a_file_goes_before_the_package(package, monkeypatch):
    (package / "nasbenchgraph.csv").write_text(f'arch,cora_test\n"{FEW[1]}",12.5\n')
    monkeypatch.setenv("FORGETLESS_DATA", str(package))
    assert read_truth("nasbenchgraph", SPACE, "cora_test").values.tolist() == [12.5]


def test_without_file_and_package_it_says_what_to_do(package, monkeypatch):
    monkeypatch.setattr(table, "_package", lambda: None)
    with pytest.raises(InputError, match=r"Expected nasbenchgraph.csv in a folder of data or the package nas-bench-gr"):
        read_truth("nasbenchgraph", SPACE, "cora_test")
    assert package.is_dir()


def test_another_space_has_no_such_table():
    with pytest.raises(InputError, match="Expected a CSV file or the name of a benchmark"):
        read_truth("nasbenchgraph", Nas201Space(), "cora_test")


class _Runs:
    def __reduce__(self):
        return print, ("code of a stranger",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_Runs()), "but got it has builtins.print"),
        (pickle.dumps({0: np.zeros(2)}), "but got it has numpy"),
        (pickle.dumps({0: np.float32(1)}), "but got it has numbers of type f4"),
        (pickle.dumps({0: np.dtype(">f8").type(1)}).replace(b"<", b">"), "numbers in another byte order"),
        (pickle.dumps([1]), "but got it has a list"),
        (pickle.dumps({0: 1})[:-1], "to be a table of numbers, but got"),
        (b"P1\n.", "persistent"),
        (b"", "but got Ran out of input"),
    ],
)
def test_a_pickle_with_anything_but_numbers_is_refused(content, message, tmp_path, capsys):
    (tmp_path / "cora.bench").write_bytes(content)
    with pytest.raises(InputError, match=message):
        table.read_pickle(tmp_path / "cora.bench")
    assert capsys.readouterr().out == ""


def test_an_incomplete_package_is_refused(package):
    (package / "arxiv.bench").write_bytes(pickle.dumps({0: {"valid_perf": 0.5, "perf": 0.5}}))
    with pytest.raises(InputError, match="Expected numbers for 0112"):
        list(table.lines(package))
