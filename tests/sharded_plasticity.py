"""What two processes compute of sharded models, and one process of whole ones: the protection of weights."""

import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.plasticity import DistributedState, expected_increase, proximal_step, quadratic_penalty, tolerance_step
from sharded_importance import FEATURES, examples, sharded, whole

STEPS, PER_PROCESS = 4, 5


def trunk_and_heads(rank: int | None) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Models A and B on one trunk, whose last layer has one row, which one of two processes lacks."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1), nn.Tanh())
    heads = nn.Linear(1, 3).double(), nn.Linear(1, 4).double()
    trunk = sharded(trunk.double(), rank)
    a, b = (nn.Sequential(trunk, sharded(head, rank)) for head in heads)
    return trunk, a, b


def batches(seed: int, rank: int | None) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    part = slice(None) if rank is None else slice(rank * PER_PROCESS, (rank + 1) * PER_PROCESS)
    result = []
    for _ in range(STEPS):
        x = torch.randn(2 * PER_PROCESS, FEATURES, generator=generator, dtype=torch.float64)
        result.append((x[part], x[part, :3].argmax(1)))
    return result


def train(model, optimizer, seed, rank, penalty=None, after=None):
    for x, y in batches(seed, rank):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        if after is not None:
            after()


def importance_of(model, rank):
    return diagonal_fisher(model, examples(rank), F.cross_entropy)


def state_of(held: WeightPlasticity, *models: nn.Module) -> dict[str, Tensor]:
    state, found = held.state_dict(), {}
    for kind in ("anchors", "importances", "used"):
        found |= {f"{kind} {i}": value for i, value in enumerate(state[kind]) if value is not None}
    found |= {name: torch.tensor(state[name]) for name in ("alpha", "budget") if state[name] is not None}
    for k, model in enumerate(models):
        found |= {f"{k} {name}": value for name, value in model.named_parameters()}
    return whole(found)


def a_then_b(rank, make, options, *, in_loss=False, every=None, protected=True):
    """Train A, hold it, train B."""
    trunk, a, b = trunk_and_heads(rank)
    held = WeightPlasticity(trunk, **options)
    train(a, SGD(a.parameters(), lr=0.1), 1, rank)
    held.consolidate(a, importance_of(a, rank))
    optimizer = make(b.parameters())
    if in_loss:
        train(b, optimizer, 2, rank, held.penalty)
    else:
        if protected:
            held.attach(optimizer)
        train(b, optimizer, 2, rank, after=None if every is None else lambda: every(held, optimizer))
    return held, a, b


def laid_out(tensor: Tensor, rank: int | None, *placements) -> Tensor:
    """A tensor that every process has, in parts."""
    if rank is None:
        return tensor
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, init_device_mesh("cpu", (2,)), placements)


def shards(rank: int | None) -> list[nn.Parameter]:
    """Weights in parts of every kind: of rows, also fewer than processes, of columns, copies, and a plain one."""
    from torch.distributed.tensor import Replicate, Shard

    torch.manual_seed(0)
    shapes = [((5, 4), Shard(0)), ((1, 3), Shard(0)), ((3, 5), Shard(1)), ((4,), Replicate()), ((2, 3), None)]
    values = [(torch.randn(shape, dtype=torch.float64), placement) for shape, placement in shapes]
    return [nn.Parameter(v if placement is None else laid_out(v, rank, placement)) for v, placement in values]


def hybrid_shards(rank: int | None) -> list[nn.Parameter]:
    """Weights on meshes of two dimensions: copies along the first, parts along the second."""
    values = [torch.randn(3, 2, dtype=torch.float64) for _ in range(2)]
    if rank is None:
        return [nn.Parameter(value) for value in values]
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    meshes = [init_device_mesh("cpu", shape) for shape in ((1, 2), (2, 1))]
    placements = [Replicate(), Shard(0)]
    pairs = zip(values, meshes, strict=True)
    return [nn.Parameter(distribute_tensor(value, mesh, placements)) for value, mesh in pairs]


def like(weight: Tensor, seed: int) -> Tensor:
    """Random numbers for a weight, the same on every process, laid out as it is."""
    value = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    from torch.distributed.tensor import distribute_tensor

    mesh = getattr(weight, "device_mesh", None)
    return value if mesh is None else distribute_tensor(value, mesh, weight.placements)


def holder(weights: list[nn.Parameter]) -> nn.Module:
    model = nn.Module()
    for i, weight in enumerate(weights):
        model.register_parameter(f"w{i}", weight)
    return model


# ---- checks: what they return does not depend on the number of processes ---------------------------------------------

MAKERS = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: Adam(p, lr=0.01),
    "adamw loops": lambda p: AdamW(p, lr=0.01, foreach=False),
    "adamw fused": lambda p: AdamW(p, lr=0.01, fused=True),
    "amsgrad": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
}


