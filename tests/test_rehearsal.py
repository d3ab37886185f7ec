"""Replay, distillation, and these with plasticity, beside slow references that are written by hand."""

import copy
import dataclasses
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.errors import InputError
from forgetless.experiments.two_model.mlp import Wiring, chain_of_models, shared_parameters
from forgetless.protection import Evidence, make_protection
from forgetless.protection.lwf import distillation_loss
from forgetless.protection.replay import endless_order, remembered
from forgetless.training import train

X = torch.randn(40, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(40) % 3
NEW = [(X[8 * i : 8 * i + 8], Y[8 * i : 8 * i + 8].flip(0)) for i in range(5)] * 3


def models():
    return [m.double() for m in chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=8, num_models=3)]


def evidence_of(model, decisions=(), batches=((X, Y),)):
    return Evidence(
        fisher=lambda: diagonal_fisher(model, batches, F.cross_entropy),
        batches=lambda: iter(batches),
        loss=F.cross_entropy,
        loss_of=lambda: lambda batch: F.cross_entropy(model(batch[0]), batch[1]),
        decisions=decisions,
    )


def trained_under(name, batches=NEW, restored=False, **options):
    """B's training after A was consolidated, in two halves; the models."""
    a, b, _ = chain = models()

    def made():
        recall = lambda decisions: (chain[decisions[0]], evidence_of(chain[decisions[0]], decisions))  # noqa: E731
        return make_protection(name, shared_parameters([a, b]), recall=recall, **options)

    protection, optimizer = made(), SGD(b.parameters(), lr=0.1)
    protection.consolidate(a, evidence_of(a, (0,)))
    for part in (batches[:7], batches[7:]):
        train(part, lambda batch: F.cross_entropy(b(batch[0]), batch[1]), optimizer, protection)
        if restored:
            buffer = io.BytesIO()
            torch.save(protection.state_dict(), buffer)
            protection = made()
            protection.load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
    return a, b


def by_hand(extra, step=lambda: None, batches=NEW):
    """The same loop without the library: `extra(a, number of the batch, batch)` is added to B's loss."""
    a, b, _ = models()
    frozen = copy.deepcopy(a)
    optimizer = SGD(b.parameters(), lr=0.1)
    for number, (x, y) in enumerate(batches):
        for weight in (*a.parameters(), *b.parameters()):
            weight.grad = None
        (F.cross_entropy(b(x), y) + extra(a, frozen, number, (x, y))).backward()
        optimizer.step()
    return a, b


def expect_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_replay_is_the_loss_of_the_earlier_model_on_its_examples_in_turn():
    def extra(a, _frozen, number, _batch):
        orders = [torch.randperm(40, generator=torch.Generator().manual_seed(turn)).tolist() for turn in range(4)]
        turn = [place for order in orders for place in order][8 * number : 8 * number + 8]
        return 0.7 * F.cross_entropy(a(X[turn]), Y[turn])

    expect_equal(trained_under("replay", strength=0.7), by_hand(extra))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_distillation_is_the_divergence_from_the_model_as_it_was(temperature):
    def extra(a, frozen, _number, batch):
        p = torch.softmax(frozen(batch[0]).detach() / temperature, -1)
        q = torch.softmax(a(batch[0]) / temperature, -1)
        return 0.7 * temperature**2 * (p * (p / q).log()).sum() / len(batch[0])

    expect_equal(trained_under("lwf", strength=0.7, temperature=temperature), by_hand(extra))


