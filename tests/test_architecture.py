"""Architectures and their spaces: encoding, printing, parsing, sampling, mutating."""

import csv
import dataclasses
import itertools
import math
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetless import InputError
from forgetless.spaces.base import Architecture, Space
from forgetless.spaces.cell import CELL_OPERATIONS, CellArchitecture, CellNode, CellSpace, cell_loose_ends
from forgetless.spaces.nas201 import Nas201Architecture, Nas201Space
from forgetless.spaces.recurrent import ACTIVATIONS, RecurrentArchitecture, RecurrentNode, RecurrentSpace


def some_of(names: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(names), min_size=1, unique=True).map(tuple)


SPACES: st.SearchStrategy[Space[Architecture]] = st.one_of(
    st.builds(RecurrentSpace, st.integers(1, 12), some_of(ACTIVATIONS)),
    st.builds(CellSpace, st.integers(1, 5), some_of(CELL_OPERATIONS)),
    st.builds(Nas201Space),
)


@st.composite
def members(draw: st.DrawFn) -> tuple[Space[Architecture], tuple[int, ...]]:
    space = draw(SPACES)
    return space, tuple(draw(st.integers(0, options - 1)) for options in space.num_choices)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- all spaces --------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(members())
def test_encoding_and_printing_are_inverted(member):
    space, decisions = member
    architecture = space.decode(decisions)
    assert space.encode(architecture) == decisions
    again = space.parse(str(architecture))
    assert again == architecture
    assert hash(again) == hash(architecture)
    assert architecture in space
    assert pickle.loads(pickle.dumps(architecture)) == architecture


@settings(deadline=None)
@given(members(), st.sampled_from([" ", "\n", "  \t"]))
def test_spaces_around_and_between_words_do_not_matter(member, gap):
    space, decisions = member
    architecture = space.decode(decisions)
    assert space.parse(gap + str(architecture).replace(" ", gap) + gap) == architecture


@settings(deadline=None)
@given(members(), st.integers(0, 2**32))
def test_a_mutation_changes_one_decision(member, seed):
    space, decisions = member
    if space.size == 1:
        return
    mutated = space.encode(space.mutate(space.decode(decisions), generator(seed)))
    assert sum(a != b for a, b in zip(decisions, mutated, strict=True)) == 1


@settings(deadline=None)
@given(members(), st.data())
def test_a_damaged_text_is_refused_with_a_position_or_is_another_architecture(member, data):
    space, decisions = member
    text = str(space.decode(decisions))
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 3)))
    damaged = text[:start] + data.draw(st.text(max_size=3)) + text[stop:]
    try:
        architecture = space.parse(damaged)
    except InputError:
        with pytest.raises(InputError, match=" at position "):
            space.parse(damaged)
    else:
        assert "".join(str(architecture).split()) == "".join(damaged.split())


@pytest.mark.parametrize(
    ("space", "size"),
    [
        (RecurrentSpace(1), 4),
        (RecurrentSpace(3), 4**3 * math.factorial(3)),
        (RecurrentSpace(12), 4**12 * math.factorial(12)),
        (CellSpace(1, ("identity", "max_pool_3x3")), (2**2 * 2**2) ** 2),
        (CellSpace(5), (math.prod((b + 2) ** 2 for b in range(5)) * 5**10) ** 2),
        (Nas201Space(), 15_625),
    ],
)
def test_size_is_the_number_of_architectures(space, size):
    assert space.size == size
    if size < 1000:
        everything = list(space)
        assert len(set(everything)) == len(everything) == size
        assert [space.encode(architecture) for architecture in everything] == sorted(map(space.encode, everything))


def test_sampling_is_uniform_and_follows_its_generator():
    space = RecurrentSpace(2, ("tanh", "relu"))
    source = generator()
    counts = Counter(space.sample(source) for _ in range(4000))
    assert set(counts) == set(space)
    expected, deviation = 4000 / space.size, math.sqrt(4000 / space.size)
    assert all(abs(count - expected) < 5 * deviation for count in counts.values())
    first, second = generator(1), generator(1)
    assert [space.sample(first) for _ in range(9)] == [space.sample(second) for _ in range(9)]


def test_mutations_reach_every_neighbour_equally_often_per_decision():
    space = RecurrentSpace(2, ("tanh", "relu", "sigmoid"))  # decisions with 1, 3, 2, 3 options
    start = space.decode((0, 0, 1, 2))
    source = generator()
    counts = Counter(space.encode(space.mutate(start, source)) for _ in range(3000))
    expected = {(0, 1, 1, 2): 500, (0, 2, 1, 2): 500, (0, 0, 0, 2): 1000, (0, 0, 1, 0): 500, (0, 0, 1, 1): 500}
    assert counts.keys() == expected.keys()
    assert all(abs(counts[key] - count) < 5 * math.sqrt(count) for key, count in expected.items())


