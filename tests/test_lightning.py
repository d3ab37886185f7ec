"""The callback in Lightning's own trainer, against loops by hand, on real digits."""

import copy
import importlib
import logging
import pkgutil
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from forgetless import InputError, WeightPlasticity, diagonal_fisher
from forgetless.data.images import load_images

pl = pytest.importorskip("lightning.pytorch", reason="needs the extra `lightning`")

from forgetless.integrations.lightning import PlasticityCallback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # Lightning 2.6 under PyTorch 2.13
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:GPU available but not used.*"),
]
DIGITS = load_images("digits")
HELD_OUT = [(DIGITS.importance.images, DIGITS.importance.labels)]


class Classifier(pl.LightningModule):
    """A head on a trunk that other modules share."""

    def __init__(self, trunk, lr=0.005, optimizer=torch.optim.Adam):
        super().__init__()
        self.trunk, self.head = trunk, nn.Linear(32, 10)
        self.lr, self.optimizer = lr, optimizer

    def forward(self, images):
        return self.head(self.trunk(images))

    def training_step(self, batch, _index):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr)


class TwoOptimizers(Classifier):
    """Trunk and head by optimizers of their own, the trunk twice per batch."""

    def __init__(self, trunk):
        super().__init__(trunk)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for optimizer in (*self.optimizers(), self.optimizers()[0]):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, index))
            optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.trunk.parameters(), lr=0.1, momentum=0.9), torch.optim.Adam(self.head.parameters())


def trunk():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Tanh())


def loader(number=256, batch_size=64):
    """The same batches in the same order each time."""
    return DataLoader(TensorDataset(DIGITS.train.images[:number], DIGITS.train.labels[:number]), batch_size)


def trainer(callback, epochs=2, **options):
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    silent["enable_model_summary"] = False
    return pl.Trainer(max_epochs=epochs, **({"callbacks": [callback]} | silent | options))


def fit(callback, module, epochs=2, *, batches=None, ckpt_path=None, **options):
    fitted = trainer(callback, epochs, **options)
    fitted.fit(module, batches or loader(), ckpt_path=ckpt_path)
    return fitted


def held_pair(alpha=1e3, module=Classifier):
    """Model B, with the plasticity of what an untrained A on its trunk needs."""
    shared = trunk()
    a, b = Classifier(shared), module(shared)
    plasticity = WeightPlasticity(shared.parameters(), alpha=alpha)
    plasticity.consolidate(a, diagonal_fisher(a, HELD_OUT, F.cross_entropy))
    return b, plasticity


def by_hand(module, plasticity, epochs=2, accumulate=1, clip=None):
    """What the trainer should do, with the optimizer attached by hand."""
    optimizer = module.configure_optimizers()
    plasticity.attach(optimizer)
    module.train()
    for _ in range(epochs):
        for index, batch in enumerate(loader(), start=1):
            (module.training_step(batch, index) / accumulate).backward()
            if index % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()