def test_the_divergence_is_the_closed_form_per_target_in_any_shape():
    """Two classes: p log(p/q) + (1 − p) log((1 − p)/(1 − q)), p and q logistic functions of the logits' difference."""
    generator = torch.Generator().manual_seed(3)
    z, wanted = (torch.randn(2, 5, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    total = 0.0
    for i in range(2):
        for t in range(5):
            p, q = (1 / (1 + math.exp(-float(each[i, t, 0] - each[i, t, 1]) / 1.5)) for each in (wanted, z))
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert distillation_loss(z, wanted, 1.5).item() == pytest.approx(1.5**2 * total / 10, rel=1e-12)
    assert distillation_loss(z, z, 3.0).item() == 0


def test_the_gradient_of_the_divergence_is_the_temperature_times_the_difference_of_probabilities():
    generator = torch.Generator().manual_seed(4)
    z, wanted = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    z.requires_grad_(True)
    (found,) = torch.autograd.grad(distillation_loss(z, wanted, 3.0), z)
    torch.testing.assert_close(found, 3 * (torch.softmax(z / 3, -1) - torch.softmax(wanted / 3, -1)).detach() / 6)
    assert torch.autograd.gradcheck(lambda logits: distillation_loss(logits, wanted, 3.0), z)


@pytest.mark.parametrize(("name", "alone"), [("wpl-replay", "replay"), ("wpl-lwf", "lwf")])
def test_plasticity_is_the_proximal_step_beside_the_rehearsal(name, alone):
    """Under α = 0 it is the rehearsal; else its steps are the rehearsal's with WeightPlasticity(λ α) attached."""
    expect_equal(trained_under(name, strength=2.0, alpha=0.0), trained_under(alone, strength=2.0))
    a, b, _ = models()
    shared = shared_parameters([a, b])
    rehearsal, plasticity = make_protection(alone, shared, strength=2.0), WeightPlasticity(shared, alpha=6.0)
    rehearsal.consolidate(a, evidence_of(a))
    plasticity.consolidate(a, diagonal_fisher(a, [(X, Y)], F.cross_entropy))
    optimizer = SGD(b.parameters(), lr=0.1)
    plasticity.attach(optimizer)
    train(NEW, lambda batch: F.cross_entropy(b(batch[0]), batch[1]), optimizer, rehearsal)
    expect_equal(trained_under(name, strength=2.0, alpha=3.0), (a, b))


@pytest.mark.parametrize("name", ["replay", "lwf", "wpl-replay", "wpl-lwf"])
def test_a_restored_rehearsal_goes_on_where_it_was_in_its_examples(name):
    for one, other in zip(trained_under(name), trained_under(name, restored=True), strict=True):
        assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_the_copy_is_in_eval_mode_and_what_is_drawn_does_not_advance_the_random_state():
    model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    protection = make_protection("lwf", model.parameters(), strength=1.0)
    protection.consolidate(model, evidence_of(model))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loss = protection.extra_loss((X, Y))
    assert torch.equal(before, torch.get_rng_state())
    outputs = model(X)  # with the masks that the loss had drawn
    assert model.training
    wanted = copy.deepcopy(model).eval()(X)
    assert loss.item() == distillation_loss(outputs, wanted, 2.0).item() > 0


@pytest.mark.parametrize("name", ["replay", "lwf"])
def test_the_newest_models_are_rehearsed(name):
    chain = models()
    protection = make_protection(name, shared_parameters(chain), num_models=2)
    for j in (0, 1, 2, 1):
        protection.consolidate(chain[j], evidence_of(chain[j], (j,)))
    assert protection.rehearsed == [(2,), (1,)]
    losses = []
    for j in (2, 1):
        alone = make_protection(name, shared_parameters(chain))
        alone.consolidate(chain[j], evidence_of(chain[j], (j,)))
        losses.append((alone, protection))
    with torch.no_grad():
        for weight in shared_parameters(chain):
            weight.add_(0.1)
    found = protection.extra_loss(NEW[0])
    torch.testing.assert_close(found, torch.stack([alone.extra_loss(NEW[0]) for alone, _ in losses]).mean())
    protection.reset()
    assert protection.extra_loss(NEW[0]) is None


def test_a_term_that_is_not_finite_is_left_out():
    a, b, _ = models()
    protection = make_protection("replay", shared_parameters([a, b]))
    protection.consolidate(a, evidence_of(a, (0,)))
    alone = protection.extra_loss(NEW[0])
    diverged = copy.deepcopy(b)
    nn.init.constant_(diverged.classifier.weight, math.nan)
    protection.consolidate(diverged, evidence_of(diverged, (1,)))
    protection._terms[0]._seen = 0
    assert torch.equal(protection.extra_loss(NEW[0]), alone)


def test_examples_are_whole_batches_of_one_shape():
    chunks = [(torch.full((4, 5), i), torch.full((4, 5), i)) for i in range(3)]
    inputs, targets = remembered([*chunks, (torch.zeros(4, 2), torch.zeros(4, 2))], 1000)
    assert inputs.shape == targets.shape == (12, 5)
    assert remembered(chunks, 21)[0].shape == (8, 5)


def test_each_pass_has_every_example_once_in_an_order_of_its_own():
    places = endless_order(7, 0, 21).tolist()
    passes = [places[:7], places[7:14], places[14:]]
    assert all(sorted(each) == list(range(7)) for each in passes)
    assert len(set(map(tuple, passes))) == 3
    assert [place for start in range(0, 21, 3) for place in endless_order(7, start, 3).tolist()] == places


@pytest.mark.parametrize("name", ["replay", "wpl-replay"])
def test_replay_without_examples_is_refused(name):
    a, b, _ = models()
    evidence = dataclasses.replace(evidence_of(a), batches=lambda: iter(()))
    with pytest.raises(InputError, match="Expected examples of what the earlier model learned, to replay"):
        make_protection(name, shared_parameters([a, b])).consolidate(a, evidence)


@pytest.mark.parametrize("outputs", [torch.zeros(4), torch.zeros(4, 1), (torch.zeros(4, 3),)])
def test_distillation_of_what_are_no_logits_is_refused(outputs):
    with pytest.raises(InputError, match="Expected logits with at least 2 classes in the last dimension, but got"):
        distillation_loss(outputs, outputs)