def test_architectures_and_spaces_are_values():
    architecture = RecurrentSpace(2).parse("tanh(0) relu(1)")
    with pytest.raises(dataclasses.FrozenInstanceError):
        architecture.nodes = ()
    assert RecurrentSpace(2) == RecurrentSpace(2) != RecurrentSpace(3)
    assert len({CellSpace(2), CellSpace(2), Nas201Space(), Nas201Space()}) == 2
    assert eval(repr(architecture)) == architecture


def test_a_space_of_one_has_nothing_to_mutate():
    space = RecurrentSpace(1, ("tanh",))
    with pytest.raises(InputError, match=r"Expected a space with at least two architectures .*num_nodes=1"):
        space.mutate(space.decode((0, 0)), generator())


@pytest.mark.parametrize(
    ("space", "stranger", "reason"),
    [
        (RecurrentSpace(3), RecurrentSpace(2).decode((0, 0, 0, 0)), "it has 2 nodes, not 3"),
        (RecurrentSpace(1, ("tanh",)), RecurrentArchitecture((RecurrentNode(0, "relu"),)), "not in tuple"),
        (RecurrentSpace(1), Nas201Architecture(("none",) * 6), "no attribute 'nodes'"),
        (CellSpace(2), CellSpace(1).decode((0,) * 8), "it has 1 blocks, not 2"),
        (Nas201Space(), RecurrentSpace(6).decode((0,) * 12), "no attribute 'operations'"),
    ],
)
def test_strangers_are_refused(space, stranger, reason):
    assert stranger not in space
    with pytest.raises(InputError, match=rf"Expected an architecture of \w+Space\(.*{reason}"):
        space.encode(stranger)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ((0, 0, 0), "Expected 4 decisions .* but got 3"),
        ((0, 0, 2, 0), r"Expected decision 2 .* in 0 … 1, but got 2"),
        ((0, -1, 0, 0), r"Expected decision 1 .* in 0 … 3, but got -1"),
    ],
)
def test_decisions_out_of_range_are_refused(decisions, message):
    with pytest.raises(InputError, match=message):
        RecurrentSpace(2).decode(decisions)


# ---- each space --------------------------------------------------------------------------------------------------

CELL_TEXT = "normal: identity(0)+identity(1) reduction: identity(0)+identity(1)"
NAS201_TEXT = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


