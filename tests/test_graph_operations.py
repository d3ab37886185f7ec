"""Each operation of the graph networks, and the whole network, against dense and slow versions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from forgetless import InputError, diagonal_fisher
from forgetless.search.evidence import BoundArchitecture
from forgetless.spaces.graph import GraphSpace
from forgetless.spaces.graph.canonical import GRAPH_OPERATIONS
from forgetless.spaces.graph.neighbours import Features, Hidden, Neighbours
from forgetless.spaces.graph.operations import HEADS, OPERATIONS
from forgetless.spaces.graph.supernet import GraphSupernet, parameters_of_table
from forgetless.spaces.nas201 import Nas201Space
from graphs import NUM_FEATURES, dense, small_graph

UNITS = 2 * HEADS
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # the graph's own numbers, such as 1/√(d_i d_j), are kept in float32
SPACE = GraphSpace()


@pytest.fixture(scope="module")
def data():
    return small_graph()


def test_the_graph_is_worth_testing_on(data):
    degrees = dense(data)[1].sum(1)
    assert degrees.min() == 0
    assert degrees.max() > 2
    assert len(data.importance) > 0


# ---- dense versions, one node at a time --------------------------------------------------------------------------


def one_by_one(adjacency, message):
    """Rows Σ_j message(i, j) over the neighbours j of each node i, and the node's own where the message says so."""
    rows = []
    for i in range(len(adjacency)):
        found = [message(i, j) for j in range(len(adjacency)) if adjacency[i, j] or i == j]
        rows.append(torch.stack(found).sum(0))
    return torch.stack(rows)


def reference(name, w, x, adjacency):
    """What an operation gives for inputs x (N, in), straight from its formula."""
    degree, nothing = adjacency.sum(1), torch.zeros(UNITS, dtype=torch.double)

    def symmetric(y):
        return one_by_one(adjacency, lambda i, j: nothing if i == j else y[j] / torch.sqrt(degree[i] * degree[j]))

    def total(y):
        return one_by_one(adjacency, lambda i, j: nothing if i == j else y[j])

    if name == "fc":
        return x @ w["weight"] + w["bias"]
    if name == "gcn":
        y = x @ w["weight"]
        near = one_by_one(adjacency, lambda i, j: y[j] / torch.sqrt((degree[i] + 1) * (degree[j] + 1)))
        return near + w["bias"]
    if name == "gin":
        return (x + adjacency @ x) @ w["weight"] + w["bias"]
    if name == "cheb":
        inverse = torch.where(degree > 0, degree, 1.0) ** -0.5
        laplacian = torch.eye(len(x)).double() - inverse[:, None] * adjacency * inverse[None]
        scaled = 2 * laplacian / 2 - torch.eye(len(x)).double()
        return x @ w["weight"] + scaled @ x @ w["first_order"] + w["bias"]
    if name == "sage":
        return total(x @ w["weight"]) / degree.clamp(min=1)[:, None] + x @ w["root"] + w["bias"]
    if name == "arma":
        return (symmetric(x @ w["weight"]) + x @ w["root"] + w["bias"]).clamp(min=0)
    if name == "graph":
        return adjacency @ x @ w["weight"] + x @ w["root"] + w["bias"]
    assert name == "gat"
    y, per_head = x @ w["weight"], UNITS // HEADS
    heads = []
    for head in range(HEADS):
        part = y[:, head * per_head : (head + 1) * per_head]
        rows = []
        for i in range(len(x)):
            near = [j for j in range(len(x)) if adjacency[i, j] or j == i]
            scores = [part[j] @ w["source"][head] + part[i] @ w["target"][head] for j in near]
            shares = torch.stack([torch.where(s > 0, s, 0.2 * s) for s in scores]).softmax(0)
            rows.append(sum(share * part[j] for share, j in zip(shares, near, strict=True)))
        heads.append(torch.stack(rows))
    return torch.cat(heads, 1) + w["bias"]


