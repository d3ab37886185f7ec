"""Two architectures have one canonical form exactly where they are the same function, by slow definitions of that."""

import itertools

import numpy as np
import pytest
import torch

from forgetless.errors import InputError
from forgetless.sampling.unique import distinct_functions
from forgetless.spaces.cell import CellNode, CellSpace
from forgetless.spaces.choices import ChoiceSpace
from forgetless.spaces.graph import NUM_UNIQUE, GraphArchitecture, GraphSpace
from forgetless.spaces.nas201 import NAS201_EDGES, Nas201Space
from forgetless.spaces.recurrent import RecurrentSpace


def partition(keys):
    """Which members have equal keys: for each the place of the first that has its key."""
    first = {}
    return [first.setdefault(key, place) for place, key in enumerate(keys)]


def renumbered_cell(cell):
    """The least notation of a recurrent cell over all numberings of its nodes."""
    size = len(cell.nodes)
    found = []
    for order in itertools.permutations(range(1, size + 1)):
        number = {0: 0, **dict(zip(range(1, size + 1), order, strict=True))}
        nodes = {number[i]: (number[node.predecessor], node.activation) for i, node in enumerate(cell.nodes, 1)}
        if all(source < target for target, (source, _) in nodes.items()):
            found.append(tuple(nodes[i] for i in sorted(nodes)))
    return min(found)


def test_recurrent_cells_are_the_same_where_their_nodes_are_numbered_otherwise():
    space = RecurrentSpace(3)
    cells = list(space)
    assert partition(map(space.canonical_form, cells)) == partition(map(renumbered_cell, cells))
    assert len(distinct_functions(space)) == 188


def renumbered_blocks(blocks):
    """The least notation of blocks over all their orders, and all orders of their halves."""
    size, found = len(blocks), []
    for order in itertools.permutations(range(size)):
        number = {0: 0, 1: 1, **{i + 2: place + 2 for i, place in enumerate(order)}}
        new = {
            order[i]: tuple(sorted((number[s], o) for s, o in zip(*block, strict=True)))
            for i, block in enumerate(blocks)
        }
        if all(source < i + 2 for i, halves in new.items() for source, _ in halves):
            found.append(tuple(new[i] for i in range(size)))
    return min(found)


@pytest.mark.parametrize("num_blocks", [2, 4])
def test_convolutional_cells_are_the_same_where_blocks_and_halves_are_swapped(num_blocks):
    """With 4 blocks there are cells in which it matters whether one block is read twice or two equal ones once."""
    space = CellSpace(num_blocks, ("identity", "sep_conv_3x3"))
    cell = space.sample(torch.Generator().manual_seed(0))
    source = torch.Generator().manual_seed(1)
    sample = [space.sample(source).normal for _ in range(600)]
    conv, skip = ("sep_conv_3x3",) * 2, ("identity",) * 2
    twins = (CellNode((0, 0), conv), CellNode((0, 0), conv))
    sample += [
        (*twins, CellNode((2, 2), skip), CellNode((3, 3), skip))[:num_blocks],
        (*twins, CellNode((2, 3), skip), CellNode((2, 3), skip))[:num_blocks],
    ]
    forms = [space.canonical_form(type(cell)(normal, cell.reduction)) for normal in sample]
    assert partition(forms) == partition(map(renumbered_blocks, sample))
    swapped = type(cell)(cell.reduction, cell.normal)
    assert (space.canonical_form(cell) == space.canonical_form(swapped)) == (cell.normal == cell.reduction)


SOURCE = np.random.default_rng(0)
MIXED = SOURCE.normal(size=(6, 3, 3))
POOL = SOURCE.normal(size=(3, 3))
INPUT = SOURCE.normal(size=3)


def output(cell, marks):
    """What a cell gives with one nonlinear function for each mark, by its definition; None for zeros."""
    nodes = [INPUT, None, None, None]
    for edge, operation in zip(NAS201_EDGES, cell.operations, strict=True):
        x = nodes[edge[0]]
        if operation == "none" or x is None:
            continue
        if operation == "avg_pool_3x3":
            x = POOL @ x
        elif operation.startswith("nor_conv"):
            x = np.tanh(MIXED[marks[edge]] @ x + (1 if operation.endswith("1x1") else 0.3))
        nodes[edge[1]] = x if nodes[edge[1]] is None else nodes[edge[1]] + x
    return nodes[3]


