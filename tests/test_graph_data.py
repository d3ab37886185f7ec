"""Graphs: what is read and refused, the splits, and the task of classifying nodes."""

import io
import zipfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forgetless import InputError
from forgetless.data import GRAPH_DATA, graph_files, load_graph
from forgetless.data.graph_files import GraphArrays
from forgetless.data.graphs import graph_data
from forgetless.data.planetoid import load_planetoid
from forgetless.tasks.graphs import NodeClassification
from graphs import NUM_CLASSES, NUM_FEATURES, NUM_NODES, arrays, small_graph, written

SPLITS = ("train", "importance", "validation", "test")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("cora", (2708, 1433, 49_216, 10_556, 7, 140)), ("citeseer", (3327, 3703, 105_165, 9_104, 6, 120))],
)
def test_cora_and_citeseer(name, numbers, shared_data):
    data = load_graph(name, shared_data)
    found = (data.num_nodes, data.num_features, data.features.shape[1], data.edges.shape[1], data.num_classes)
    assert (*found, len(data.train)) == numbers
    assert [len(getattr(data, split)) for split in SPLITS] == [numbers[-1], numbers[-1], 500, 1000]
    assert data.labels[data.train].bincount().tolist() == [20] * data.num_classes
    assert data.labels[data.importance].bincount().min() > 0


def test_a_graph_by_path_is_what_was_written(tmp_path):
    data = load_graph(str(written(tmp_path)))
    given = arrays()
    assert (data.name, data.num_nodes, data.num_features, data.num_classes) == ("small", NUM_NODES, NUM_FEATURES, 3)
    assert data.labels.tolist() == given.label.tolist()
    assert set(zip(*data.features.tolist(), strict=True)) == set(zip(given.row, given.column, strict=True))
    one_way = {tuple(edge) for edge in given.edge.T.tolist()}
    assert set(map(tuple, data.edges.T.tolist())) == one_way | {(b, a) for a, b in one_way}
    targets = data.edges[1]
    assert torch.equal(targets, targets.sort().values)
    for split in ("train", "validation", "test"):
        assert getattr(data, split).tolist() == getattr(given, split).tolist()


def test_loops_and_repeated_edges_and_features_count_once():
    given = arrays()
    doubled = given._replace(
        edge=np.concatenate([given.edge, given.edge[::-1], np.array([[4], [4]])], axis=1),
        row=np.concatenate([given.row, given.row[:3]]),
        column=np.concatenate([given.column, given.column[:3]]),
    )
    one, two = graph_data("a", given), graph_data("b", doubled)
    assert torch.equal(one.edges, two.edges)
    assert torch.equal(one.features, two.features)


def test_splits_share_no_node_and_the_fisher_s_is_from_the_rest():
    data = small_graph()
    nodes = torch.cat([getattr(data, split) for split in SPLITS])
    assert len(nodes.unique()) == len(nodes)
    assert torch.equal(data.importance, small_graph().importance)
    assert len(data.importance) == 12  # as many as there are for training


def test_another_graph_under_the_name_is_refused(tmp_path):
    written(tmp_path).rename(tmp_path / "cora.npz")
    with pytest.raises(InputError, match=r"to have Cora as Planetoid has it, with the checksum .* but got"):
        load_planetoid("cora", tmp_path)


def test_the_checksum_is_of_what_a_file_says():
    """Not of types, nor of the order of edges, features and nodes, in which copies of Cora differ."""
    given = arrays()
    other = given._replace(
        edge=given.edge[:, ::-1].astype(np.int16),
        row=given.row[::-1],
        column=given.column[::-1],
        test=given.test[::-1].astype(np.uint8),
    )
    assert other.digest() == given.digest()
    wrong = (
        {"edge": given.edge[:, 1:]},
        {"row": given.row[1:], "column": given.column[1:]},
        {"label": given.label[::-1]},
        {"test": given.test[1:]},
        {"train": given.validation, "validation": given.train},
    )
    assert given.digest() not in {given._replace(**changes).digest() for changes in wrong}