def moved(module):
    """In float64, with weights away from where they begin: a bias of 0 hides its absence."""
    module = module.double()
    for weight in module.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    return module


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("is_raw", [True, False])
@pytest.mark.parametrize("how", ["all", "some"])
def test_an_operation_and_its_gradient(name, is_raw, how, data):
    features, adjacency = dense(data)
    neighbours = Neighbours(data.edges, data.num_nodes).double()
    operation = moved(OPERATIONS[name](NUM_FEATURES if is_raw else UNITS, UNITS))
    x = features if is_raw else torch.randn(data.num_nodes, UNITS, dtype=torch.double)
    sparse = Features(data.features, data.num_nodes, data.num_features).double().dropped(0.0)
    weights = dict(operation.named_parameters())
    expected = reference(name, weights, x, adjacency)
    inputs = sparse if is_raw else Hidden(x)
    found = operation(inputs, neighbours.at(None))
    torch.testing.assert_close(found, expected, **CLOSE)
    nodes = torch.tensor([7, 0, 59, 3, 7])  # in any order, one without neighbours, one twice
    some = operation(inputs, neighbours.at(nodes))
    torch.testing.assert_close(some, expected[nodes], **CLOSE)
    if how == "some":
        found, expected = some, expected[nodes]
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * direction).sum(), list(weights.values()))
    got = torch.autograd.grad((found * direction).sum(), list(weights.values()))
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, **CLOSE)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_gradient_with_respect_to_inputs(name, data):
    neighbours = Neighbours(data.edges, data.num_nodes).double()
    operation = moved(OPERATIONS[name](UNITS, UNITS))
    x = torch.randn(data.num_nodes, UNITS, dtype=torch.double, requires_grad=True)
    for nodes in (None, torch.tensor([7, 0, 59, 3, 7])):
        assert gradcheck(lambda values: operation(Hidden(values), neighbours.at(nodes)), x, fast_mode=True)  # noqa: B023


def test_attention_does_not_overflow(data):
    neighbours = Neighbours(data.edges, data.num_nodes)
    operation = OPERATIONS["gat"](UNITS, UNITS)
    operation.source.data.fill_(1e4)
    assert operation(Hidden(torch.randn(data.num_nodes, UNITS)), neighbours.at(None)).isfinite().all()


def test_dropout_of_features_is_that_of_the_dense_ones(data):
    features, _ = dense(data)
    sparse = Features(data.features, data.num_nodes, data.num_features).double()
    weight = torch.eye(NUM_FEATURES, dtype=torch.double)
    one = sparse.dropped(0.6).times(weight)
    assert set(one[features == 0].unique().tolist()) == {0.0}
    assert torch.tensor(sorted(one[features == 1].unique().tolist())).allclose(torch.tensor([0.0, 2.5]))
    # The gradient is that of the same features.
    kept, upstream = sparse.dropped(0.6), torch.randn(data.num_nodes, 4, dtype=torch.double)
    w = torch.randn(NUM_FEATURES, 4, dtype=torch.double, requires_grad=True)
    (kept.times(w) * upstream).sum().backward()
    torch.testing.assert_close(w.grad, kept.times(weight).T @ upstream)
    mean = torch.stack([sparse.dropped(0.6).times(weight) for _ in range(400)]).mean(0)
    assert (mean - features).abs().max() < 5 * (1.5 / 400) ** 0.5  # a kept feature has the variance 0.6 / 0.4


# ---- the network -------------------------------------------------------------------------------------------------


