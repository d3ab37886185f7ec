"""What protection costs on a GPU: Fisher, step, recurrent layers, the supernet, the Trainer. At small size on a CPU.

    sh benchmarks/gpu.sh    # the tests that need a GPU, then this: at most 8 minutes on a GPU of the H100's class

Ratios are to ordinary training of the same model in the same round: forward and backward for a Fisher, fused AdamW's
own step for a step. The share of the memory bandwidth is what a step has to read and write (7 numbers of a weight for
AdamW, 5 more with the proximal step), over its time, as a share of what copying a large tensor reaches.
"""

import argparse
import copy
import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from fisher_memory import model_of, token_loss
from recurrent_step import LstmLanguageModel, training_step
from rich.console import Console
from timing import Timing, compare, environment, parser, prepare, print_tables
from torch import Tensor, nn
from torch.optim import AdamW

from forgetless import WeightPlasticity, diagonal_fisher
from forgetless.spaces.recurrent import RecurrentSpace
from forgetless.spaces.recurrent.supernet import RecurrentSupernet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
_READ_AND_WRITTEN = {"plain": 7, "protected": 12}


@dataclass(frozen=True)
class Size:
    """A model, by name, and the texts it sees."""

    name: str
    width: int
    layers: int
    words: int
    batch: int
    tokens: int
    num_batches: int


SIZES = (
    [Size("10 million weights", 256, 12, 8000, 16, 256, 16), Size("500 million weights", 2048, 12, 24_000, 8, 256, 16)]
    if DEVICE.type == "cuda"
    else [Size("50 thousand weights", 32, 4, 300, 8, 32, 8)]
)
UNITS, WORDS, SEQUENCES, STEPS = (1000, 10_000, 64, 35) if DEVICE.type == "cuda" else (20, 100, 4, 5)


def synchronised(function: Callable[[], object]) -> Callable[[], None]:
    """The function, and the wait for the GPU to be done with it."""

    def run() -> None:
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return run


def timed(functions: Mapping[str, Callable[[], object]], rounds: int) -> list[Timing]:
    """Times and ratios to the first."""
    return compare({name: synchronised(function) for name, function in functions.items()}, rounds, warmup=1)


def bandwidth() -> float:
    """Bytes per second that copying a large tensor reads and writes, at best of five."""
    source = torch.ones(2**28 if DEVICE.type == "cuda" else 2**22, device=DEVICE)
    target = torch.empty_like(source)
    copied = synchronised(lambda: target.copy_(source))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        copied()
        seconds.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(seconds[1:])


# ---- Fisher and step -------------------------------------------------------------------------------------------------


def fisher(size: Size, dtype: torch.dtype, rounds: int) -> list[Timing]:
    """The Fisher of a language model beside forward and backward."""
    model = model_of(size.width, size.layers, size.words, is_known=True).to(DEVICE, dtype)
    texts = torch.randint(size.words, (size.num_batches, size.batch, size.tokens), device=DEVICE)
    batches = [(text, text.roll(-1, 1)) for text in texts]

    def forward_backward() -> None:
        for inputs, targets in batches:
            model.zero_grad(set_to_none=True)
            token_loss(model(inputs), targets).mean().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    computed = partial(diagonal_fisher, model, batches, token_loss, per="target")
    return timed({"forward and backward": forward_backward, "Fisher": computed}, rounds)


def step(size: Size, dtype: torch.dtype, rounds: int) -> list[Timing]:
    """Fused AdamW's own step, and with the proximal step."""
    found: dict[str, Callable[[], object]] = {}
    keep_alive = []
    start = model_of(size.width, size.layers, size.words, is_known=True)
    for name in ("plain", "protected"):
        model = copy.deepcopy(start).to(DEVICE, dtype)
        for weight in model.parameters():
            weight.grad = 1e-3 * torch.randn_like(weight)
        optimizer = AdamW(model.parameters(), lr=1e-5, fused=True)
        if name == "protected":
            plasticity = WeightPlasticity(model.parameters(), alpha=1.0).attach(optimizer)
            plasticity.consolidate(
                model, {key: torch.rand_like(w, dtype=torch.float32) for key, w in model.named_parameters()}
            )
            keep_alive.append(plasticity)
        found[name] = optimizer.step
    return timed(found, 4 * rounds)


def shares(size: Size, dtype: torch.dtype, timings: list[Timing], most: float) -> dict[str, float]:
    """The share of the memory bandwidth that each kind of step reaches, if every number is of the weights' type."""
    numbers = 8 * size.width**2 * size.layers + 2 * size.words * size.width
    return {t.name: numbers * dtype.itemsize * _READ_AND_WRITTEN[t.name] / t.seconds / most for t in timings}