def least_output(cell):
    """Its least output over all ways to give its edges the functions: equal where two cells are the same."""
    from forgetless.spaces.nas201.supernet import live_edges

    live = [edge for edge, operation in live_edges(cell).items() if operation.startswith("nor_conv")]
    found = []
    for order in itertools.permutations(range(len(live))):
        values = output(cell, {**dict.fromkeys(NAS201_EDGES, 0), **dict(zip(live, order, strict=True))})
        found.append((0.0,) * 3 if values is None else tuple(np.round(values, 9) + 0.0))
    return len(live), min(found)


@pytest.mark.parametrize(
    "operations",
    [("none", "skip_connect", "nor_conv_3x3"), ("skip_connect", "nor_conv_1x1", "avg_pool_3x3")],
)
def test_nas201_cells_are_the_same_where_they_give_the_same_with_any_weights(operations):
    """The first are those of the benchmark nas201-digits: 729 notations of 99 functions."""
    space = Nas201Space(operations)
    cells = list(space)
    assert partition(map(space.canonical_form, cells)) == partition(map(least_output, cells))
    if "none" in operations:
        assert len(distinct_functions(space)) == 99


GRAPH = SOURCE.normal(size=(3, 9, 9))  # three ways to sum over the neighbours of nine graph nodes
WEIGHTS = SOURCE.normal(size=(4, 3, 4, 4))  # of each mark: two matrices, and that of the layer after the leaves
NORMS = SOURCE.random(size=(4, 4))  # above 0: below it, a ReLU after a ReLU would change nothing here
UNITS_IN = SOURCE.normal(size=(9, 4))


def graph_output(architecture, marks):
    """What a graph network gives where node i has the weights number marks[i], by its definition."""
    summed, scaled, mean = GRAPH
    values, raw = [UNITS_IN], [True]
    for node, (link, name) in enumerate(zip(architecture.links, architecture.operations, strict=True), 1):
        w, v, _ = WEIGHTS[marks[node - 1]]
        x = values[link]
        if not raw[link]:
            x = np.maximum(0, x + NORMS[marks[node - 1]])
        values.append(
            {
                "gat": lambda x=x, w=w, v=v: np.tanh(mean @ x @ v) * (x @ w),
                "gcn": lambda x=x, w=w: (scaled + np.eye(9)) @ x @ w,
                "gin": lambda x=x, w=w: x @ w + summed @ x @ w,
                "cheb": lambda x=x, w=w, v=v: x @ w - scaled @ x @ v,
                "sage": lambda x=x, w=w, v=v: mean @ x @ w + x @ v,
                "arma": lambda x=x, w=w, v=v: np.maximum(0, scaled @ x @ -v + x @ w),  # any V is −V of another
                "graph": lambda x=x, w=w, v=v: summed @ x @ w + x @ v,
                "fc": lambda x=x, w=w: x @ w,
                "skip": lambda x=x: x,
            }[name]()
        )
        raw.append(raw[link] and name == "skip")
    after = [np.maximum(0, values[leaf]) @ WEIGHTS[marks[leaf - 1]][2] for leaf in architecture.leaves]
    return np.round(sum(after), 6).ravel() + 0.0


def least_graph_output(architecture):
    """Its least output over all ways to give its nodes the weights: equal where two networks are the same."""
    return min(tuple(graph_output(architecture, marks)) for marks in itertools.permutations(range(4)))


def test_graph_networks_are_the_same_where_they_give_the_same_with_any_weights():
    space = GraphSpace()
    assert len({space.canonical_form(each) for each in space}) == 20_261 < NUM_UNIQUE
    source = torch.Generator().manual_seed(0)
    drawn = [space.sample(source) for _ in range(60)]
    # Others in which something looks the same: one operation changed over.
    other = {"arma": "cheb", "cheb": "arma", "gin": "graph", "sage": "graph"}
    drawn += [
        GraphArchitecture(each.links, tuple(other.get(name, name) if i == place else name for i, name in old))
        for each in drawn
        for place in range(4)
        if (old := tuple(enumerate(each.operations)))[place][1] in other
    ]
    assert partition(map(space.canonical_form, drawn)) == partition(map(least_graph_output, drawn))
    assert len(set(map(space.canonical_form, drawn))) < len(set(drawn))


def test_a_space_without_canonical_forms_says_so():
    space = ChoiceSpace(2, ("a", "b"))
    assert not space.has_canonical_form
    with pytest.raises(InputError, match="Expected a space with canonical forms, but got ChoiceSpace"):
        space.canonical_form(space.parse("a b"))