def same_weights(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


def same_state(left, right):
    tensors = [zip(left[key], right[key], strict=True) for key in ("anchors", "importances")]
    return all(torch.equal(a, b) for pairs in tensors for a, b in pairs)


def accuracy(module):
    with torch.no_grad():
        return float((module(DIGITS.test.images).argmax(1) == DIGITS.test.labels).float().mean())


def without_hooks(optimizers):
    return all(not optimizer._optimizer_step_post_hooks for optimizer in optimizers)


def test_a_second_model_forgets_the_first_less():
    forgotten = {}
    for alpha in (0.0, 1e5):
        torch.manual_seed(0)
        shared = trunk()
        a, b = Classifier(shared), Classifier(shared, lr=0.05)
        plasticity = WeightPlasticity(shared.parameters(), alpha=alpha)
        callback = PlasticityCallback(plasticity, batches=HELD_OUT, loss_fn=F.cross_entropy)
        fit(callback, a, 12, batches=loader(1000))
        before = accuracy(a)
        fit(callback, b, 12, batches=loader(1000))
        forgotten[alpha] = before - accuracy(a)
        assert accuracy(b) > 0.85
    assert forgotten[0.0] > 0.05
    assert abs(forgotten[1e5]) < 0.01


@pytest.mark.parametrize(
    ("optimizer", "accumulate", "clip"),
    [(torch.optim.Adam, 1, None), (torch.optim.SGD, 1, None), (torch.optim.Adam, 2, None), (torch.optim.Adam, 1, 0.3)],
    ids=["adam", "sgd", "accumulated", "clipped"],
)
def test_training_is_that_of_a_loop_by_hand(optimizer, accumulate, clip):
    b, plasticity = held_pair()
    b.optimizer = optimizer
    twin, twin_plasticity = copy.deepcopy((b, plasticity))
    free = copy.deepcopy(b)
    fit(PlasticityCallback(plasticity), b, accumulate_grad_batches=accumulate, gradient_clip_val=clip)
    by_hand(twin, twin_plasticity, accumulate=accumulate, clip=clip)
    assert same_weights(b, twin)
    by_hand(free, WeightPlasticity(free.trunk.parameters(), alpha=0.0), accumulate=accumulate, clip=clip)
    assert not same_weights(b, free)


def test_several_optimizers_in_a_loop_of_the_module():
    b, plasticity = held_pair(module=TwoOptimizers)
    twin, twin_plasticity = copy.deepcopy((b, plasticity))
    fitted = fit(PlasticityCallback(plasticity), b)
    optimizers = twin.configure_optimizers()
    twin_plasticity.attach(optimizers[0])  # the other has no shared weight
    for batch in [*loader(), *loader()]:
        for optimizer in (*optimizers, optimizers[0]):
            optimizer.zero_grad()
            F.cross_entropy(twin(batch[0]), batch[1]).backward()
            optimizer.step()
    assert same_weights(b, twin)
    assert len(fitted.optimizers) == 2
    assert without_hooks(fitted.optimizers)


@pytest.fixture
def _no_process_group_stays(monkeypatch):
    monkeypatch.setenv(
        "LOCAL_RANK", "0"
    )  # which Lightning sets, and others take for a launcher's: taken back at the end
    monkeypatch.delenv("LOCAL_RANK")
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_no_process_group_stays")
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_the_end_of_a_fit_consolidates(strategy):
    shared = trunk()
    a = Classifier(shared)
    plasticity = WeightPlasticity(shared.parameters())
    fit(PlasticityCallback(plasticity, batches=HELD_OUT, loss_fn=F.cross_entropy, kind="exact"), a, strategy=strategy)
    expected = WeightPlasticity(shared.parameters())
    expected.consolidate(a, diagonal_fisher(a, HELD_OUT, F.cross_entropy, "exact"))
    assert same_state(plasticity.state_dict(), expected.state_dict())


def test_a_resumed_fit_is_one_never_stopped(tmp_path):
    b, plasticity = held_pair()
    twin, twin_plasticity = copy.deepcopy((b, plasticity))
    fit(PlasticityCallback(plasticity), b, 4)
    callback = PlasticityCallback(twin_plasticity)
    stopped = fit(callback, twin, 2)
    stopped.save_checkpoint(tmp_path / "half.ckpt")
    fresh = Classifier(trunk())
    fresh_plasticity = WeightPlasticity(fresh.trunk.parameters(), alpha=1.0)
    resumed = fit(PlasticityCallback(fresh_plasticity), fresh, 4, ckpt_path=tmp_path / "half.ckpt")
    assert same_state(fresh_plasticity.state_dict(), plasticity.state_dict())
    assert fresh_plasticity.alpha == 1e3
    assert same_weights(fresh, b)
    assert without_hooks(resumed.optimizers)


def test_nothing_stays_behind():
    b, plasticity = held_pair()
    before = plasticity.state_dict()
    fitted = fit(PlasticityCallback(plasticity), b)
    assert without_hooks(fitted.optimizers)
    assert same_state(plasticity.state_dict(), before)  # without batches it is the caller who consolidates
    fit(PlasticityCallback(plasticity), b)  # would refuse to attach twice


def test_a_fit_that_fails_leaves_no_hook_and_consolidates_nothing():
    class Failing(Classifier):
        def training_step(self, batch, index):
            assert not without_hooks(self.trainer.optimizers)
            raise RuntimeError("out of paper")

    b, plasticity = held_pair(module=Failing)
    before = plasticity.state_dict()
    callback = PlasticityCallback(plasticity, batches=HELD_OUT, loss_fn=F.cross_entropy)
    failed = trainer(callback)
    with pytest.raises(RuntimeError, match="out of paper"):
        failed.fit(b, loader())
    assert without_hooks(failed.optimizers)
    assert same_state(plasticity.state_dict(), before)


def test_an_optimizer_without_shared_weights_is_refused():
    plasticity = WeightPlasticity(trunk().parameters())
    with pytest.raises(InputError, match="Expected an optimizer of some of the shared parameters, but got 1 that hold"):
        fit(PlasticityCallback(plasticity), Classifier(trunk()))


@pytest.mark.parametrize("given", [{"batches": HELD_OUT}, {"loss_fn": F.cross_entropy}])
def test_batches_and_loss_come_together(given):
    with pytest.raises(InputError, match=f"but got {next(iter(given))} without"):
        PlasticityCallback(WeightPlasticity(()), **given)


def test_the_package_imports_without_it(monkeypatch):
    absent = {"lightning", "avalanche", "transformers"}
    with monkeypatch.context() as patch:
        for name in [*sys.modules, *absent]:
            if name.partition(".")[0] in absent:
                patch.setitem(sys.modules, name, None)  # importing it raises ImportError
            elif name.partition(".")[0] == "forgetless":
                patch.delitem(sys.modules, name)
        for module in pkgutil.iter_modules(importlib.import_module("forgetless.cli").__path__):
            importlib.import_module(f"forgetless.cli.{module.name}")
        importlib.import_module("forgetless.integrations")
        with pytest.raises(ImportError, match="lightning"):
            importlib.import_module("forgetless.integrations.lightning")
        for name in [name for name in sys.modules if name.partition(".")[0] == "forgetless"]:
            del sys.modules[name]


def normalised():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Tanh())


