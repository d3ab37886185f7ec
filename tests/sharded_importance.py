"""What two processes compute of sharded models, and one process of whole ones: importances."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetless import diagonal_fisher
from forgetless.importance import TrainingFisher, mean_absolute_gradient

FEATURES, CLASSES = 6, 3
# Of the examples 0 to 10, by process; None has them all. The parts differ in size.
PARTS = {None: slice(0, 11), 0: slice(0, 7), 1: slice(7, 11)}
Batches = list[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """An embedding that is tied to the output, normalisation, and a weight of one row, which one process lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.gate = nn.Linear(4, 1)
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens).mean(1))
        return self.out(x * self.gate(x).sigmoid())


class Last(nn.Module):
    """A recurrent net, which has no fast way, and holds its weights in a list of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unflatten(1, (2, 3)))[0][:, -1])


class OneByOne(nn.Module):
    """Only a loop can follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale * (1 + x[0, 0].item() ** 2)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES)).double()


def examples(rank: int | None, seed: int = 0) -> Batches:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(11, FEATURES, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (11,), generator=generator)
    return list(zip(x[PARTS[rank]].split(5), y[PARTS[rank]].split(5), strict=True))


def tokens(rank: int | None) -> Batches:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(5, (11, 3), generator=generator), torch.randint(5, (11,), generator=generator)
    return [(x[PARTS[rank]], y[PARTS[rank]])]


def sharded(model: nn.Module, rank: int | None, **options) -> nn.Module:
    """Every layer with weights by itself, then the rest; the model as it is in one process."""
    if rank is None:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    options = {"mesh": init_device_mesh("cpu", (2,))} | options
    for module in model.children():
        if any(True for _ in module.parameters()) and not isinstance(model, Block):
            fully_shard(module, **options)
    return fully_shard(model, **options)


def whole(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: (v.full_tensor() if hasattr(v, "full_tensor") else v).detach() for k, v in values.items()}


# ---- checks: what they return does not depend on the number of processes ---------------------------------------------


def kinds(rank):
    """Empirical and exact Fisher, processes with 7 and 4 examples."""
    model = sharded(mlp(), rank)
    found = {}
    for kind in ("empirical", "exact"):
        for name, value in whole(diagonal_fisher(model, examples(rank), F.cross_entropy, kind)).items():
            found[f"{kind} {name}"] = value
    return found


def placements(rank):
    """Importances are laid out as the weights."""
    model = sharded(mlp(), rank)
    importance = diagonal_fisher(model, examples(rank), F.cross_entropy)
    if rank is not None:
        for name, weight in model.named_parameters():
            assert importance[name].placements == weight.placements
            assert importance[name].to_local().shape == weight.to_local().shape
    return {}


def absolute(rank):
    """Mean absolute gradient."""
    return whole(mean_absolute_gradient(sharded(mlp(), rank), examples(rank), lambda o, _: o.square().sum()))


def per_target(rank):
    """The Fisher per target."""
    loss = lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none")  # noqa: E731
    return whole(diagonal_fisher(sharded(mlp(), rank), examples(rank), loss, per="target"))


def only_one_has_examples(rank):
    """The Fisher where one process has no examples."""
    batches = [] if rank == 1 else examples(None)
    return whole(diagonal_fisher(sharded(mlp(), rank), batches, F.cross_entropy))


def tied_and_small(rank):
    """The Fisher of tied weights, and of weights of fewer rows than processes."""
    torch.manual_seed(0)
    return whole(diagonal_fisher(sharded(Block().double(), rank), tokens(rank), F.cross_entropy))


def recurrent(rank):
    """The Fisher of an LSTM, by vmap."""
    torch.manual_seed(0)
    return whole(diagonal_fisher(sharded(Last().double(), rank), examples(rank), F.cross_entropy))


def one_by_one(rank):
    """The Fisher of a model that goes example by example."""
    torch.manual_seed(0)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return whole(diagonal_fisher(sharded(OneByOne().double(), rank), examples(rank), F.cross_entropy))


def some_that_are_frozen(rank):
    """The Fisher of named and of frozen weights."""
    model = mlp()
    model[0].requires_grad_(False)
    model = sharded(model, rank)
    found = whole(diagonal_fisher(model, examples(rank), F.cross_entropy, parameters=["0.weight", model[4].bias]))
    assert list(found) == ["0.weight", "4.bias"]
    assert not model[0].weight.requires_grad
    return found


