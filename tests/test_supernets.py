"""Supernets: against slow and obvious versions, gradients, which weights are used, state, bad input."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from forgetless import InputError
from forgetless.spaces.cell import CellArchitecture, CellSpace, cell_loose_ends
from forgetless.spaces.cell.supernet import CellSupernet
from forgetless.spaces.nas201 import NAS201_EDGES, NAS201_OPERATIONS, Nas201Space
from forgetless.spaces.nas201.supernet import Nas201Supernet, live_edges
from forgetless.spaces.recurrent import RecurrentArchitecture, RecurrentSpace
from forgetless.spaces.recurrent import supernet as recurrent
from forgetless.spaces.recurrent.supernet import RecurrentSupernet

V, H, B, T = 11, 5, 3, 7


def drawn(space, count: int, seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [space.sample(generator) for _ in range(count)]


# Chains, stars, a tree, and every activation at a loose end and on the way.
RECURRENT_CELLS = [
    RecurrentSpace(1).parse("relu(0)"),
    RecurrentSpace(4).parse("tanh(0) relu(1) sigmoid(2) identity(3)"),
    RecurrentSpace(4).parse("relu(0) tanh(0) sigmoid(0) tanh(0)"),
    RecurrentSpace(4).parse("identity(0) relu(1) tanh(1) relu(1)"),
    RecurrentSpace(5).parse("sigmoid(0) tanh(1) tanh(1) identity(2) relu(1)"),
    RecurrentSpace(5).parse("tanh(0) relu(0) sigmoid(2) identity(1) tanh(0)"),
    *drawn(RecurrentSpace(8), 3),
]


def language_model(cell: RecurrentArchitecture, **options) -> RecurrentSupernet:
    return RecurrentSupernet(V, H, RecurrentSpace(len(cell.nodes)), **options).double()


def text(batch: int = B, steps: int = T) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(V, (batch, steps + 1))
    return tokens[:, :-1], tokens[:, 1:]


# ---- the recurrent cell: what it computes ------------------------------------------------------------------------


def reference_logits(supernet: RecurrentSupernet, tokens: Tensor, cell: RecurrentArchitecture) -> np.ndarray:
    """The class docstring's formulas, one sequence, one step and one node at a time, in numpy."""
    weights = {name: weight.detach().numpy() for name, weight in supernet.named_parameters()}

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    functions = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0), "identity": lambda x: x, "sigmoid": sigmoid}
    logits = np.empty((*tokens.shape, V))
    for n, sequence in enumerate(tokens.numpy()):
        state = np.zeros(H)
        for t, word in enumerate(sequence):
            mixed = weights["embedding"][word] @ weights["input_weight"] + state @ weights["state_weight"]
            gate = sigmoid(mixed[:H])
            nodes = [gate * np.tanh(mixed[H:]) + (1 - gate) * state]
            for i, (j, activation) in enumerate(cell.nodes, 1):
                mixed = nodes[j] @ weights[f"edges.{j}_{i}"]
                gate = sigmoid(mixed[:H])
                nodes.append(gate * functions[activation](mixed[H:]) + (1 - gate) * nodes[j])
            read = {j for j, _ in cell.nodes}
            loose = [nodes[i] for i in range(len(nodes)) if i not in read]
            state = sum(loose) / len(loose)
            logits[n, t] = weights["embedding"] @ state + weights["decoder_bias"]
    return logits


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("cell", RECURRENT_CELLS, ids=str)
def test_recurrent_logits_and_loss_are_the_formulas(cell, fused):
    supernet = language_model(cell, fused=fused)
    nn.init.uniform_(supernet.decoder_bias)
    tokens, targets = text()
    logits, _ = supernet(tokens, cell)
    np.testing.assert_allclose(logits.detach(), reference_logits(supernet, tokens, cell), atol=1e-12)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(supernet.loss(tokens, targets, cell)[0], expected)
    with torch.no_grad():
        torch.testing.assert_close(supernet(tokens, cell)[0], logits)
        torch.testing.assert_close(supernet.loss(tokens, targets, cell)[0], expected)