def plain_network(model, architecture, data):
    """The logits of all nodes, dense, in eval mode."""
    features, adjacency = dense(data)
    weights = dict(model.named_parameters())
    values, are_raw = [features], [True]
    for node, (link, name) in enumerate(zip(architecture.links, architecture.operations, strict=True), 1):
        x, raw = values[link], are_raw[link]
        if not raw:
            variance, mean = torch.var_mean(x, 0, correction=0)
            x = (x - mean) / (variance + 1e-5).sqrt()
            x = (x * weights[f"norms.{node}.weight"] + weights[f"norms.{node}.bias"]).clamp(min=0)
        if name != "skip":
            begin = f"operations.{node}_{'features' if raw else 'units'}_{name}."
            own = {key.removeprefix(begin): w for key, w in weights.items() if key.startswith(begin)}
            x = reference(name, own, x, adjacency)
        values.append(x)
        are_raw.append(raw and name == "skip")
    leaves = [node for node in range(1, 5) if node not in architecture.links]
    block = torch.cat([weights[f"after.{leaf}"] for leaf in leaves])
    hidden = torch.cat([values[leaf] for leaf in leaves], 1).clamp(min=0) @ block + weights["after.bias"]
    return hidden @ weights["classifier.weight"].T + weights["classifier.bias"]


ARCHITECTURES = [
    "0000|gat,gcn,gin,cheb",
    "0112|gcn,gat,skip,fc",
    "0122|skip,sage,arma,skip",
    "0123|skip,skip,gcn,graph",
    "0123|arma,cheb,sage,gin",
    "0013|fc,graph,gat,arma",
]


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_the_network_is_the_dense_one(text, data):
    architecture = SPACE.parse(text)
    assert str(architecture) == text
    model = moved(GraphSupernet(data, UNITS, dropout=0.5)).eval()
    nodes = torch.tensor([3, 0, 7, 59])
    expected = plain_network(model, architecture, data)[nodes]
    torch.testing.assert_close(model(nodes, architecture), expected, **CLOSE)
    with torch.no_grad():  # leaves at these nodes alone, as in training
        torch.testing.assert_close(model(nodes, architecture), expected, **CLOSE)
    model.dropout = 0.0
    torch.testing.assert_close(model.train()(nodes, architecture), expected, **CLOSE)


def test_cheb_and_arma_are_the_same_at_the_end(data):
    """With the weights of one in the other, one of them with the other sign; see `GraphSpace.canonical_form`."""
    model = moved(GraphSupernet(data, UNITS, dropout=0.0)).train()
    one, other = SPACE.parse("0112|arma,gcn,cheb,cheb"), SPACE.parse("0112|arma,gcn,cheb,arma")
    assert SPACE.canonical_form(one) == SPACE.canonical_form(other) == str(one)
    cheb, arma = (model.operations[f"4_units_{name}"] for name in ("cheb", "arma"))
    arma.root.data, arma.weight.data, arma.bias.data = cheb.weight.data, -cheb.first_order.data, cheb.bias.data
    torch.testing.assert_close(model(data.train, one), model(data.train, other))


@pytest.mark.parametrize("text", ARCHITECTURES)
def test_an_architecture_uses_its_weights_and_no_others(text, data):
    model = moved(GraphSupernet(data, UNITS, dropout=0.5)).train()
    architecture = SPACE.parse(text)
    F.cross_entropy(model(data.train, architecture), data.labels[data.train]).backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == set(model.used_parameters(architecture))


@pytest.mark.parametrize("text", ARCHITECTURES[:3])
def test_single_gradients_through_the_whole_graph(text, data):
    """`diagonal_fisher` maps over examples, each of which sees the graph: against a loop over them."""
    architecture = SPACE.parse(text)
    bound = BoundArchitecture(moved(GraphSupernet(data, UNITS)).eval(), architecture)
    nodes = data.importance
    found = diagonal_fisher(bound, [(nodes, data.labels[nodes])], F.cross_entropy, parameters=bound.parameters())
    named = dict(bound.named_parameters())
    expected = dict.fromkeys(named, 0.0)
    for node in nodes:
        loss = F.cross_entropy(bound(node[None]), data.labels[node][None])
        for name, gradient in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
            expected[name] = expected[name] + gradient.square() / len(nodes)
    assert found.keys() == named.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name], atol=1e-12, rtol=1e-6, msg=name)


