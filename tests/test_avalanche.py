"""The plugin in Avalanche's own training loop, against loops by hand, on real digits."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from avalanche_library import import_avalanche
from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.data.images import load_images

import_avalanche()
from avalanche.benchmarks import tensors_benchmark  # noqa: E402
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint  # noqa: E402
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule  # noqa: E402
from avalanche.training.plugins import SupervisedPlugin  # noqa: E402
from avalanche.training.supervised import Naive  # noqa: E402

from forgetless.integrations.avalanche import PlasticityPlugin  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")
DIGITS = load_images("digits")


class Growing(nn.Module):
    """A trunk under a classifier that gets a unit for each new class."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
        self.classifier = IncrementalClassifier(32, initial_out_features=1)

    def forward(self, images):
        return self.classifier(self.trunk(images))


class ManyHeads(MultiTaskModule):
    """A trunk under one classifier for each task."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 32), nn.Tanh())
        self.classifier = MultiHeadClassifier(32)

    def forward(self, images, task_labels):
        return self.classifier(self.trunk(images), task_labels)


def plain():
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))


def digits(classes=range(10), order=None, split=DIGITS.train):
    """Images in rows, their pixels in another order if one is given."""
    chosen = torch.isin(split.labels, torch.tensor(list(classes)))
    images = split.images[chosen].flatten(1)
    return images if order is None else images[:, order], split.labels[chosen]


def stream(tensors, task_labels=None):
    return tensors_benchmark(tensors, test_tensors=tensors, task_labels=task_labels or [0] * len(tensors)).train_stream


def strategy_of(model, *plugins, optimizer=None, epochs=2):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.005)
    options = {"train_mb_size": 64, "train_epochs": epochs, "eval_mb_size": 64, "evaluator": None}
    return Naive(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), plugins=list(plugins), **options)


def same_state(left, right):
    tensors = [zip(left[key], right[key], strict=True) for key in ("anchors", "importances")]
    return all(torch.equal(a, b) for pairs in tensors for a, b in pairs)


def without_hooks(strategy):
    return not strategy.optimizer._optimizer_step_post_hooks


def accuracy(model, images, labels):
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def test_an_earlier_experience_is_forgotten_less():
    order = torch.randperm(64)
    experiences = stream([digits(), digits(order=order)])
    forgotten = {}
    for alpha in (0.0, 1e3):
        torch.manual_seed(0)
        model = plain()
        strategy = strategy_of(model, PlasticityPlugin(WeightPlasticity(model.parameters(), alpha=alpha)), epochs=6)
        strategy.train(experiences[0])
        before = accuracy(model, *digits(split=DIGITS.test))
        strategy.train(experiences[1])
        forgotten[alpha] = before - accuracy(model, *digits(split=DIGITS.test))
    assert forgotten[0.0] > 0.05
    assert forgotten[1e3] < forgotten[0.0] / 2


class Recorder(SupervisedPlugin):
    """The batches in the order in which the strategy drew them."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def before_forward(self, strategy, **kwargs):
        self.batches.append((strategy.experience.current_experience, strategy.mb_x.clone(), strategy.mb_y.clone()))


def test_training_is_that_of_a_loop_by_hand():
    model = plain()
    twin = copy.deepcopy(model)
    data = [digits(), digits(order=torch.randperm(64))]
    recorder = Recorder()
    plugin = PlasticityPlugin(WeightPlasticity(model.parameters(), alpha=10.0), kind="exact")
    strategy = strategy_of(model, recorder, plugin)
    for experience in stream(data):
        strategy.train(experience)
    optimizer = torch.optim.Adam(twin.parameters(), lr=0.005)
    plasticity = WeightPlasticity(twin.parameters(), alpha=10.0).attach(optimizer)
    for number, examples in enumerate(data):
        for _, images, labels in [drawn for drawn in recorder.batches if drawn[0] == number]:
            optimizer.zero_grad()
            F.cross_entropy(twin(images), labels).backward()
            optimizer.step()
        plasticity.consolidate(twin, diagonal_fisher(twin, [examples], F.cross_entropy, "exact"))
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
        torch.testing.assert_close(plasticity.anchor(mine), plugin.plasticity.anchor(theirs), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            plasticity.importance(mine), plugin.plasticity.importance(theirs), rtol=1e-3, atol=1e-7
        )
    assert without_hooks(strategy)


def test_the_plugin_draws_no_random_number():
    data = [digits(), digits(order=torch.randperm(64))]
    trained = []
    for plugins in ([], [0.0]):
        torch.manual_seed(0)
        model = plain()
        plugins = [PlasticityPlugin(WeightPlasticity(model.parameters(), alpha=alpha)) for alpha in plugins]
        strategy = strategy_of(model, *plugins, epochs=1)
        for experience in stream(data):
            strategy.train(experience)
        trained.append(model)
    assert all(torch.equal(a, b) for a, b in zip(*(model.parameters() for model in trained), strict=True))