class Loss(nn.Module):
    """Everything that a loss depends on, as a function of parameters and state."""

    def __init__(self, supernet: RecurrentSupernet, cell: RecurrentArchitecture) -> None:
        super().__init__()
        self.supernet, self.cell = supernet, cell
        self.text = text()

    def forward(self, state: Tensor) -> Tensor:
        torch.manual_seed(1)  # the same dropout each time
        loss, last = self.supernet.loss(*self.text, self.cell, state)
        return loss + (last * torch.arange(1, 1 + H)).sum()


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("cell", RECURRENT_CELLS[:6], ids=str)
def test_recurrent_gradients_by_finite_differences(cell, rate, monkeypatch):
    monkeypatch.setattr(recurrent, "_BLOCK_ROWS", 3 * B)  # blocks of 3 steps, and one of 1
    monkeypatch.setattr(recurrent, "_CHUNK_NUMBERS_CPU", 4 * V)  # chunks of 4 rows, and one of 1
    dropouts = dict.fromkeys(("dropout_input", "dropout_state", "dropout_output", "weight_drop"), rate)
    model = Loss(language_model(cell, **dropouts), cell)
    used = list(model.supernet.used_parameters(cell))

    def loss(state: Tensor, *weights: Tensor) -> Tensor:
        replaced = {f"supernet.{name}": weight for name, weight in zip(used, weights, strict=True)}
        return torch.func.functional_call(model, replaced, (state,))

    weights = [weight.detach().requires_grad_() for weight in model.supernet.used_parameters(cell).values()]
    state = torch.randn(B, H, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (state, *weights), fast_mode=True)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(0, 2**20),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3]),
)
def test_fused_and_plain_paths_agree(num_nodes, seed, batch, steps, rate):
    (cell,) = drawn(RecurrentSpace(num_nodes), 1, seed)
    dropouts = dict.fromkeys(("dropout_input", "dropout_state", "dropout_output", "weight_drop"), rate)
    supernet = language_model(cell, **dropouts)
    tokens, targets = text(batch, steps)
    results = []
    for fused in (True, False):
        supernet.fused = fused
        supernet.zero_grad()
        torch.manual_seed(seed)
        loss, state = supernet.loss(tokens, targets, cell)
        (loss + state.square().sum()).backward()
        results.append((loss, state, *(weight.grad for weight in supernet.used_parameters(cell).values())))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_word_that_underflows_the_softmax_has_its_exact_loss():
    cell = RECURRENT_CELLS[1]
    supernet = language_model(cell).float()
    with torch.no_grad():
        supernet.decoder_bias[0] = 300.0  # in float32 the other words' probabilities are zero
    tokens, targets = text()
    targets = targets.clone()
    targets[0, :3] = 0
    expected = F.cross_entropy(supernet(tokens, cell)[0].flatten(0, 1), targets.flatten())
    loss, _ = supernet.loss(tokens, targets, cell)
    assert loss > 200
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(bool(weight.grad.isfinite().all()) for weight in supernet.used_parameters(cell).values())


def test_a_backward_pass_can_be_repeated():
    cell = RECURRENT_CELLS[4]
    supernet = language_model(cell)
    loss, _ = supernet.loss(*text(), cell)
    weights = list(supernet.used_parameters(cell).values())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, weights), first)


def test_torch_func_takes_the_plain_path_by_itself():
    cell = RECURRENT_CELLS[4]
    supernet = language_model(cell)
    model = Loss(supernet, cell)
    tokens, targets = text()
    weights = {name: weight.detach() for name, weight in supernet.used_parameters(cell).items()}

    def loss(weights: dict[str, Tensor], tokens: Tensor, targets: Tensor) -> Tensor:
        logits, _ = torch.func.functional_call(supernet, weights, (tokens.unsqueeze(0), cell))
        return F.cross_entropy(logits.squeeze(0), targets)

    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(weights, tokens, targets)
    for n in range(B):
        supernet.zero_grad()
        supernet.loss(tokens[n : n + 1], targets[n : n + 1], cell)[0].backward()
        for name, weight in supernet.used_parameters(cell).items():
            torch.testing.assert_close(found[name][n], weight.grad)
    state = torch.zeros(B, H, dtype=torch.double)
    assert torch.func.grad(model)(state).shape == state.shape