# ---- recurrent layers ------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Embedding, nn.LSTM, decoder; examples first."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.decoder = nn.Embedding(WORDS, UNITS), nn.Linear(UNITS, WORDS)
        self.lstm = nn.LSTM(UNITS, UNITS, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, words)."""
        logits: Tensor = self.decoder(self.lstm(self.embedding(tokens))[0])
        return logits


def lstm(rounds: int) -> list[Timing]:
    """The Fisher of nn.LSTM beside forward and backward, which go through cuDNN on a GPU."""
    model = Recurrent().to(DEVICE)
    texts = torch.randint(WORDS, (4, SEQUENCES, STEPS), device=DEVICE)

    def forward_backward() -> None:
        for text in texts:
            model.zero_grad(set_to_none=True)
            token_loss(model(text), text).mean().backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)

    computed = partial(diagonal_fisher, model, [(text, text) for text in texts], token_loss, per="target")
    return timed({"forward and backward": forward_backward, "Fisher": computed}, rounds)


def supernet(rounds: int) -> list[Timing]:
    """A training step of the recurrent supernet with 12 nodes beside nn.LSTM's."""
    space = RecurrentSpace(12)
    text = torch.randint(WORDS, (SEQUENCES, STEPS + 1), device=DEVICE)
    inputs, targets = text[:, :-1], text[:, 1:]
    cell = space.sample(torch.Generator().manual_seed(0))
    plain = LstmLanguageModel(WORDS, UNITS, 0.0).to(DEVICE)
    shared = RecurrentSupernet(WORDS, UNITS, space, dropout_input=0.0, dropout_output=0.0).to(DEVICE)
    functions = {
        "nn.LSTM": partial(training_step, plain, partial(plain.loss, inputs, targets)),
        "12 nodes": partial(training_step, shared, lambda: shared.loss(inputs, targets, cell)[0]),
    }
    return timed(functions, rounds)


# ---- the Trainer -----------------------------------------------------------------------------------------------------


def trainer() -> list[Timing]:
    """Some steps of the Hugging Face Trainer on a small Llama, without and with the callback and own samples."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    from forgetless.integrations.transformers import PlasticityCallback

    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=200, max_position_embeddings=64, bos_token_id=0, eos_token_id=1, **sizes)
    texts = torch.randint(2, 200, (64, 32))
    examples = [{"input_ids": text, "labels": text} for text in texts]

    def train(*callbacks: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            options = TrainingArguments(
                folder,
                max_steps=20,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                use_cpu=DEVICE.type == "cpu",
            )
            Trainer(LlamaForCausalLM(config), options, train_dataset=examples, callbacks=[*callbacks]).train()

    protected = lambda: train(PlasticityCallback(alpha=1.0, samples=16, sample_length=32))  # noqa: E731
    return timed({"Trainer": train, "with the callback and 16 own samples": protected}, 2)


def main() -> None:
    """Measure, print and write."""
    options: argparse.ArgumentParser | argparse.Namespace = parser(__doc__, rounds=5)
    options = options.parse_args()
    prepare(options.threads)
    most = bandwidth()
    tables: dict[str, list[Timing]] = {}
    shares_of: dict[str, dict[str, float]] = {}
    for size in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            title = f"{size.name}, {str(dtype).removeprefix('torch.')}"
            tables[f"Fisher, {title}"] = fisher(size, dtype, options.rounds)
            tables[f"step, {title}"] = step(size, dtype, options.rounds)
            shares_of[title] = shares(size, dtype, tables[f"step, {title}"], most)
    tables[f"Fisher of nn.LSTM, {UNITS} units"] = lstm(options.rounds)
    tables[f"step of the recurrent supernet, 12 nodes, {UNITS} units"] = supernet(options.rounds)
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("forgetless.integrations.transformers"):
        tables["20 steps of the Trainer"] = trainer()
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else environment()["cpu"]
    print_tables(tables)
    Console().print(f"{device}, {most / 1e9:.0f} GB/s. Share of it:", shares_of)
    if options.json is not None:
        found = {
            "benchmark": "gpu",
            "command": "sh benchmarks/gpu.sh",
            "environment": {**environment(), "device": device, "bytes_per_second": most},
            "tables": {title: [asdict(timing) for timing in timings] for title, timings in tables.items()},
            "shares_of_bandwidth": shares_of,
        }
        options.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