def test_a_missing_graph_says_where_it_was_looked_for(tmp_path):
    assert list(GRAPH_DATA) == ["citeseer", "cora"]
    with pytest.raises(InputError, match=r"Expected the file planetoid/citeseer\.npz or citeseer\.npz in .*"):
        load_graph("citeseer", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": arrays().label.astype(float)}, "Expected integers in label of .* but got float64"),
        ({"label": np.array(["a"] * NUM_NODES)}, "Expected integers in label"),
        ({"label": np.array([None] * NUM_NODES)}, "to be an .npz file of arrays, but got Object arrays"),
        ({"label": arrays().label[1:]}, "Expected a label for each of 60 nodes in .* but got 59"),
        ({"label": arrays().label - 1}, "Expected label of .* to be in 0 … 59, but got -1 … 1"),
        ({"column": arrays().column[1:]}, "Expected column of .* to have the shape"),
        ({"column": arrays().column + 1}, "Expected column of .* to be in 0 … 10, but got 1 … 11"),
        ({"edge": arrays().edge[0]}, "Expected edge of .* to have the shape"),
        ({"edge": np.array([[0], [60]])}, "Expected edge of .* to be in 0 … 59, but got 0 … 60"),
        ({"train": np.array([], int)}, "Expected train of .* to have the shape"),
        ({"train": arrays().test}, "Expected every node of .* in one split at most, but got one in two"),
        (
            {"train": np.arange(20), "validation": np.arange(20, 40), "test": np.arange(40, 58)},
            "Expected at least 3 nodes of small in no split, for the Fisher, but got 2",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        load_graph(str(written(tmp_path, **changes)))


def damaged(how):
    """A file that is no whole `.npz` file."""
    file = io.BytesIO()
    if how == "no archive":
        return b"features and edges"
    if how == "an array is missing":
        np.savez(file, shape=np.array([1, 1]))
        return file.getvalue()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in GraphArrays._fields if how == "a damaged array" else ("shape",):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + bytes(2**16))
    return file.getvalue()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no archive", "to be an .npz file of arrays, but got File is not a zip file"),
        ("an array is missing", "but row is missing"),
        ("a bomb", "to have arrays of at most 4 KiB, but got more"),
        ("a damaged array", "to be an .npz file of arrays, but got"),
    ],
)
def test_a_damaged_file_is_refused(how, message, tmp_path, monkeypatch):
    if how == "a bomb":
        monkeypatch.setattr(graph_files, "MAX_GRAPH_BYTES", 2**12)
    path = tmp_path / "a.npz"
    path.write_bytes(damaged(how))
    with pytest.raises(InputError, match=message):
        load_graph(str(path))


# ---- the task ----------------------------------------------------------------------------------------------------


class Known(nn.Module):
    """Is right about some nodes; counts in which mode it was asked."""

    def __init__(self, data, right):
        super().__init__()
        wrong = (data.labels + 1) % NUM_CLASSES
        answers = wrong.index_put((right,), data.labels[right])
        self.logits = nn.Parameter(F.one_hot(answers, NUM_CLASSES).float())

    def forward(self, nodes):
        assert not (self.training and not torch.is_grad_enabled())
        return self.logits[nodes]


def test_errors_are_of_the_split_s_nodes():
    data = small_graph()
    task = NodeClassification(data, 4)
    model = Known(data, torch.cat([data.train, data.validation[:3]]))
    assert task.error(model, "train") == 0.0
    assert task.error(model, "test") == 1.0
    assert task.error(model, "validation") == pytest.approx(9 / 12)
    assert task.error(model, "reward") == pytest.approx(3 / 6)  # the halves of validation share no node
    assert task.error(model, "forgetting") == 1.0
    assert task.reward(0.25) == 0.75
    assert task.in_words(0.25) == "accuracy 75.0 %"
    assert (task.error_of_guessing, task.num_outputs) == (1 - 1 / 3, 3)
    model.logits.data[data.test[0]] = torch.inf
    assert np.isnan(task.error(model, "test"))


def test_batches_from_a_start_are_the_same_sequence():
    task = NodeClassification(small_graph(), 5)
    whole = list(task.training_batches(7, torch.Generator().manual_seed(2)))
    tail = list(task.training_batches(3, torch.Generator().manual_seed(2), start=4))
    assert all(
        torch.equal(a, b) for one, two in zip(whole[4:], tail, strict=True) for a, b in zip(one, two, strict=True)
    )
    for first, second in zip(whole[::2], whole[1::2], strict=False):  # two of five nodes are a pass over twelve
        assert len(torch.cat([first[0], second[0]]).unique()) == 10
    for nodes, labels in whole:
        assert set(nodes.tolist()) <= set(task.data.train.tolist())
        assert torch.equal(labels, task.data.labels[nodes])


def test_a_batch_has_all_nodes_at_most():
    task = NodeClassification(small_graph(), 1000)
    assert task.batch_size == 12
    assert task.has_one_batch
    assert not NodeClassification(small_graph(), 11).has_one_batch
    nodes, _ = next(iter(task.training_batches(1, torch.Generator())))
    assert sorted(nodes.tolist()) == sorted(task.data.train.tolist())


def test_the_digest_is_of_graph_labels_and_splits():
    given = arrays()
    digests = {NodeClassification(small_graph(), size).digest() for size in (3, 4)}
    for changes in (
        {"edge": given.edge[:, 1:]},
        {"row": given.row[1:], "column": given.column[1:]},
        {"label": given.label[::-1].copy()},
        {"train": given.train[1:]},
    ):
        digests.add(NodeClassification(small_graph(**changes), 4).digest())
    assert len(digests) == 5


def test_the_loss_of_a_batch_has_its_gradient():
    data = small_graph()
    task, model = NodeClassification(data, 6), Known(data, data.train)
    nodes, labels = next(iter(task.training_batches(1, torch.Generator())))
    loss = task.loss_of(model)((nodes, labels))
    assert loss.item() == pytest.approx(-model.logits[nodes].log_softmax(-1)[torch.arange(6), labels].mean().item())
    loss.backward()
    assert set(model.logits.grad.abs().sum(1).nonzero().flatten().tolist()) == set(nodes.tolist())