def test_a_carried_state_continues_the_sequence():
    cell = RECURRENT_CELLS[5]
    supernet = language_model(cell)
    tokens, _ = text()
    whole, last = supernet(tokens, cell)
    first, state = supernet(tokens[:, :3], cell)
    second, carried = supernet(tokens[:, 3:], cell, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(carried, last)
    weights = list(supernet.used_parameters(cell).values())
    torch.testing.assert_close(
        torch.autograd.grad(first.sum() + second.sum(), weights), torch.autograd.grad(whole.sum(), weights)
    )


def test_sequences_of_a_batch_do_not_see_each_other():
    cell = RECURRENT_CELLS[-1]
    supernet = language_model(cell, dropout_input=0.5, dropout_state=0.5, dropout_output=0.5, weight_drop=0.5).eval()
    tokens, _ = text()
    whole, state = supernet(tokens, cell)
    for n in range(B):
        alone, alone_state = supernet(tokens[n : n + 1], cell)
        torch.testing.assert_close(alone[0], whole[n])
        torch.testing.assert_close(alone_state[0], state[n])


def test_dropout_is_locked_over_steps_and_differs_between_sequences():
    space = RecurrentSpace(1)
    cell = space.parse("tanh(0)")
    units = 64
    supernet = RecurrentSupernet(units, units, space, dropout_output=0.5)
    with torch.no_grad():  # logits are the outputs themselves
        supernet.embedding.copy_(torch.eye(units))
    tokens = torch.randint(units, (4, 6))
    dropped = supernet(tokens, cell)[0] == 0
    assert bool((dropped == dropped[:, :1]).all())
    assert 0.3 < dropped.double().mean() < 0.7
    assert not torch.equal(dropped[0], dropped[1])
    with torch.no_grad():
        mean = torch.stack([supernet(tokens, cell)[0] for _ in range(400)]).mean(0)
        expected = supernet.eval()(tokens, cell)[0]
    # A kept unit is doubled: the mean's standard deviation is 1/20 of the value.
    assert bool(((mean - expected).abs() <= 6 / 20 * expected.abs() + 1e-7).all())


@pytest.mark.parametrize("option", ["dropout_input", "dropout_state", "dropout_output", "weight_drop"])
def test_each_dropout_acts_in_training_only(option):
    cell = RECURRENT_CELLS[4]
    supernet = language_model(cell, **{option: 0.5})
    tokens, targets = text()
    losses = {supernet.loss(tokens, targets, cell)[0].item() for _ in range(4)}
    assert len(losses) == 4
    plain = language_model(cell)
    plain.load_state_dict(supernet.state_dict())
    torch.testing.assert_close(supernet.eval()(tokens, cell), plain(tokens, cell))


def test_initial_weights_keep_their_gain():
    for units in (50, 200):
        supernet = RecurrentSupernet(V, units, RecurrentSpace(2))
        bound = 0.04 * (1000 / units) ** 0.5
        for name, weight in supernet.named_parameters():
            if name != "decoder_bias":
                assert 0.95 * bound < float(weight.detach().abs().max()) <= bound
        assert not bool(supernet.decoder_bias.any())


# ---- which weights are used, and how many there are --------------------------------------------------------------


def touched(supernet: nn.Module) -> set[str]:
    return {name for name, weight in supernet.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("fused", [True, False])
def test_recurrent_gradients_reach_the_used_parameters_and_no_others(fused):
    space = RecurrentSpace(6)
    supernet = RecurrentSupernet(V, H, space, fused=fused)
    for cell in drawn(space, 8):
        supernet.zero_grad()
        supernet.loss(*text(), cell)[0].backward()
        used = supernet.used_parameters(cell)
        assert touched(supernet) == set(used)
        assert len(used) == 4 + space.num_nodes
        named = dict(supernet.named_parameters())
        assert all(named[name] is weight for name, weight in used.items())


NAS201 = Nas201Space()
DEAD = NAS201.decode((0,) * 6)
NAS201_CELLS = [
    DEAD,
    NAS201.decode((3, 0, 0, 0, 0, 0)),  # an edge that leads nowhere
    NAS201.decode((0, 0, 2, 0, 0, 3)),  # edges that come from nowhere
    NAS201.decode((3, 0, 2, 0, 0, 4)),
    NAS201.decode((1,) * 6),
    NAS201.decode((3,) * 6),
    *drawn(NAS201, 4),
]
CELLS = drawn(CellSpace(3), 4)
IMAGE_SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


def image_supernet(kind: str, shape: tuple[int, int, int] = (1, 8, 8), **options):
    if kind == "nas201":
        return Nas201Supernet(shape, 4, channels=4, cells_per_stage=2, **options)
    return CellSupernet(shape, 4, channels=4, cells_per_stage=1, space=CellSpace(3), **options)


IMAGE_CASES = [("nas201", cell) for cell in NAS201_CELLS] + [("cell", cell) for cell in CELLS]


@pytest.mark.parametrize(("kind", "cell"), IMAGE_CASES)
def test_image_gradients_reach_the_used_parameters_and_no_others(kind, cell):
    supernet = image_supernet(kind)
    F.cross_entropy(supernet(torch.randn(3, 1, 8, 8), cell), torch.tensor([0, 1, 2])).backward()
    used, named = supernet.used_parameters(cell), dict(supernet.named_parameters())
    assert touched(supernet) == set(used)
    assert all(named[name] is weight for name, weight in used.items())


def test_numbers_of_parameters_are_known_before_there_are_any():
    for nodes, units in ((1, 3), (4, 8)):
        space = RecurrentSpace(nodes)
        made = RecurrentSupernet(V, units, space)
        assert RecurrentSupernet.num_parameters(V, units, space) == sum(w.numel() for w in made.parameters())
    for shape, channels, cells in (((1, 8, 8), 5, 1), ((3, 32, 32), 4, 2)):
        made = Nas201Supernet(shape, 7, channels, cells)
        assert Nas201Supernet.num_parameters(shape, 7, channels, cells) == sum(w.numel() for w in made.parameters())
        for space in (CellSpace(1), CellSpace(3, ("sep_conv_5x5", "max_pool_3x3"))):
            made = CellSupernet(shape, 7, channels, cells, space)
            expected = sum(w.numel() for w in made.parameters())
            assert CellSupernet.num_parameters(shape, 7, channels, cells, space) == expected


def test_memory_grows_with_what_it_depends_on_and_holds_the_weights():
    small = RecurrentSupernet.memory_bytes(V, H, RecurrentSpace(2), 1, 1, copies=1)
    assert small > 4 * RecurrentSupernet.num_parameters(V, H, RecurrentSpace(2))
    assert RecurrentSupernet.memory_bytes(V, H, RecurrentSpace(2), 640, 35, copies=1) > small
    # far more than there is, told without allocating it
    assert RecurrentSupernet.memory_bytes(10_000, 100_000, RecurrentSpace(1000), 64, 35) > 2**50
    for kind in (Nas201Supernet, CellSupernet):
        small = kind.memory_bytes((3, 32, 32), 10, batch_size=1)
        assert 16 * kind.num_parameters((3, 32, 32), 10) < small < kind.memory_bytes((3, 32, 32), 10, batch_size=64)


# ---- convolutional cells: what they compute ----------------------------------------------------------------------


def reference_nas201_cell(cell: nn.Module, operations: tuple[str, ...], x: Tensor, weights=(1.0,) * 6) -> Tensor:
    """Every edge computed, `none` as zeros, in the benchmark's order; each times its weight."""
    nodes = [x]
    edges = iter(zip(operations, weights, strict=True))
    for target in (1, 2, 3):
        total = torch.zeros_like(x)
        for source in range(target):
            operation, weight = next(edges)
            if operation.startswith("nor_conv"):
                total = total + weight * cell.operations[f"{source}_{target}_{operation}"](nodes[source])
            elif operation == "avg_pool_3x3":
                total = total + weight * nn.AvgPool2d(3, 1, 1, count_include_pad=False)(nodes[source])
            elif operation == "skip_connect":
                total = total + weight * nodes[source]
        nodes.append(total)
    return nodes[3]


def reference_nas201_network(supernet: Nas201Supernet, images: Tensor, operations: tuple[str, ...], *weights) -> Tensor:
    x = supernet.stem(images)
    for stage, cells in enumerate(supernet.stages):
        if stage > 0:
            x = supernet.reductions[stage - 1](x)
        for module in cells:
            x = reference_nas201_cell(module, operations, x, *weights)
    return supernet.classifier(torch.relu(supernet.head_norm(x)).flatten(2).mean(2))


@pytest.mark.parametrize("cell", NAS201_CELLS, ids=str)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_nas201_logits_are_those_of_the_whole_network(cell, norm):
    """Without weights of edges bit for bit."""
    supernet = image_supernet("nas201", norm=norm)
    images = torch.randn(3, 1, 8, 8)
    expected = reference_nas201_network(supernet, images, cell.operations)
    if cell == DEAD:  # a mean over zeros is taken without a network before it
        torch.testing.assert_close(supernet(images, cell), expected)
    else:
        assert torch.equal(supernet(images, cell), expected)
    assert torch.equal(supernet(images, cell, torch.ones(6)), supernet(images, cell))


@pytest.mark.parametrize("cell", NAS201_CELLS, ids=str)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_edge_weights_multiply_what_edges_give(cell, norm):
    supernet = image_supernet("nas201", norm=norm).double()
    images, weights = torch.randn(3, 1, 8, 8).double(), torch.rand(6).double().requires_grad_()
    found = supernet(images, cell, weights)
    expected = reference_nas201_network(supernet, images, cell.operations, weights)
    torch.testing.assert_close(found, expected)
    if not live_edges(cell):
        return
    direction = torch.randn_like(found)
    gradients = [torch.autograd.grad((each * direction).sum(), weights)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-8, rtol=1e-6)
    dead = [edge not in live_edges(cell) for edge in NAS201_EDGES]
    assert (gradients[0][torch.tensor(dead)] == 0).all()
    assert all(weight.grad is None for weight in supernet.parameters())


def test_live_edges_are_those_on_a_path():
    for cell in drawn(NAS201, 60, seed=1):
        edges = {}
        names = iter(cell.operations)
        for target in (1, 2, 3):
            for source in range(target):
                edges[source, target] = next(names)
        paths = [(0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3)]
        on_a_path = set()
        for path in paths:
            steps = list(itertools.pairwise(path))
            if all(edges[step] != NAS201_OPERATIONS[0] for step in steps):
                on_a_path |= set(steps)
        assert live_edges(cell) == {edge: edges[edge] for edge in edges if edge in on_a_path}


def reference_cell_network(supernet: CellSupernet, images: Tensor, architecture: CellArchitecture) -> Tensor:
    """Blocks by name; the output as one 1×1 convolution of the concatenated loose ends, where sizes agree."""
    x = y = supernet.stem(images)
    for cell in supernet.cells:
        blocks = architecture.reduction if cell.reduction else architecture.normal
        values = [cell.first(x), cell.second(y)]
        for index, block in enumerate(blocks):
            total = 0
            for operand in (0, 1):
                source, name = block.inputs[operand], block.operations[operand]
                stride = 2 if cell.reduction and source < 2 else 1
                key = f"{index}_{operand}_{source}_{name}"
                if name == "avg_pool_3x3":
                    layer = nn.AvgPool2d(3, stride, 1, count_include_pad=False)
                elif name == "max_pool_3x3":
                    layer = nn.MaxPool2d(3, stride, 1)
                elif name == "identity" and stride == 1:
                    layer = nn.Identity()
                else:
                    layer = cell.operations[key]
                total = total + layer(values[source])
            values.append(total)
        loose = cell_loose_ends(blocks)
        total, same_size = 0, [end for end in loose if not (cell.reduction and end < 2)]
        if same_size:
            joined = torch.relu(torch.cat([values[end] for end in same_size], 1))
            weight = torch.cat([cell.ends[end][1].weight for end in same_size], 1)
            total = F.conv2d(joined, weight)
        for end in loose:
            if end not in same_size:
                total = total + cell.ends[end](values[end])
        x, y = y, cell.norm(total)
    return supernet.classifier(torch.relu(y).flatten(2).mean(2))


@pytest.mark.parametrize("cell", CELLS, ids=str)
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_cell_logits_are_those_of_the_whole_network(cell, norm):
    supernet = image_supernet("cell", norm=norm)
    images = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(supernet(images, cell), reference_cell_network(supernet, images, cell))


@pytest.mark.parametrize("shape", [*IMAGE_SHAPES, (2, 7, 5), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["nas201", "cell"])
def test_images_of_any_size_give_logits(kind, shape):
    supernet = image_supernet(kind, shape, norm="group")
    for cell in (NAS201_CELLS if kind == "nas201" else CELLS)[:5]:
        assert supernet(torch.randn(2, *shape), cell).shape == (2, 4)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize(("kind", "cell"), IMAGE_CASES[::3])
def test_images_of_a_batch_do_not_see_each_other_in_eval_mode(kind, cell, norm):
    supernet = image_supernet(kind, norm=norm).double()
    images = torch.randn(5, 1, 8, 8, dtype=torch.double)
    supernet.recalibrate(cell, [images])
    whole = supernet.eval()(images, cell)
    for n in range(5):
        torch.testing.assert_close(supernet(images[n : n + 1], cell)[0], whole[n])


@pytest.mark.parametrize(("kind", "cell"), [IMAGE_CASES[3], IMAGE_CASES[-1]])
def test_recalibrated_statistics_are_the_mean_over_batches(kind, cell):
    supernet = image_supernet(kind).double()
    batches = [torch.randn(6, 1, 8, 8, dtype=torch.double) for _ in range(3)]
    supernet.train()
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    supernet(batches[0], cell)
    torch.testing.assert_close(dict(supernet.named_buffers()), buffers)  # training stores no statistics
    supernet.recalibrate(cell, iter(batches))
    assert supernet.training
    stem = [supernet.stem[0](batch).transpose(0, 1).flatten(1) for batch in batches]
    norm = supernet.stem[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(1) for x in stem]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(1) for x in stem]).mean(0))
    once = supernet.eval()(batches[0], cell)
    supernet.recalibrate(cell, [10 * batch for batch in batches])
    supernet.recalibrate(cell, batches)  # nothing is left of the one before
    assert not supernet.training
    torch.testing.assert_close(supernet(batches[0], cell), once)


