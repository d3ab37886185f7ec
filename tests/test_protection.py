import copy
import dataclasses
import functools

import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam

from forgetless import diagonal_fisher
from forgetless.configuration import is_fitting
from forgetless.errors import InputError
from forgetless.experiments.two_model.mlp import Wiring, chain_of_models, shared_parameters
from forgetless.protection import PROTECTIONS, Evidence, Protection, ProtectionOptions, make_protection
from forgetless.training import train

X, Y = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3


STRENGTHS = {
    "budget": 0.02,
    "coupling": 1e3,
    "lwf": 1.0,
    "mas": 100.0,
    "nsas": 1.0,
    "ogl": 50,
    "replay": 1.0,
    "si": 100.0,
    "slower": 10.0,
    "wise-ft": 0.5,
    "wpl-lwf": 1.0,
    "wpl-replay": 1.0,
    "wpl-tolerance": 1e-6,
}

# Those that go without the layers that models share; tests/test_adapters.py is about the others.
IN_CHAINS = [kind.name for kind in PROTECTIONS.values() if not kind.replaces_layers]


def loss_of(model):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def evidence_of(model, decisions=()):
    return Evidence(
        fisher=lambda: diagonal_fisher(model, [(X, Y)], F.cross_entropy),
        batches=lambda: [(X, Y)],
        loss=F.cross_entropy,
        loss_of=lambda: loss_of(model),
        decisions=decisions,
    )


def made(name, shared, strength, models):
    """A protection; decisions are the places of the models."""

    def recalled(decisions):
        return models[decisions[0]], evidence_of(models[decisions[0]], decisions)

    given = {"strength": strength} if PROTECTIONS[name].has_strength() else {}
    return make_protection(name, shared, recall=recalled, **given)


def trained(name, strength=1e4, *, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9), before=None):
    """A trained, consolidated; then B trained under the protection. Returns the models and the shared weights twice."""
    a, b = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    shared = shared_parameters([a, b])
    protection = made(name, shared, strength, [a, b])
    train([(X, Y)] * 40, loss_of(a), optimizer(a.parameters()), protection)
    protection.consolidate(a, evidence_of(a, (0,)))
    after_a = [p.detach().clone() for p in shared]
    if before is not None:
        protection = before(protection, shared, [a, b])
    train([(X, Y.flip(0))] * 40, loss_of(b), optimizer(b.parameters()), protection)
    return (a, b), after_a, [p.detach().clone() for p in shared]


@functools.cache
def unprotected():
    """The same without protection, made once: every test starts from the same seed."""
    return trained("none")


def distance(left, right):
    return float(sum((p - q).square().sum() for p, q in zip(left, right, strict=True)) ** 0.5)


def test_each_has_a_strength_of_its_own():
    # One option for two scales would leave one of them at a strength that suits only the other.
    classes = [kind.Options for kind in PROTECTIONS.values() if kind.has_strength()]
    assert len(classes) >= 9
    assert len(set(classes)) == len(classes)


@pytest.mark.parametrize("name", PROTECTIONS)
def test_each_says_what_it_is_and_has_complete_options_of_its_own(name):
    kind = PROTECTIONS[name]
    assert issubclass(kind, Protection)
    assert kind.name == name
    assert vars(kind)["label"]
    assert (vars(kind)["__doc__"] or "").strip()
    options = vars(kind)["Options"]
    assert issubclass(options, ProtectionOptions)
    assert options.kind is kind
    assert options.__dataclass_params__.frozen
    fields = dataclasses.fields(options)
    assert all(getattr(options(), field.name) is None for field in fields if is_fitting(field))
    complete = options().fitted()
    assert all(getattr(complete, field.name) is not None for field in fields if is_fitting(field))
    assert complete.fitted() == complete


def test_no_two_have_the_same_label():
    labels = [kind.label for kind in PROTECTIONS.values()]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Adam(p, lr=0.01)])
def test_each_holds_shared_weights_as_it_says(optimizer):
    moved = {name: distance(*trained(name, optimizer=optimizer)[1:]) for name in ("none", "freeze", "l2", "wpl")}
    assert moved["freeze"] == 0
    assert moved["l2"] < 0.1 * moved["none"]
    assert moved["wpl"] < moved["none"]


def test_private_weights_train_under_every_protection():
    for name in IN_CHAINS:
        (_, b), _, _ = trained(name, STRENGTHS.get(name, 1e4))
        fresh = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)[1]
        assert not torch.equal(b.classifier.weight, fresh.classifier.weight)
        assert all(p.requires_grad for p in b.parameters())


