import contextlib
import math

import pytest
import torch
import torch.nn.functional as F

from forgetless.data import ImageData, ImageSplit, TextData
from forgetless.errors import InputError
from forgetless.importance import TrainingFisher, diagonal_fisher
from forgetless.search.evidence import BoundArchitecture
from forgetless.spaces.recurrent import RecurrentSpace
from forgetless.spaces.recurrent.supernet import RecurrentSupernet
from forgetless.tasks.images import ImageClassification
from forgetless.tasks.text import LanguageModelling
from forgetless.training import cpu_arithmetic

SPACE = RecurrentSpace(2)
CELL = SPACE.parse("tanh(0) relu(1)")


def text(num_words=12, train=200, held_out=45):
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        return torch.randint(num_words, (n,), generator=generator)

    words = tuple(f"w{i}" for i in range(num_words))
    return TextData("made up", words, draw(train), draw(held_out), draw(held_out), draw(held_out))


def images(n=50):
    generator = torch.Generator().manual_seed(0)
    splits = [ImageSplit(torch.randn(n, 1, 3, 3, generator=generator), torch.arange(n) % 3) for _ in range(4)]
    return ImageData("made up", ("a", "b", "c"), *splits)


def supernet(units=5, num_words=12):
    torch.manual_seed(1)
    return RecurrentSupernet(num_words, units, SPACE)


def test_streams_read_the_training_text_in_order():
    data = text(train=103)
    task = LanguageModelling(data, batch_size=2, num_steps=10)
    batches = list(task.training_batches(6, torch.Generator()))
    assert all(words.shape == (2, 10) for words, _ in batches)
    stream = data.train[:51]
    assert torch.equal(torch.cat([words[0] for words, _ in batches[:5]]), stream[:50])
    assert torch.equal(torch.cat([targets[0] for _, targets in batches[:5]]), stream[1:51])
    assert torch.equal(batches[5][0], batches[0][0])  # over and over


@pytest.mark.parametrize("independent", [False, True])
def test_batches_from_a_start_are_the_same_sequence(independent):
    task = LanguageModelling(text(), 3, 7, independent=independent)
    whole = list(task.training_batches(9, torch.Generator().manual_seed(2)))
    tail = list(task.training_batches(4, torch.Generator().manual_seed(2), start=5))
    assert all(
        torch.equal(a, b) for one, two in zip(whole[5:], tail, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_image_batches_from_a_start_are_the_same_sequence():
    task = ImageClassification(images(), 16)
    whole = list(task.training_batches(8, torch.Generator().manual_seed(2)))
    tail = list(task.training_batches(3, torch.Generator().manual_seed(2), start=5))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[5:], tail, strict=True))
    assert not torch.equal(whole[0][0], whole[3][0])  # another pass, another order


def test_independent_chunks_come_from_everywhere():
    task = LanguageModelling(text(), 4, 5, independent=True)
    (words, targets), *_ = task.training_batches(1, torch.Generator().manual_seed(0))
    assert torch.equal(words[:, 1:], targets[:, :-1])
    order = task.training_batches(40, torch.Generator().manual_seed(0))
    assert len({tuple(row.tolist()) for words, _ in order for row in words}) > 60


def test_text_error_is_the_mean_over_streams_with_carried_state():
    data = text()
    task = LanguageModelling(data, batch_size=2, num_steps=8)
    model = supernet()
    streams = data.test[:44].view(2, 22)
    logits, _ = model(streams[:, :-1], CELL)
    expected = F.cross_entropy(logits.flatten(0, 1), streams[:, 1:].flatten())
    assert task.error(model, "test", CELL) == pytest.approx(expected.item(), rel=1e-5)
    assert model.training


def test_cross_entropy_of_a_text_does_not_depend_on_the_batch():
    model = supernet()
    found = [
        LanguageModelling(text(), batch, steps).published_error(model, "test", CELL)
        for batch, steps in ((1, 8), (3, 8), (2, 13))
    ]
    words = text().test.unsqueeze(0)
    logits, _ = model(words[:, :-1], CELL)
    assert found == pytest.approx([F.cross_entropy(logits[0], words[0, 1:]).item()] * 3, rel=1e-5)


def test_reward_and_forgetting_are_disjoint_halves_of_validation():
    data = text()
    task = LanguageModelling(data, 1, 5)
    halves = torch.cat([task._texts["reward"], task._texts["forgetting"]])
    assert torch.equal(halves, data.validation)
    pictures = ImageClassification(images(), 16)
    both = [torch.cat([x for x, _ in pictures.batches(name)]) for name in ("reward", "forgetting")]
    assert torch.equal(torch.cat(both), pictures.data.validation.images)


def test_loss_carries_the_state_within_one_model_only():
    task = LanguageModelling(text(), 2, 6)
    model = supernet()
    first, second = task.training_batches(2, torch.Generator())
    loss_of = task.loss_of(model, CELL)
    loss_of(first)
    carried = loss_of(second)
    fresh = task.loss_of(model, CELL)(second)
    _, state = model.loss(*first, CELL)
    assert carried.item() == pytest.approx(model.loss(*second, CELL, state)[0].item(), rel=1e-6)
    assert carried.item() != fresh.item()
    carried.backward()  # through one batch only


@pytest.mark.parametrize("source", ["training", "held-out"])
def test_the_importance_of_a_chunk_is_that_per_target_over_its_length(source):
    """A search on text takes the mean loss of a chunk of T words: there α = 1 per target is a strength of T."""
    length = 6
    task = LanguageModelling(text(), 1, length, independent=True)
    model = BoundArchitecture(supernet().double(), CELL)
    batches = list(task.training_batches(8, torch.Generator().manual_seed(3)))
    weights = dict(model.named_parameters())
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for words, targets in batches:
        logits = model(words)[0]  # (T, V)
        total = sum(F.cross_entropy(logits[t], targets[0, t]) for t in range(length))
        gradients = torch.autograd.grad(total, list(weights.values()))
        for square, gradient in zip(squares.values(), gradients, strict=True):
            square += gradient.square() / (length * len(batches))
    if source == "training":
        estimate = TrainingFisher(weights)
        for batch in batches:
            model.zero_grad()
            task.loss_of(model.supernet, CELL)(batch).backward()
            estimate.add()
        found = estimate.fisher(task.batch_size)
    else:
        found = diagonal_fisher(model, batches, task.loss, parameters=weights)
    assert found.keys() == squares.keys()
    for name, square in squares.items():
        torch.testing.assert_close(length * found[name], square, rtol=1e-9, atol=1e-12)


def test_a_diverged_architecture_has_an_infinite_or_nan_error():
    task = LanguageModelling(text(), 2, 6)
    model = supernet()
    with torch.no_grad():
        model.decoder_bias.fill_(math.inf)
    assert not math.isfinite(task.error(model, "test", CELL))


@pytest.mark.parametrize(("train", "held_out", "name"), [(20, 45, "train"), (200, 10, "importance")])
def test_texts_too_short(train, held_out, name):
    with pytest.raises(InputError, match=rf"Expected at least \d+ words of {name} text .* but got"):
        LanguageModelling(text(train=train, held_out=held_out), 4, 12)


def test_arithmetic_of_the_cpu_is_left_as_it_was():
    def state():
        return torch.get_num_threads(), float(torch.tensor(1e-39) * 0.5) == 0

    before = state()
    with contextlib.suppress(KeyError), cpu_arithmetic(2, flush_denormals=True):
        assert state() == (2, True)
        raise KeyError
    assert state() == before
    with cpu_arithmetic(1):
        assert state() == (1, before[1])
