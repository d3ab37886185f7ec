"""Time of `diagonal_fisher`, as a ratio to one ordinary forward and backward pass over the same batches.

    python benchmarks/fisher.py --json fisher.json

The networks are those of the peers' comparison in docs: an MLP 784-512-512-512-10 over 10,000 MNIST images in batches
of 1,000, and a CNN with 32 and 64 channels over the first of them in batches of 64. With the extra `transformers`,
GPT-2 and Llama of random weights over random texts as well, per target. The yardstick computes the mean loss of a batch
and its gradient. What is checked on the first batch is in the times: it is as much as three to eight batches take.
"""

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timing import Batch, Timing, compare, in_batches, mnist_or_random, parser, prepare, report
from torch import Tensor, nn

from forgetless import diagonal_fisher


def mlp() -> nn.Module:
    """784-512-512-512-10."""
    layers: list[nn.Module] = []
    for width in (784, 512, 512):
        layers += [nn.Linear(width, 512), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(512, 10))


def cnn() -> nn.Module:
    """Two convolutions of 3 × 3 with 32 and 64 channels, each followed by pooling, and a linear classifier."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 10)),
    )


def gpt2(words: int, width: int, layers: int, tokens: int) -> nn.Module:
    """Hugging Face's GPT-2: Conv1D, LayerNorm, positions, tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": width, "n_layer": layers, "n_head": 4, "n_positions": tokens}
    return GPT2LMHeadModel(GPT2Config(vocab_size=words, bos_token_id=0, eos_token_id=0, **sizes)).eval()


def llama(words: int, width: int, layers: int, tokens: int) -> nn.Module:
    """Hugging Face's Llama: RMSNorm, rotary attention, a gated perceptron."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": tokens}
    sizes = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=words, **sizes, **heads)).eval()


def token_loss(outputs: Any, targets: Tensor) -> Tensor:
    """One cross entropy per token."""
    losses = F.cross_entropy(outputs.logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)


def forward_backward(model: nn.Module, batches: list[Batch], loss_fn: Callable[..., Tensor] = F.cross_entropy) -> None:
    """The yardstick: the gradient of each batch's mean loss."""
    for inputs, labels in batches:
        model.zero_grad(set_to_none=True)
        loss_fn(model(inputs), labels).mean().backward()
    model.zero_grad(set_to_none=True)


def measure(model: nn.Module, batches: list[Batch], rounds: int, kinds: tuple[str, ...]) -> list[Timing]:
    """Times of the kinds beside the yardstick's."""
    functions: dict[str, Callable[[], object]] = {"forward and backward": partial(forward_backward, model, batches)}
    for kind in kinds:
        functions[kind] = partial(diagonal_fisher, model, batches, F.cross_entropy, kind)
    return compare(functions, rounds)


def measure_text(model: nn.Module, batches: list[Batch], rounds: int) -> list[Timing]:
    """The same for a language model, per target."""
    fisher = partial(diagonal_fisher, model, batches, token_loss, per="target")
    functions = {
        "forward and backward": partial(forward_backward, model, batches, token_loss),
        "empirical": fisher,
        "monte_carlo": partial(fisher, kind="monte_carlo"),
    }
    return compare(functions, rounds)


def language_models(options: argparse.Namespace) -> dict[str, list[Timing]]:
    """Both layouts, where the library is at hand."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    words, size = options.words, options.batch
    tokens = torch.randint(words, (options.texts, options.tokens), generator=torch.Generator().manual_seed(0))
    batches = in_batches(tokens, tokens.roll(-1, 1), size)
    sizes = f"width {options.width}, {options.layers} layers, {words:,} words"
    data = f"{options.texts} random texts of {options.tokens} tokens, batch {size}"
    return {
        f"{name}, {sizes}, {data}": measure_text(
            make(words, options.width, options.layers, options.tokens), batches, options.rounds
        )
        for name, make in (("GPT-2", gpt2), ("Llama", llama))
    }


def image_models(options: argparse.Namespace) -> dict[str, list[Timing]]:
    """The MLP and the CNN."""
    images, labels, data = mnist_or_random(options.examples)
    batches = in_batches(images, labels, 1000)
    few = in_batches(images[: options.cnn_examples], labels[: options.cnn_examples], 64)
    kinds = ("empirical", "monte_carlo", "batch")
    return {
        f"MLP 784-512-512-512-10, {options.examples:,} examples of {data}, batch 1000": measure(
            mlp(), batches, options.rounds, (*kinds, "exact")
        ),
        f"CNN 32-64, {options.cnn_examples:,} examples of {data}, batch 64": measure(cnn(), few, options.rounds, kinds),
    }


def main() -> None:
    """Measure, print and write."""
    options = parser(__doc__, rounds=20)
    options.add_argument("--examples", type=int, default=10_000, help="for the MLP (default %(default)s)")
    options.add_argument("--cnn-examples", type=int, default=2_000, help="for the CNN (default %(default)s)")
    options.add_argument("--texts", type=int, default=512, help="for the language models (default %(default)s)")
    options.add_argument("--tokens", type=int, default=64, help="of a text (default %(default)s)")
    options.add_argument("--batch", type=int, default=16, help="texts in a batch (default %(default)s)")
    options.add_argument("--words", type=int, default=1000, help="of the vocabulary (default %(default)s)")
    options.add_argument("--width", type=int, default=128, help="of the language models (default %(default)s)")
    options.add_argument("--layers", type=int, default=4, help="of the language models (default %(default)s)")
    options.add_argument("--only-text", action="store_true", help="measure the language models only")
    options = options.parse_args()
    prepare(options.threads)
    tables = {} if options.only_text else image_models(options)
    tables |= language_models(options)
    report("fisher", tables, options.rounds, options.json)


if __name__ == "__main__":
    main()