def optimizers(rank):
    """Three steps of twelve optimizers, at a given strength and under a tolerance."""
    found = {}
    for name, make in MAKERS.items():
        for options in ({"alpha": 30.0}, {"tolerance": 1e-4}):
            weights = shards(rank)[: -1 if "fused" in name else None]  # refuses sharded and whole ones together
            held = WeightPlasticity(weights, **options)
            held.consolidate(holder(weights), {f"w{i}": like(w, i).square() for i, w in enumerate(weights)})
            optimizer = make(weights)
            held.attach(optimizer)
            for step in range(3):
                for i, weight in enumerate(weights):
                    weight.grad = like(weight, 10 * step + i)
                optimizer.step()
            found |= {f"{name} {[*options]} {key}": v for key, v in state_of(held, holder(weights)).items()}
    return found


def functions(rank):
    """The pure functions, on weights in parts of every kind: value, gradient, both steps."""
    weights = [*shards(rank), *hybrid_shards(rank)]
    anchors, importances = [like(w, 1) for w in weights], [like(w, 2).square() for w in weights]
    found = {"increase": torch.tensor(expected_increase(weights, anchors, importances))}
    penalty = quadratic_penalty(weights, anchors, importances, alpha=3.0)
    found["penalty"] = penalty.detach()
    penalty.backward()
    found |= {f"gradient {i}": w.grad for i, w in enumerate(weights)}
    proximal_step(
        weights, anchors, importances, alpha=3.0, learning_rate=0.1, metric=[like(w, 3).exp() for w in weights]
    )
    found |= {f"proximal {i}": w.detach().clone() for i, w in enumerate(weights)}
    metrics = [like(w, 4).exp() for w in weights]
    alpha = tolerance_step(weights, anchors, importances, metrics, tolerance=0.01, share=0.999)
    found |= {"alpha": torch.tensor(alpha)} | {f"within {i}": w.detach() for i, w in enumerate(weights)}
    found["within"] = torch.tensor(expected_increase(weights, anchors, importances))
    return whole(found)


def many_small(rank):
    """Small weights, some of them in parts, and so many whole ones that they would be packed."""
    from torch.distributed.tensor import Shard

    values = torch.arange(280, dtype=torch.float64).sin().view(140, 2)
    weights = [nn.Parameter(v.clone() if i % 2 else laid_out(v, rank, Shard(0))) for i, v in enumerate(values)]
    held = WeightPlasticity(weights, tolerance=1e-3)
    held.consolidate(holder(weights), {f"w{i}": like(w, i).square() for i, w in enumerate(weights)})
    optimizer = SGD(weights, lr=0.1)
    held.attach(optimizer)
    for step in range(2):
        for i, weight in enumerate(weights):
            weight.grad = like(weight, 10 * step + i)
        optimizer.step()
    return state_of(held, holder(weights))


def messages(rank):
    """A step at a given strength tells nothing to other processes, one under a tolerance a number or so."""
    if rank is None:
        return {}
    from torch.distributed.tensor.debug import CommDebugMode

    for options, least, most in (({"alpha": 30.0}, 0, 0), ({"tolerance": 1e-4}, 1, 4)):
        weights = shards(rank)
        held = WeightPlasticity(weights, **options)
        held.consolidate(holder(weights), {f"w{i}": like(w, i).square() for i, w in enumerate(weights)})
        optimizer = Adam(weights, lr=0.01)
        held.attach(optimizer)
        for _ in range(3):
            for i, weight in enumerate(weights):
                weight.grad = like(weight, i)
            with CommDebugMode() as told:
                optimizer.step()
        assert least <= told.get_total_counts() <= most, told.get_comm_counts()
    return {}


def strength(rank):
    """Train A, hold it, train B under Adam at a given strength, with damping."""
    return state_of(*a_then_b(rank, lambda p: Adam(p, lr=0.01), {"alpha": 30.0, "damping": 0.1}))


def in_the_loss(rank):
    """The same with the penalty in the loss."""
    held, a, b = a_then_b(rank, lambda p: SGD(p, lr=0.1), {"alpha": 3.0}, in_loss=True)
    return state_of(held, a, b) | {"penalty": held.penalty().detach()}


def tolerance(rank):
    """Under a tolerance that is calibrated: processes are told different increases, of which the largest counts."""
    told, seen = iter([1.0, 0.0, 3e-4, 1e-6]), {}

    def calibrate(held, optimizer):
        increase = next(told)
        held.calibrate(increase if rank != 1 else increase / 2, optimizer)
        seen[f"form {len(seen)}"] = torch.tensor(held.expected_increase())

    made = a_then_b(rank, lambda p: Adam(p, lr=0.01), {"tolerance": 1e-4}, every=calibrate)
    assert max(seen.values()) <= 1.001e-4
    return state_of(*made) | seen


def two_optimizers(rank):
    """Two optimizers under one tolerance."""
    trunk, a, b = trunk_and_heads(rank)
    held = WeightPlasticity(trunk, tolerance=1e-4)
    held.consolidate(a, importance_of(a, rank))
    first, second = SGD(trunk[0].parameters(), lr=0.1), SGD([*trunk[2].parameters(), *trunk[4].parameters()], lr=0.1)
    held.attach(first).attach(second)
    for x, y in batches(2, rank):
        F.cross_entropy(b(x), y).backward()
        first.step()
        second.step()
        b.zero_grad()
    return state_of(held, b)


