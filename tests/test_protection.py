import copy

import pytest
import torch
import torch.nn.functional as F
from torch.optim import SGD, Adam

from forgetless import diagonal_fisher
from forgetless.errors import InputError
from forgetless.protection import PROTECTIONS, make_protection
from forgetless.supernets.mlp import Wiring, chain_of_models, shared_parameters
from forgetless.training import train

X, Y = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3


def fisher_of(model):
    return diagonal_fisher(model, [(X, Y)], F.cross_entropy)


def loss_of(model):
    return lambda batch: F.cross_entropy(model(batch[0]), batch[1])


def trained(name, alpha=1e4, *, optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9), before=None):
    """A trained, consolidated; then B trained under the protection. Returns the models and the shared weights twice."""
    a, b = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    shared = shared_parameters([a, b])
    protection = make_protection(name, shared, alpha)
    train([(X, Y)] * 40, loss_of(a), optimizer(a.parameters()), protection)
    protection.consolidate(a, fisher_of)
    after_a = [p.detach().clone() for p in shared]
    if before is not None:
        protection = before(protection, shared)
    train([(X, Y.flip(0))] * 40, loss_of(b), optimizer(b.parameters()), protection)
    return (a, b), after_a, [p.detach().clone() for p in shared]


def distance(left, right):
    return float(sum((p - q).square().sum() for p, q in zip(left, right, strict=True)) ** 0.5)


@pytest.mark.parametrize("optimizer", [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: Adam(p, lr=0.01)])
def test_each_holds_shared_weights_as_it_says(optimizer):
    moved = {name: distance(*trained(name, optimizer=optimizer)[1:]) for name in PROTECTIONS}
    assert moved["freeze"] == 0
    assert moved["l2"] < 0.1 * moved["none"]
    assert moved["wpl"] < moved["none"]


def test_private_weights_train_under_every_protection():
    for name in PROTECTIONS:
        (_, b), _, _ = trained(name)
        fresh = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)[1]
        assert not torch.equal(b.classifier.weight, fresh.classifier.weight)
        assert all(p.requires_grad for p in b.parameters())


def test_wpl_without_a_consolidated_model_is_plain_training():
    def empty(_protection, shared):
        return make_protection("wpl", shared, 1e4)

    _, _, free = trained("none")
    _, _, unconsolidated = trained("wpl", before=empty)
    _, _, held = trained("wpl")
    assert all(torch.equal(p, q) for p, q in zip(free, unconsolidated, strict=True))
    assert distance(held, free) > 0


@pytest.mark.parametrize("name", PROTECTIONS)
def test_state_dict_round_trip_continues_bit_for_bit(name):
    def restored(protection, shared):
        twin = make_protection(name, shared, protection.alpha)
        twin.load_state_dict(copy.deepcopy(protection.state_dict()))
        return twin

    _, _, plain = trained(name)
    _, _, resumed = trained(name, before=restored)
    assert all(torch.equal(p, q) for p, q in zip(plain, resumed, strict=True))


def test_freeze_gives_gradients_back_after_an_error():
    a, b = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    protection = make_protection("freeze", shared_parameters([a, b]))
    protection.consolidate(a, fisher_of)
    with pytest.raises(RuntimeError, match="stop"), protection.during(SGD(b.parameters(), lr=0.1)):
        raise RuntimeError("stop")
    assert all(p.requires_grad for p in b.parameters())


def test_l2_importance_is_one_however_many_models():
    a, b = chain_of_models(Wiring.CROSSED, 2, num_inputs=12, num_classes=3, width=16)
    shared = shared_parameters([a, b])
    protection = make_protection("l2", shared, 1.0)
    for model in (a, b, a):
        protection.consolidate(model, fisher_of)
    assert all(torch.equal(protection.plasticity.importance(p), torch.ones_like(p)) for p in shared)


def test_unknown_name_gets_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'freeze'"):
        make_protection("freese", [])