def test_eval_mode_refuses_statistics_of_another_architecture_or_of_other_weights():
    supernet = image_supernet("nas201")
    first, second = NAS201_CELLS[4:6]
    images = torch.randn(4, 1, 8, 8)
    with pytest.raises(InputError, match=r"statistics of '\|skip_connect~0.* Call recalibrate"):
        supernet.eval()(images, first)
    supernet.recalibrate(first, [images])
    supernet(images, first)
    with pytest.raises(InputError, match=r"statistics of '\|nor_conv_3x3~0"):
        supernet(images, second)
    supernet.train().eval()
    with pytest.raises(InputError, match="none of it since the last training"):
        supernet(images, first)
    with pytest.raises(InputError, match="at least one batch to recalibrate from"):
        supernet.recalibrate(first, iter(()))


@pytest.mark.parametrize(("kind", "cell"), [IMAGE_CASES[5], IMAGE_CASES[-2]])
def test_an_image_supernet_learns(kind, cell):
    supernet = image_supernet(kind)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    optimizer = torch.optim.SGD(supernet.parameters(), 0.1, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(supernet(images, cell), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_recurrent_supernet_learns():
    cell = RECURRENT_CELLS[5]
    supernet = language_model(cell)
    tokens, targets = text()
    optimizer = torch.optim.Adam(supernet.parameters(), 0.05)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss, _ = supernet.loss(tokens, targets, cell)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# ---- bad input ---------------------------------------------------------------------------------------------------

SPACE = RecurrentSpace(2)
PAIR = SPACE.decode((0, 0, 0, 0))
WORDS = torch.zeros(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RecurrentSupernet(0, 4, SPACE), "num_words to be at least 1, but got 0"),
        (lambda: RecurrentSupernet(4, -1, SPACE), "num_units to be at least 1, but got -1"),
        (lambda: RecurrentSupernet(4, 4, SPACE, weight_drop=1.0), r"weight_drop to be in \[0, 1\), but got 1.0"),
        (lambda: RecurrentSupernet(4, 4, SPACE, dropout_input=float("nan")), "dropout_input .* but got nan"),
        (lambda: Nas201Supernet((8, 8), 4), r"\(channels, height, width\), but got \(8, 8\)"),
        (lambda: Nas201Supernet((1, 8, 8), 4, channels=0), "channels to be at least 1, but got 0"),
        (lambda: CellSupernet((1, 8, 8), 0), "num_classes to be at least 1, but got 0"),
        (lambda: CellSupernet((1, 8, 8), 4, cells_per_stage=0), "cells_per_stage to be at least 1"),
        (lambda: CellSupernet((1, 8, 8), 4, norm="bach"), "Did you mean 'batch'"),
        (lambda: RecurrentSupernet(4, 4, SPACE)(WORDS[0], PAIR), r"\(batch, steps\), integers, but got \(3,\)"),
        (lambda: RecurrentSupernet(4, 4, SPACE)(WORDS.float(), PAIR), "but got .* torch.float32"),
        (lambda: RecurrentSupernet(4, 4, SPACE)(WORDS[:, :0], PAIR), r"but got \(2, 0\)"),
        (lambda: RecurrentSupernet(4, 4, SPACE)(WORDS, PAIR, torch.zeros(3, 4)), r"\(2, 4\), but got \(3, 4\)"),
        (
            lambda: RecurrentSupernet(4, 4, SPACE).loss(WORDS, WORDS[:, 1:], PAIR),
            r"one target per token, shape \(2, 3\)",
        ),
        (lambda: RecurrentSupernet(4, 4, SPACE)(WORDS, DEAD), "Expected an architecture of RecurrentSpace"),
        (lambda: RecurrentSupernet(4, 4, SPACE).used_parameters(DEAD), "Expected an architecture of RecurrentSpace"),
        (lambda: image_supernet("nas201")(torch.zeros(2, 1, 8, 8), PAIR), "Expected an architecture of Nas201Space"),
        (
            lambda: image_supernet("nas201")(torch.zeros(2, 1, 8, 8), DEAD, torch.ones(5)),
            r"shape \(6,\), but got \(5,\)",
        ),
        (
            lambda: image_supernet("nas201")(torch.zeros(2, 3, 8, 8), DEAD),
            r"\(batch, 1, 8, 8\), but got \(2, 3, 8, 8\)",
        ),
        (lambda: image_supernet("cell").used_parameters(DEAD), "Expected an architecture of CellSpace"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