@pytest.mark.parametrize("name", [name for name in IN_CHAINS if PROTECTIONS[name].protects])
def test_without_a_consolidated_model_it_is_plain_training(name):
    def empty(_protection, shared, models):
        return made(name, shared, STRENGTHS.get(name, 1e4), models)

    _, _, free = unprotected()
    _, _, unconsolidated = trained(name, STRENGTHS.get(name, 1e4), before=empty)
    _, _, held = trained(name, STRENGTHS.get(name, 1e4))
    assert all(torch.equal(p, q) for p, q in zip(free, unconsolidated, strict=True))
    assert distance(held, free) > 0


@pytest.mark.parametrize(
    "name",
    [kind.name for kind in PROTECTIONS.values() if kind.has_strength() and kind.decays],
)
def test_strength_0_is_plain_training_bit_for_bit(name):
    _, _, free = unprotected()
    _, _, idle = trained(name, 0.0)
    assert all(torch.equal(p, q) for p, q in zip(free, idle, strict=True))


def test_the_archive_has_a_gradient_and_it_is_that_of_the_mean_loss():
    """What the released code of NSAS detaches: without its gradient the weights' gradients are those of B alone."""
    a, b = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    shared = shared_parameters([a, b])
    protection = make_protection("nsas", shared, strength=0.5)
    protection.consolidate(a, evidence_of(a, (0,)))
    found = []
    optimizer = SGD(b.parameters(), lr=0.0)
    train(
        [(X, Y.flip(0))], loss_of(b), optimizer, protection, on_gradients=lambda: found.extend(p.grad for p in shared)
    )
    both = loss_of(b)((X, Y.flip(0))) + 0.5 * loss_of(a)((X, Y.flip(0)))
    alone = torch.autograd.grad(loss_of(b)((X, Y.flip(0))), shared)
    for gradient, wanted, without in zip(found, torch.autograd.grad(both, shared), alone, strict=True):
        torch.testing.assert_close(gradient, wanted)
        assert not torch.allclose(gradient, without)
    assert all(p.grad is None for p in a.parameters() if id(p) not in {id(q) for q in shared})


def test_a_projected_step_leaves_the_earlier_predictions_to_first_order():
    """Under plain SGD the step is orthogonal to the gradient of every kept example's true logit."""
    a, b = (model.double() for model in chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16))
    shared = shared_parameters([a, b])
    protection = make_protection("ogl", shared, strength=8.0)
    x, y = X[:8].double(), Y[:8]
    protection.consolidate(a, dataclasses.replace(evidence_of(a), batches=lambda: [(x, y)]))
    directions = [torch.autograd.grad(a(x[n : n + 1])[0, y[n]], shared) for n in range(8)]
    before = [p.detach().clone() for p in shared]
    train([(X.double(), Y.flip(0))], loss_of(b), SGD(b.parameters(), lr=0.1), protection)
    step = [p.detach() - q for p, q in zip(shared, before, strict=True)]
    length = sum(float(part.square().sum()) for part in step) ** 0.5
    assert length > 1e-5
    for direction in directions:
        size = sum(float(part.square().sum()) for part in direction) ** 0.5
        along = sum(float((g * s).sum()) for g, s in zip(direction, step, strict=True))
        assert abs(along) < 1e-9 * size * length