def in_between(rank):
    """The Fisher after an evaluation, which leaves whole weights in the root; gradients stay, and those after it."""
    found = {}
    for stays_whole in (True, False):
        model = sharded(mlp(), rank, **({} if rank is None else {"reshard_after_forward": not stays_whole}))
        x, y = examples(None)[0]
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            model(x)
        found |= whole(diagonal_fisher(model, examples(rank), F.cross_entropy))
        F.cross_entropy(model(x), y).backward()
        found |= whole({f"{stays_whole} {name} grad": p.grad for name, p in model.named_parameters()})
    return found


def mixed_precision(rank):
    """The Fisher under mixed precision, in the weights' own."""
    options = {}
    if rank is not None:
        from torch.distributed.fsdp import MixedPrecisionPolicy

        options["mp_policy"] = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    return whole(diagonal_fisher(sharded(mlp(), rank, **options), examples(rank), F.cross_entropy))


def other_layouts(rank):
    """The Fisher under meshes of two dimensions, and of weights sharded by columns."""
    from torch.distributed.tensor import Shard

    found = {}
    for i, shape in enumerate([(1, 2), (2, 1)]):
        options = {}
        if rank is not None:
            from torch.distributed.device_mesh import init_device_mesh

            options["mesh"] = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        model = sharded(mlp(), rank, **options)
        for name, value in whole(diagonal_fisher(model, examples(rank), F.cross_entropy)).items():
            found[f"hybrid {i} {name}"] = value
    options = {} if rank is None else {"shard_placement_fn": lambda p: Shard(p.ndim - 1)}
    torch.manual_seed(0)
    even = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh(), nn.Linear(4, 4)).double()
    model = sharded(even, rank, **options)
    return found | whole(diagonal_fisher(model, examples(rank), F.cross_entropy))


def weights_that_are_left_whole(rank):
    """The Fisher where some weights are not sharded."""
    model = mlp()
    options = {} if rank is None else {"ignored_params": {model[0].bias}}
    return whole(diagonal_fisher(sharded(model, rank, **options), examples(rank), F.cross_entropy))


def one_that_fails(rank):
    """A process that fails ends all, instead of letting them wait."""
    if rank is not None:
        model, batches = sharded(mlp(), rank), examples(rank)
        before = [weight.full_tensor() for weight in model.parameters()]
        expected = r"Expected every process to compute its part" if rank == 0 else r"mat1 and mat2 shapes"
        with pytest.raises(Exception, match=expected):
            diagonal_fisher(model, batches if rank == 0 else [(x[:, 1:], y) for x, y in batches], F.cross_entropy)
        assert all(torch.equal(a, b.full_tensor()) for a, b in zip(before, model.parameters(), strict=True))
    return {}


def registered_methods(rank):
    """The Fisher of a model that calls its layers by a method registered with FSDP."""

    class Trunk(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp()

        def encode(self, x):
            return self.layers(x)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk = Trunk()

        def forward(self, x):
            return self.trunk.encode(x)

    model = Model()
    if rank is not None:
        from torch.distributed.fsdp import register_fsdp_forward_method

        sharded(model.trunk, rank)
        register_fsdp_forward_method(model.trunk, "encode")
    x, y = examples(None)[0]
    found = whole(diagonal_fisher(model, examples(rank), F.cross_entropy))
    F.cross_entropy(model(x), y).backward()  # still gathers its weights
    return found | whole({f"{name} grad": p.grad for name, p in model.named_parameters()})


def from_training(rank):
    """The Fisher from training's own gradients."""
    model = sharded(mlp(), rank)
    estimate = TrainingFisher(dict(model.named_parameters()))
    for seed in range(3):
        model.zero_grad()
        x, y = (torch.cat(parts) for parts in zip(*examples(None, seed), strict=True))
        half = slice(0, 10) if rank is None else slice(rank * 5, rank * 5 + 5)
        F.cross_entropy(model(x[half]), y[half]).backward()
        estimate.add()
    return whole(estimate.fisher(batch_size=10))


CHECKS = [
    kinds,
    placements,
    absolute,
    per_target,
    only_one_has_examples,
    tied_and_small,
    recurrent,
    one_by_one,
    some_that_are_frozen,
    in_between,
    mixed_precision,
    other_layouts,
    weights_that_are_left_whole,
    one_that_fails,
    registered_methods,
    from_training,
]