def test_what_is_held_of_a_classifier_grows_with_it():
    model = Growing()
    first_of_all = model.classifier.classifier.weight
    plugin = PlasticityPlugin(WeightPlasticity(model.parameters(), alpha=1e8))
    strategy = strategy_of(model, plugin, epochs=3)
    first, second = stream([digits(range(3)), digits(range(3, 7))])
    strategy.train(first)
    weight = model.classifier.classifier.weight
    assert weight is not first_of_all
    assert weight.shape == (3, 32)
    anchor, importance = plugin.plasticity.anchor(weight).clone(), plugin.plasticity.importance(weight).clone()
    assert importance.min() > 0
    strategy.eval(second)  # grows the classifier too
    grown = model.classifier.classifier.weight
    assert grown.shape == (7, 32)
    fresh = grown[3:].detach().clone()
    plugin.before_training(strategy)
    assert torch.equal(plugin.plasticity.anchor(grown)[:3], anchor)
    assert torch.equal(plugin.plasticity.importance(grown)[:3], importance)
    assert not plugin.plasticity.importance(grown)[3:].any()
    strategy.train(second)
    assert torch.allclose(grown[:3], anchor, atol=1e-3)  # held
    assert (grown[3:] - fresh).abs().max() > 0.005  # free
    assert plugin.plasticity.importance(grown)[3:].min() > 0
    assert without_hooks(strategy)


def test_new_heads_are_free_and_earlier_tasks_held():
    data = [digits(range(5)), digits(range(5, 10))]
    forgotten = {}
    for alpha in (0.0, 1e5):
        torch.manual_seed(0)
        model = ManyHeads()
        plugin = PlasticityPlugin(WeightPlasticity(model.trunk.parameters(), alpha=alpha))
        strategy = strategy_of(model, plugin, optimizer=torch.optim.Adam(model.parameters(), lr=0.02), epochs=8)
        first, second = stream(data, [0, 1])
        strategy.train(first)
        images, labels = digits(range(5), split=DIGITS.test)
        with torch.no_grad():
            before = F.cross_entropy(model(images, 0), labels)
        strategy.train(second)
        with torch.no_grad():
            forgotten[alpha] = float(F.cross_entropy(model(images, 0), labels) - before)
        images, labels = digits(range(5, 10), split=DIGITS.test)
        assert (model(images, 1).argmax(1) == labels).float().mean() > 0.8
        assert without_hooks(strategy)
    assert forgotten[0.0] > 0.02
    assert abs(forgotten[1e5]) < forgotten[0.0] / 5


def test_an_optimizer_replaced_on_the_way_is_followed():
    class Replacing(SupervisedPlugin):
        def before_training_epoch(self, strategy, **kwargs):
            strategy.optimizer = torch.optim.SGD(strategy.model.parameters(), lr=0.1)

    model = plain()
    plugin = PlasticityPlugin(WeightPlasticity(model.parameters(), alpha=1e9))
    strategy = strategy_of(model, Replacing(), plugin)
    first, second = stream([digits(), digits(order=torch.randperm(64))])
    strategy.train(first)
    anchors = copy.deepcopy([plugin.plasticity.anchor(weight) for weight in model.parameters()])
    replaced = strategy.optimizer
    strategy.train(second)
    assert strategy.optimizer is not replaced
    needed = [f > 1e-6 for f in plugin.plasticity.state_dict()["importances"]]
    moved = [(a - w)[n].abs().max() for a, w, n in zip(anchors, model.parameters(), needed, strict=True)]
    assert max(moved) < 1e-2
    assert without_hooks(strategy)
    assert not replaced._optimizer_step_post_hooks


def test_a_checkpoint_between_experiences_continues_as_if_never_stopped(tmp_path):
    experiences = stream([digits(range(3)), digits(range(3, 7))])
    model = Growing()
    strategy = strategy_of(model, PlasticityPlugin(WeightPlasticity(model.parameters(), alpha=10.0)))
    strategy.train(experiences[0])
    # dill cannot pickle the optimizers of PyTorch 2.13.
    save_checkpoint(strategy, tmp_path / "first.pt", exclude=["optimizer"])
    torch.manual_seed(1)
    strategy.optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    strategy.train(experiences[1])

    other = Growing()
    restored = strategy_of(other, PlasticityPlugin(WeightPlasticity(other.parameters(), alpha=0.0)))
    restored, next_experience = maybe_load_checkpoint(restored, tmp_path / "first.pt")
    assert next_experience == 1
    restored.optimizer = torch.optim.Adam(restored.model.parameters(), lr=0.005)
    torch.manual_seed(1)
    restored.train(experiences[1])
    plugins = [next(p for p in s.plugins if isinstance(p, PlasticityPlugin)) for s in (strategy, restored)]
    assert same_state(*(plugin.plasticity.state_dict() for plugin in plugins))
    assert plugins[1].plasticity.alpha == 10.0
    assert plugins[1].plasticity.shared_parameters[0] is restored.model.trunk[0].weight
    pairs = zip(strategy.model.parameters(), restored.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_optimizer_without_shared_weights_is_refused():
    model = plain()
    strategy = strategy_of(model, PlasticityPlugin(WeightPlasticity(plain().parameters())))
    with pytest.raises(ValueError, match="Expected an optimizer of some of the shared parameters"):
        strategy.train(stream([digits()])[0])


def test_statistics_of_a_shared_module_are_held_between_experiences():
    model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Tanh(), nn.Linear(32, 10))
    plugin = PlasticityPlugin(WeightPlasticity(model, alpha=1e12, damping=0.1))
    strategy = strategy_of(model, plugin, epochs=1)
    images, labels = digits()
    first, second = stream([(images, labels), (4 * images + 5, labels)])
    strategy.train(first)
    mean = model[1].running_mean.clone()
    with pytest.warns(UserWarning, match="Buffers of shared modules"):
        strategy.train(second)
    assert torch.equal(model[1].running_mean, mean)