def test_elastic_weights_are_the_sum_of_a_quadratic_per_model():
    """Penalty of two earlier models by the explicit list, at weights away from both anchors."""
    a, b = (model.double() for model in chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16))
    shared = shared_parameters([a, b])
    protection = make_protection("ewc", shared, strength=3.0)
    generator = torch.Generator().manual_seed(1)
    quadratics = []
    for model in (a, b):
        with torch.no_grad():
            for p in shared:
                p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        fisher = {name: torch.rand(p.shape, generator=generator, dtype=p.dtype) for name, p in model.named_parameters()}
        protection.consolidate(model, dataclasses.replace(evidence_of(model), fisher=lambda fisher=fisher: fisher))
        by_id = {id(p): fisher[name] for name, p in model.named_parameters()}
        quadratics += [(p, p.detach().clone(), by_id[id(p)]) for p in shared if id(p) in by_id]

    def gradient_of(value):
        return [g.clone() for g in torch.autograd.grad(value, shared)]

    with torch.no_grad():
        for p in shared:
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    explicit = sum(1.5 * (f * (p - anchor).square()).sum() for p, anchor, f in quadratics)
    for found, wanted in zip(gradient_of(protection.plasticity.penalty()), gradient_of(explicit), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_path_integral_of_a_quadratic_is_what_its_loss_fell_by():
    """L = ½ Σ c θ², plain SGD with small steps: Σ ω is L(start) − L(end), to first order in the step."""
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    curvature = torch.tensor([1.0, 0.3, 0.0], dtype=torch.float64)
    model = torch.nn.Module()
    model.theta = theta
    protection = make_protection("si", [theta], strength=1.0)
    start = theta.detach().clone()

    def loss(_):
        return 0.5 * (curvature * theta.square()).sum()

    before = loss(None).item()
    train([None] * 2000, loss, SGD([theta], lr=1e-3), protection)
    fell = 0.5 * curvature * (start.square() - theta.detach().square())
    protection.consolidate(model, evidence_of(model))
    wanted = fell / ((theta.detach() - start).square() + protection.options.xi)
    torch.testing.assert_close(protection.plasticity.importance(theta), wanted, rtol=2e-3, atol=1e-9)
    assert float(fell.sum()) == pytest.approx(before - loss(None).item())


def test_path_integrals_need_a_watched_training():
    a, _ = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    protection = make_protection("si", list(a.parameters()))
    with pytest.raises(InputError, match="Expected si to have watched the model's training"):
        protection.consolidate(a, evidence_of(a))


def test_outputs_decide_importance_without_labels():
    """The mean over examples of |d ‖f(x)‖² / d θ|, one example after the other."""
    a, _ = (model.double() for model in chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16))
    shared = list(a.parameters())
    protection = make_protection("mas", shared)
    x = X[:10].double()
    protection.consolidate(a, dataclasses.replace(evidence_of(a), batches=lambda: [(x[:7], Y[:7]), (x[7:], Y[7:10])]))
    each = [torch.autograd.grad(a(x[n : n + 1]).square().sum(), shared) for n in range(10)]
    for i, p in enumerate(shared):
        wanted = torch.stack([gradients[i].abs() for gradients in each]).mean(0)
        torch.testing.assert_close(protection.plasticity.importance(p), wanted)


@pytest.mark.parametrize("name", IN_CHAINS)
def test_state_dict_round_trip_continues_bit_for_bit(name):
    def restored(protection, shared, models):
        twin = made(name, shared, protection.strength, models)
        twin.load_state_dict(copy.deepcopy(protection.state_dict()))
        return twin

    _, _, plain = trained(name, STRENGTHS.get(name, 1e4))
    _, _, resumed = trained(name, STRENGTHS.get(name, 1e4), before=restored)
    assert all(torch.equal(p, q) for p, q in zip(plain, resumed, strict=True))


def test_freeze_gives_gradients_back_after_an_error():
    a, b = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    protection = make_protection("freeze", shared_parameters([a, b]))
    protection.consolidate(a, evidence_of(a))
    with pytest.raises(RuntimeError, match="stop"), protection.during(SGD(b.parameters(), lr=0.1)):
        raise RuntimeError("stop")
    assert all(p.requires_grad for p in b.parameters())


def test_l2_importance_is_one_however_many_models():
    a, b = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    shared = shared_parameters([a, b])
    protection = make_protection("l2", shared, strength=1.0)
    for model in (a, b, a):
        protection.consolidate(model, evidence_of(model))
    assert all(torch.equal(protection.plasticity.importance(p), torch.ones_like(p)) for p in shared)


@pytest.mark.parametrize("name", PROTECTIONS)
def test_the_strength_that_is_not_given_is_the_protection_s_own(name):
    """Not one for all: as a tolerance, the 10⁵ of weight plasticity would protect nothing."""
    kind = PROTECTIONS[name]
    assert make_protection(name, []).strength == kind([]).strength == (kind.Options().fitted().strength_or_none or 0.0)
    if kind.has_strength():
        low, high = {"osf": (0.25, 0.75), "wise-ft": (0.2, 0.3)}.get(name, (2.0, 3.0))
        assert make_protection(name, [], strength=low).strength == low
        assert make_protection(kind.Options(strength=high), []).strength == high
        assert make_protection(kind.Options(strength=high), [], strength=low).strength == low


def test_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'freeze'"):
        make_protection("freese", [])
