"""Orders and heights in layered drawings, against counting crossings pair by pair."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetless.layered import heights, num_crossings


@st.composite
def layered(draw):
    """Layers of up to 4 points, and arrows from each to the next."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    columns = [[f"{i}.{j}" for j in range(size)] for i, size in enumerate(sizes)]
    possible = [pair for one, other in itertools.pairwise(columns) for pair in itertools.product(one, other)]
    arrows = [pair for pair in possible if draw(st.booleans())]
    return {point: i for i, column in enumerate(columns) for point in column}, arrows


def crossings_by_pair(layers, arrows, height):
    """Of two arrows between the same layers, the one that starts higher ends lower."""
    found = 0
    for (a, b), (c, d) in itertools.combinations(arrows, 2):
        starts, ends = height[a] - height[c], height[b] - height[d]
        found += layers[a] == layers[c] and (starts > 0 > ends or starts < 0 < ends)
    return found


@settings(deadline=None)  # networkx takes its time to be imported
@given(layered())
def test_points_of_a_layer_stand_apart_and_no_order_by_name_has_fewer_crossings(graph):
    layers, arrows = graph
    found = heights(layers, arrows)
    assert found.keys() == layers.keys()
    for layer in set(layers.values()):
        own = sorted(found[point] for point in layers if layers[point] == layer)
        assert all(higher - lower > 1 - 1e-9 for lower, higher in itertools.pairwise(own))
    as_given = {point: float(point.partition(".")[2]) for point in layers}
    assert num_crossings(layers, arrows, found) <= num_crossings(layers, arrows, as_given)
    assert num_crossings(layers, arrows, as_given) == crossings_by_pair(layers, arrows, as_given)


def test_crossings_that_need_not_be_are_gone_and_a_chain_is_straight():
    crossed = [("0.0", "1.2"), ("0.1", "1.1"), ("0.2", "1.0")]
    layers = {f"{i}.{j}": i for i in range(2) for j in range(3)}
    found = heights(layers, crossed)
    assert num_crossings(layers, crossed, found) == 0
    assert all(found[a] == pytest.approx(found[b]) for a, b in crossed)
    assert heights({}, []) == {}
