"""Text of a fine-tuning in word pieces and windows, and the small Transformer that reads it."""

import string

import pytest
import torch

from forgetless import diagonal_fisher, sample_text
from forgetless.errors import InputError
from forgetless.experiments.fine_tune.text import (
    Lines,
    Windows,
    WordPieces,
    load_lines,
    next_token_loss,
    next_token_losses,
)
from forgetless.experiments.fine_tune.transformer import FreshTransformer, SmallTransformer

SPLITS = ("train", "importance", "validation", "test")


@pytest.fixture(scope="module")
def old(two_texts):
    return load_lines(str(two_texts / "old"))


@pytest.fixture(scope="module")
def pieces(old):
    return WordPieces(old.splits["train"], 200)


@pytest.fixture(scope="module")
def windows(old, pieces):
    return Windows(old, pieces, batch_size=4, context=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SmallTransformer(200, width=16, layers=2, heads=2, context=8)


def test_the_testaments_are_disjoint_whole_and_without_brackets():
    texts = {name: load_lines(name).splits for name in ("kjv-ot", "kjv-nt")}
    number = {name: sum(map(len, splits.values())) for name, splits in texts.items()}
    assert number == {"kjv-ot": 23_145, "kjv-nt": 7_957}
    for splits in texts.values():
        lines = [line for split in SPLITS for line in splits[split]]
        assert all(line == line.strip() and not set("[]") & set(line) for line in lines)
        for split in SPLITS[1:]:
            assert 0.05 <= len(splits[split]) / len(lines) < 0.06


def test_a_named_text_is_its_words(two_texts):
    lines = load_lines("kjv").splits["test"]
    assert all(lines)
    assert "<eos>" not in " ".join(lines)
    assert not any(len(line.split()) < 2 for line in lines)
    with pytest.raises(InputError, match=r"to be one of kjv-ot, kjv-nt, .* Did you mean 'kjv-ot'"):
        load_lines("kjv-otx")
    with pytest.raises(InputError, match=r"to be a folder with train\.txt"):
        load_lines(str(two_texts / "old" / "train.txt"))


def test_pieces_write_every_english_text_and_are_the_same_each_time(old, pieces):
    again = WordPieces(old.splits["train"], 200)
    text = ["In the beginning", string.printable.strip(), "Zyx {~} 0189 @#"]
    assert torch.equal(again.encode(text), pieces.encode(text))
    assert pieces.num_tokens == 200
    assert pieces.unknown(text) == 0
    tokens = pieces.encode(text[::2])
    places = (tokens == pieces.first).nonzero().flatten().tolist()
    assert places[0] == 0
    assert len(places) == 2
    parts = [tokens[1 : places[1]], tokens[places[1] + 1 :]]
    assert [pieces._processor.decode(part.tolist()) for part in parts] == text[::2]


def test_the_unknown_share_counts_characters(pieces):
    assert pieces.unknown(["ab 神造", "c"]) == pytest.approx(2 / 5)
    assert pieces.unknown([]) == 0


def test_windows_are_the_text_in_order_and_share_one_token(windows, old, pieces):
    tokens = pieces.encode(old.splits["test"])
    found = windows.windows("test")
    assert found.shape == ((len(tokens) - 1) // 8, 9)
    assert torch.equal(found[:, :-1].flatten(), tokens[: 8 * len(found)])
    assert torch.equal(found[:-1, -1], found[1:, 0])
    some = windows.windows("test", 3)
    assert torch.equal(some, found[[0, len(found) // 3, 2 * len(found) // 3]])


def test_the_error_is_the_mean_over_single_windows(windows, model):
    model.train()
    total = []
    with torch.no_grad():
        for window in windows.windows("test"):
            log_p = model(window[None, :-1])[0].log_softmax(-1)
            total += [-float(log_p[t, token]) for t, token in enumerate(window[1:])]
    assert windows.error(model, "test") == pytest.approx(sum(total) / len(total), rel=1e-5)
    assert model.training


def test_training_windows_are_drawn_from_the_training_text(windows, old, pieces):
    text = " ".join(map(str, pieces.encode(old.splits["train"]).tolist()))
    batches = list(windows.training_batches(5, torch.Generator().manual_seed(0)))
    assert len(batches) == 5
    for inputs, targets in batches:
        assert inputs.shape == targets.shape == (4, 8)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert all(
            " ".join(map(str, [*row, last])) in text
            for row, last in zip(inputs.tolist(), targets[:, -1].tolist(), strict=True)
        )
    first = next(windows.training_batches(1, torch.Generator().manual_seed(0)))[0]
    assert torch.equal(first, batches[0][0])


def test_losses_are_of_logits_wherever_they_are(model):
    tokens = torch.arange(16).view(2, 8)
    logits = model(tokens).detach()
    losses = next_token_losses(logits, tokens)
    expected = -logits.log_softmax(-1)[torch.arange(2)[:, None], torch.arange(8), tokens]
    assert losses == pytest.approx(expected)
    assert float(next_token_loss(logits, tokens)) == pytest.approx(float(expected.mean()))

    class Outputs:
        pass

    outputs = Outputs()
    outputs.logits = logits
    assert torch.equal(next_token_losses(outputs, tokens), losses)


def test_the_transformer_sees_no_later_token(model):
    tokens = torch.randint(200, (3, 8), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 200
    one, other = model(tokens), model(changed)
    assert torch.equal(one[:, :5], other[:, :5])
    assert not torch.isclose(one[:, 5:], other[:, 5:]).all(-1).any()
    assert torch.allclose(model(tokens[:, :4]), one[:, :4], atol=1e-5)


@pytest.mark.parametrize("lengths", [[1, 2, 3, 4, 5, 6, 7, 8], [3, 5, 8], [8, 8, 8], [4, 2, 3]], ids=str)
def test_a_reader_gives_the_logits_of_the_whole_text(model, lengths):
    """Of texts that grow by one token or several, and of others: a window that moved on, a shorter text."""
    model.double()
    text = torch.randint(200, (3, 40), generator=torch.Generator().manual_seed(0))
    read, start, before = model.next_token_reader(), 0, 0
    for length in lengths:
        start += length <= before
        tokens, before = text[:, start : start + length], length
        torch.testing.assert_close(read(tokens), model(tokens)[:, -1], rtol=1e-12, atol=1e-14)


def test_what_it_writes_is_what_it_would_write_with_no_memory(model):
    """The same tokens with the same seed: within its context, each read once, and beyond it."""

    class Whole(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, tokens):
            return self.inner(tokens)

    for weight in model.parameters():
        weight.data *= 20  # as drawn it expects all tokens alike
    prompts, num_read = torch.full((64, 2), 1), []
    written = sample_text(Whole(), prompts, 16, context=8, generator=torch.Generator().manual_seed(0))
    model.tokens.register_forward_pre_hook(lambda _, given: num_read.append(given[0].shape[1]))
    again = sample_text(model, prompts, 16, context=8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again, written)
    assert num_read == [2, *[1] * 6, *[8] * 9]


def test_its_fisher_goes_the_fast_way_and_is_that_of_single_examples(model):
    # Positions have to be looked up once per example for that; a slow way would warn, which is an error here.
    batches = [(torch.arange(24).view(3, 8), torch.arange(1, 25).view(3, 8))]
    found = diagonal_fisher(model, batches, next_token_losses, per="target")
    expected = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for inputs, targets in zip(*batches[0], strict=True):
        model.zero_grad()
        next_token_losses(model(inputs[None]), targets[None]).sum().backward()
        for name, weight in model.named_parameters():
            expected[name] += weight.grad**2 / 24
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-9), name


def test_weights_are_drawn_by_the_seed_alone(old):
    sizes = {"num_tokens": 200, "width": 16, "layers": 2, "heads": 2, "context": 8}
    start = FreshTransformer(old.splits["train"], **sizes)
    state = torch.get_rng_state()
    one, same, other = (start.make(seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["tokens.weight"], other["tokens.weight"])
    weights = sum(weight.numel() for name, weight in start.make(0).named_parameters() if weight.ndim == 2)
    assert start.num_weights == weights


def test_a_text_without_lines_is_refused(pieces):
    empty = Lines("nothing", dict.fromkeys(SPLITS, ()))
    with pytest.raises(InputError, match="at least 9 tokens of train text for a context of 8, but nothing has 0"):
        Windows(empty, pieces, 4, 8)