@pytest.mark.parametrize(
    ("space", "text", "message"),
    [
        (RecurrentSpace(2), "", r"Expected node 1 of 2, such as 'tanh\(0\)' at position 0 of '', but got the end"),
        (RecurrentSpace(2), "tanh(0) ", r"Expected node 2 of 2, .* at position 8 .* but got the end"),
        (RecurrentSpace(2), "tanh(0) rleu(1)", r"position 8 .* but got 'rleu'. Did you mean 'relu'\?"),
        (RecurrentSpace(2, ("tanh", "relu")), "tanh(0) sigmoid(1)", r"\(tanh, relu\) at position 8"),
        (RecurrentSpace(2), "tanh[0] relu(1)", r"Expected '\(' at position 4 .* but got '\['"),
        (RecurrentSpace(2), "tanh(1) relu(1)", r"Expected node 0 at position 5 .* but got '1'"),
        (RecurrentSpace(2), "tanh(0) relu(2)", r"Expected an earlier node's number, 0 … 1, at position 13 .* '2'"),
        (RecurrentSpace(2), "tanh(0) relu(-1)", r"0 … 1, at position 13 .* but got '-'"),
        (RecurrentSpace(2), "tanh(0) relu(01)", r"0 … 1, at position 13 .* but got '01'"),
        (RecurrentSpace(2), "tanh(0) relu(1", r"Expected '\)' at position 14 .* but got the end"),
        (RecurrentSpace(2), "tanh(0) relu(1) tanh(0)", r"Expected the end after 2 nodes at position 16 .* 'tanh'"),
        (RecurrentSpace(2), "x" * 500, r"of 'x{160}…', but got 'x+'"),
        (CellSpace(1), "identity(0)+identity(1)", r"Expected 'normal:' at position 0 .* but got 'identity'"),
        (CellSpace(1), CELL_TEXT.replace("reduction", "reducing"), r"Expected 'tion:' at position 37 .* but got 'ing'"),
        (CellSpace(1), CELL_TEXT.replace("+", "-"), r"Expected '\+' at position 19 .* but got '-'"),
        (CellSpace(2), CELL_TEXT, r"Expected an operation \(identity, .*\) at position 32 .* but got 'reduction'"),
        (CellSpace(1), CELL_TEXT + " identity(0)+identity(0)", r"Expected the end after 1 blocks .* position 67"),
        (CellSpace(1), CELL_TEXT[:43], r"Expected block 1 of 1 of the reduction cell, .* position 43 .* the end"),
        (CellSpace(1), CELL_TEXT.replace("(1)", "(2)"), r"0 … 1, at position 29 .* but got '2'"),
        (Nas201Space(), NAS201_TEXT.replace("none~1", "nor_conv_5x5~1", 1), r"position 17 .* mean 'nor_conv_3x3'\?"),
        (Nas201Space(), NAS201_TEXT.replace("~2", "~1"), r"Expected '2\|' at position 45 .* but got '1'"),
        (Nas201Space(), NAS201_TEXT[:-1], r"Expected '\|' at position 46 .* but got the end"),
        (Nas201Space(), NAS201_TEXT + "+|none~0|", r"Expected the end after the third node at position 47"),
    ],
)
def test_a_text_that_does_not_parse_tells_the_position(space, text, message):
    with pytest.raises(InputError, match=message):
        space.parse(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecurrentSpace(0), "at least 1 of the nodes in a recurrent cell, but got 0"),
        (lambda: RecurrentSpace(2, ("tanh", "tanh")), "one or more different activations, but got tanh, tanh"),
        (lambda: RecurrentSpace(2, ()), "one or more different activations, but got none"),
        (lambda: RecurrentSpace(2, ("selu",)), "activation to be one of .* but got 'selu'"),
        (lambda: CellSpace(0), "at least 1 of the blocks in a cell, but got 0"),
        (lambda: CellSpace(2, ("conv",)), "operation to be one of"),
        (
            lambda: RecurrentArchitecture((RecurrentNode(1, "tanh"),)),
            r"node 1 to read one of the nodes 0 … 0, but got 1",
        ),
        (
            lambda: CellArchitecture((CellNode((0, 2), ("identity",) * 2),), (CellNode((0, 1), ("identity",) * 2),)),
            r"\(0, 2\)",
        ),
        (
            lambda: CellArchitecture((CellNode((0, 1), ("identity",) * 2),), ()),
            "a reduction cell of 1 blocks, .* got 0",
        ),
        (lambda: Nas201Architecture(("none",) * 5), "6 operations in a NAS-Bench-201 cell, but got 5"),
        (lambda: Nas201Architecture(("nonne",) * 6), "Did you mean 'none'"),
    ],
)
def test_impossible_spaces_and_architectures_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_loose_ends_are_what_nobody_reads():
    for cell in RecurrentSpace(4, ("tanh",)):
        read = [node.predecessor for node in cell.nodes]
        assert cell.loose_ends == tuple(index for index in range(5) if read.count(index) == 0)
        assert 0 not in cell.loose_ends
    block = ("identity", "identity")
    assert cell_loose_ends([CellNode((0, 1), block), CellNode((0, 2), block)]) == (3,)
    assert cell_loose_ends([CellNode((0, 0), block), CellNode((0, 0), block)]) == (1, 2, 3)


def test_graphs_hold_what_a_drawing_needs():
    cell = RecurrentSpace(3).parse("tanh(0) relu(1) sigmoid(1)").graphs()["cell"]
    assert [tuple(edge) for edge in cell] == [
        ("x", "0", "tanh"),
        ("h", "0", "tanh"),
        ("0", "1", "tanh"),
        ("1", "2", "relu"),
        ("1", "3", "sigmoid"),
        ("2", "h'", "mean"),
        ("3", "h'", "mean"),
    ]
    graphs = CellSpace(1).parse("normal: identity(0)+max_pool_3x3(1) reduction: identity(0)+identity(0)").graphs()
    assert [tuple(edge) for edge in graphs["normal"]] == [
        ("0", "2", "identity"),
        ("1", "2", "max_pool_3x3"),
        ("2", "output", "concatenate"),
    ]
    assert [edge.source for edge in graphs["reduction"] if edge.target == "output"] == ["1", "2"]
    skip = Nas201Space().parse("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|")
    assert [tuple(edge) for edge in skip.graphs()["cell"]] == [("0", "3", "skip_connect")]


def test_nas201_strings_are_the_benchmarks_own(shared_data: Path):
    table = shared_data / "nasbench201.csv"
    if not table.exists():
        pytest.skip(f"needs the table of NAS-Bench-201 at {table}")
    space = Nas201Space()
    with table.open(newline="") as file:
        texts = [row["arch"] for row in csv.DictReader(file)]
    assert [str(space.parse(text)) for text in texts] == texts
    assert {space.encode(space.parse(text)) for text in texts} == set(itertools.product(range(5), repeat=6))
    assert {str(architecture) for architecture in space} == set(texts)