def rules(rank):
    """Every rule, over models of which one leaves rows and columns out, and one says by masks what it uses."""
    found = {}
    for rule in ("replace", "sum", "joint", "ema", "merge"):
        weights = shards(rank)
        held, model = WeightPlasticity(weights, alpha=1.0, rule=rule, damping=0.1), holder(weights)
        for step in range(4):
            value = {f"w{i}": like(w, i + step).square() for i, w in enumerate(weights)}
            where = None
            if step == 1:
                unused = torch.ones(5, 4, dtype=torch.float64)
                unused[[0, 4]], unused[:, 1] = 0, 0
                value["w0"] = whole({"": value["w0"]})[""] * unused
                value["w2"] = whole({"": value["w2"]})[""] * unused[1, [0, 1, 2, 3, 3]]
                value["w1"] = whole({"": value["w1"]})[""] * unused[1, :3]
            if step == 2:
                where = {"w0": torch.tensor([True, False, False, True]), "w3": torch.tensor([True, True, False, False])}
            held.consolidate(model, value, where)
            with torch.no_grad():
                for i, weight in enumerate(weights):
                    weight.add_(like(weight, 100 * step + i), alpha=0.1)
        found |= {f"{rule} {key}": value for key, value in state_of(held, model).items()}
    return found


def moved(rank):
    """A weight that something else moves is told of, on every process."""
    weights = shards(rank)
    held = WeightPlasticity(weights, alpha=1.0)
    held.consolidate(holder(weights), {"w0": like(weights[0], 0).square()})
    with torch.no_grad():
        weights[0].add_(like(weights[0], 1) * laid_out(torch.eye(5, 4, dtype=torch.float64)[:, :4], rank, *_rows()))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        held.warn_if_moved()
    (only,) = told
    return {"share": torch.tensor(float(str(only.message).split("moved by ")[1].split()[0]))}


def _rows():
    from torch.distributed.tensor import Shard

    return [Shard(0)]


def resumed(rank):
    """New objects go on from a distributed checkpoint, after work that is lost: plain, every third step, budget."""
    found = {}
    kinds = {"alpha": {"alpha": 30.0}, "every": {"alpha": 30.0, "every": 3}, "tolerance": {"tolerance": 1e-4}}
    for name, options in kinds.items():
        held, a, b = a_then_b(rank, lambda p: Adam(p, lr=0.01), options)
        # `a_then_b` drops its optimizer: another one goes on.
        held.detach()
        optimizer = Adam(b.parameters(), lr=0.01)
        held.attach(optimizer)
        train(b, optimizer, 3, rank)
        if rank is not None:
            held, a, b, optimizer = reloaded(held, a, b, optimizer, rank, options)
        train(b, optimizer, 4, rank)
        found |= {f"{name} {key}": value for key, value in state_of(held, a, b).items()}
    return found


def reloaded(held, a, b, optimizer, rank, options):
    """All of it through a distributed checkpoint, after work that is lost, into new objects."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    folder = [tempfile.mkdtemp() if rank == 0 else ""]
    dist.broadcast_object_list(folder)
    models = nn.ModuleList([a, b])
    model_state, optimizer_state = get_state_dict(models, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "plasticity": DistributedState(held)}
    dcp.save(state, checkpoint_id=folder[0])
    train(b, optimizer, 5, rank)  # is lost

    trunk, a, b = trunk_and_heads(rank)
    held, optimizer = WeightPlasticity(trunk, **options), Adam(b.parameters(), lr=0.01)
    models = nn.ModuleList([a, b])
    model_state, optimizer_state = get_state_dict(models, optimizer)
    state = {"model": model_state, "optimizer": optimizer_state, "plasticity": DistributedState(held)}
    dcp.load(state, checkpoint_id=folder[0])
    set_state_dict(models, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return held.attach(optimizer), a, b, optimizer


def states_between_layouts(rank):
    """A whole state in sharded weights and the other way round; an importance of the whole model."""
    trunk, a, _ = trunk_and_heads(None)
    whole_importance = importance_of(a, None)
    before = WeightPlasticity(trunk, alpha=1.0, damping=0.1)
    before.consolidate(a, whole_importance)
    trunk, a, _ = trunk_and_heads(rank)
    held, again = (WeightPlasticity(trunk, alpha=1.0, damping=0.1) for _ in range(2))
    held.consolidate(a, whole_importance)
    again.load_state_dict(before.state_dict())
    back = WeightPlasticity(trunk_and_heads(None)[0], alpha=1.0)
    back.load_state_dict(held.state_dict())
    for value in again.state_dict()["anchors"]:
        if rank is not None:
            assert value.to_local().untyped_storage().nbytes() == value.to_local().numel() * 8
    return {f"{k} {name}": value for k, one in enumerate((held, again, back)) for name, value in state_of(one).items()}


CHECKS = [
    functions,
    optimizers,
    many_small,
    messages,
    strength,
    in_the_loss,
    tolerance,
    two_optimizers,
    rules,
    moved,
    resumed,
    states_between_layouts,
]