def test_eval_mode_draws_nothing_and_depends_on_no_batch(data):
    model = GraphSupernet(data, UNITS, dropout=0.5).eval()
    architecture = SPACE.parse(ARCHITECTURES[1])
    whole = model(torch.arange(60), architecture)
    torch.testing.assert_close(model(torch.tensor([5]), architecture), whole[[5]])
    assert not torch.equal(model.train()(torch.arange(60), architecture), whole)
    torch.testing.assert_close(model.eval()(torch.arange(60), architecture), whole)


def test_running_statistics_are_those_of_training(data):
    model = GraphSupernet(data, UNITS, dropout=0.0, statistics="running").double()
    architecture = SPACE.parse(ARCHITECTURES[1])
    nodes = torch.arange(60)
    before = model.eval()(nodes, architecture)
    for _ in range(300):  # 0.9 ** 300 of what was there at first is left
        trained = model.train()(nodes, architecture)
    # Running variances are of a sample, one part in sixty more than those that training divides by.
    assert (model.eval()(nodes, architecture) - trained).abs().max() < 0.05 < (before - trained).abs().max()


def test_the_state_has_no_graph_and_memory_is_counted(data):
    model = GraphSupernet(data, UNITS)
    assert model.state_dict().keys() == dict(model.named_parameters()).keys()
    weights = sum(weight.numel() for weight in model.parameters())
    one, two = (GraphSupernet.memory_bytes(data, UNITS, copies=copies) for copies in (1, 2))
    assert two - one == 4 * weights


def test_initial_weights_have_their_bounds(data):
    model = GraphSupernet(data, 40, num_leaves=3)
    for name, weight in model.named_parameters():
        kind, _, rest = name.partition(".")
        if kind == "operations":
            _, node_input, operation, part = rest.replace(".", "_", 1).split("_", 3)
            num_inputs = NUM_FEATURES if node_input == "features" else 40
            glorot = operation in {"gat", "gcn", "cheb", "arma"}
            if part == "bias":
                bound = 0.0 if glorot else num_inputs**-0.5
            elif part in {"source", "target"}:
                bound = (6 / (HEADS + 40 / HEADS)) ** 0.5
            else:
                bound = (6 / (num_inputs + 40)) ** 0.5 if glorot else num_inputs**-0.5
            assert 0.8 * bound <= weight.abs().max() <= bound, name
        if kind == "after":
            assert 0.8 / 120**0.5 <= weight.abs().max() <= 1 / 120**0.5, name


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: GraphSupernet(data, 0), "Expected units of at least 1 and dropout in .* but got 0 and 0.7"),
        (lambda data: GraphSupernet(data, 2, dropout=1.0), "Expected units of at least 1 and dropout in .* and 1.0"),
        (lambda data: GraphSupernet(data, 2)(data.train, next(iter(Nas201Space()))), "Expected an architecture of"),
    ],
)
def test_what_does_not_fit_is_refused(make, message, data):
    with pytest.raises(InputError, match=message):
        make(data)


def test_parameters_are_counted_as_in_the_table():
    """Against the numbers of the benchmark's table for Cora, of which 256 units and 1,433 features are known."""
    rows = {
        "0000|gat,gat,gat,gat": 1_736_711,
        "0000|gat,gat,gat,gcn": 1_736_199,
        "0001|gcn,arma,graph,fc": 2_167_047,
        "0000|gcn,arma,arma,arma": 3_031_815,
        "0001|gat,arma,graph,sage": 2_233_095,
        "0001|gcn,gat,fc,arma": 1_499_399,
    }
    data = small_graph(shape=np.array([60, 1433]), label=np.arange(60) % 7)
    model = GraphSupernet(data, 256)
    assert {text: parameters_of_table(model, SPACE.parse(text)) for text in rows} == rows


def test_all_operations_are_there():
    assert {*OPERATIONS, "skip"} == set(GRAPH_OPERATIONS)