def shifted():
    return DataLoader(TensorDataset(4 * DIGITS.train.images[:256] + 5, DIGITS.train.labels[:256]), 64)


def test_each_module_has_its_own_statistics_of_a_shared_trunk():
    shared = normalised()

    class Tested(Classifier):
        def test_step(self, batch, index):
            pass

    a, b = Classifier(shared), Tested(shared)
    plasticity = WeightPlasticity(shared, alpha=1e12, damping=0.1)
    callback = PlasticityCallback(plasticity, batches=HELD_OUT, loss_fn=F.cross_entropy)
    fit(callback, a)
    before = a.eval()(DIGITS.test.images).detach()
    fit(callback, b.train(), batches=shifted())
    torch.testing.assert_close(a.eval()(DIGITS.test.images), before, rtol=0, atol=1e-3)
    with plasticity.buffers_of(b):
        mean = shared[2].running_mean.clone()
    assert (mean - shared[2].running_mean).abs().max() > 1

    class Sees(pl.Callback):
        def on_test_end(self, trainer, module):
            self.mean = shared[2].running_mean.clone()

    checked = Sees()
    trainer(callback, callbacks=[callback, checked]).test(b, shifted(), verbose=False)
    assert torch.equal(checked.mean, mean)
    assert not torch.equal(shared[2].running_mean, mean)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_another_precision_is_followed(precision):
    shared = trunk()
    a, b = Classifier(shared), Classifier(shared)
    plasticity = WeightPlasticity(shared, alpha=1e8, damping=0.1)
    callback = PlasticityCallback(plasticity, batches=HELD_OUT, loss_fn=F.cross_entropy)
    fit(callback, a, precision=precision)
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float64
    assert plasticity.anchor(shared[1].weight).dtype == dtype
    assert plasticity.importance(shared[1].weight).any()
    before = shared[1].weight.detach().clone()
    fit(callback, b, precision=precision)
    torch.testing.assert_close(shared[1].weight.detach(), before, rtol=0, atol=2e-2)


def test_weights_averaged_at_the_end_are_told_of():
    shared = trunk()
    callback = PlasticityCallback(WeightPlasticity(shared), batches=HELD_OUT, loss_fn=F.cross_entropy)

    class Averages(pl.Callback):
        def on_train_end(self, trainer, module):
            with torch.no_grad():
                module.trunk[1].weight.mul_(0.7)

    with pytest.warns(UserWarning, match=r"Shared weights have moved by 0\.\d+ of their norm since they were consol"):
        trainer(callback, callbacks=[callback, Averages()]).fit(Classifier(shared), loader())
