"""A budget in the Trainer of transformers and in Lightning's: it holds, resumes, and steps as a plain loop does."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from forgetless import Budget, InputError

WORDS, LENGTH = 24, 8
BUDGET = {"samples": 32, "sample_length": LENGTH, "batch_size": 8, "measure_every": 5}


def counting(number):
    """Text in which every word is followed by the next one."""
    pieces = (torch.arange(number).unsqueeze(1) * 5 + torch.arange(LENGTH)) % WORDS
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


@pytest.fixture(scope="module")
def hugging_face():
    transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
    pytest.importorskip("accelerate", reason="needs the extra `transformers`")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def gpt2(transformers):
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1, "initializer_range": 0.3}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=WORDS, n_positions=LENGTH, **sizes))


def train(transformers, model, callback, folder, steps=12, resume=None, **options):
    arguments = {
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-2,
    }
    args = transformers.TrainingArguments(output_dir=str(folder), max_steps=steps, **(arguments | options))
    trainer = transformers.Trainer(model, args, train_dataset=counting(40), callbacks=[callback] if callback else [])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(autouse=True)
def _their_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield


@pytest.mark.parametrize("on", ["own-samples", "old"])
def test_a_trainer_keeps_the_budget(hugging_face, tmp_path, on) -> None:
    from forgetless.integrations.transformers import PlasticityCallback

    model = gpt2(hugging_face)
    torch.manual_seed(1)
    old = [{"input_ids": piece, "labels": piece} for piece in torch.randint(WORDS, (24, LENGTH))]
    budget = Budget(0.05, on=old if on == "old" else on, **BUDGET)
    callback = PlasticityCallback(budget=budget)
    trainer = train(hugging_face, model, callback, tmp_path, lr_scheduler_type="linear")
    assert callback.report.upper <= 0.05 < callback.report.old_loss
    assert callback.report.steps == 12
    assert on == "old" or callback.report.increase > 0.01
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"budget_multiplier", "old_loss_increase"} <= logs[-1].keys()


def test_a_killed_trainer_resumes_bit_for_bit(hugging_face, tmp_path) -> None:
    from forgetless.integrations.transformers import PlasticityCallback

    class Dies(hugging_face.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 8:
                raise RuntimeError("killed")

    def callback():
        return PlasticityCallback(budget=Budget(0.05, **BUDGET))

    whole, parts = gpt2(hugging_face), gpt2(hugging_face)
    first = callback()
    train(hugging_face, whole, first, tmp_path / "whole", save_strategy="steps", save_steps=6)
    dying = callback()
    with pytest.raises(RuntimeError, match="killed"):
        trainer_with(hugging_face, parts, [dying, Dies()], tmp_path / "parts").train()
    dying._budget_run.leave()
    parts, second = gpt2(hugging_face), callback()
    train(
        hugging_face,
        parts,
        second,
        tmp_path / "parts",
        resume=str(tmp_path / "parts" / "checkpoint-6"),
        save_strategy="steps",
        save_steps=6,
    )
    assert first.report == second.report
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    train(hugging_face, gpt2(hugging_face), None, tmp_path / "bare", save_strategy="steps", save_steps=6)
    bare = str(tmp_path / "bare" / "checkpoint-6")
    with pytest.raises(InputError, match="Expected the budget's state in the checkpoint of step 6"):
        train(hugging_face, gpt2(hugging_face), callback(), tmp_path / "bare", resume=bare)


def trainer_with(transformers, model, callbacks, folder):
    args = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=12,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=6,
        logging_steps=4,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        learning_rate=1e-2,
    )
    return transformers.Trainer(model, args, train_dataset=counting(40), callbacks=callbacks)


def test_a_budget_beside_another_protection_is_refused(hugging_face) -> None:
    from forgetless.integrations.transformers import PlasticityCallback

    for other in ({"alpha": 1.0}, {"samples": 4}, {"damping": 0.1}, {"old_data": []}):
        with pytest.raises(InputError, match="Expected a budget or another protection, but got both"):
            PlasticityCallback(budget=Budget(0.1), **other)


def test_a_model_that_cannot_write_is_refused(hugging_face, tmp_path) -> None:
    from forgetless.integrations.transformers import PlasticityCallback

    model = gpt2(hugging_face)
    model.config.bos_token_id = model.config.eos_token_id = None
    model.generation_config.bos_token_id = model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="Expected a model with a token to begin texts with"):
        train(hugging_face, model, PlasticityCallback(budget=Budget(0.1, **BUDGET)), tmp_path)


# ---- Lightning -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning.pytorch", reason="needs the extra `lightning`")


def module_of(lightning):
    class Bigrams(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.table = nn.Parameter(torch.randn(WORDS, WORDS, generator=generator))

        def forward(self, tokens):
            return self.table[tokens]

        def training_step(self, batch, _):
            tokens = batch["input_ids"]
            return nn.functional.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    return Bigrams()


def fit(lightning, module, folder, callbacks, epochs=4, ckpt=None):
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        default_root_dir=folder,
    )
    loader = DataLoader(counting(40), batch_size=8)
    trainer.fit(module, loader, ckpt_path=ckpt)
    return trainer


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_lightning_keeps_the_budget_and_resumes(lightning, tmp_path) -> None:
    from forgetless.integrations.lightning import BudgetCallback

    class Saves(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def callback():
        return BudgetCallback(Budget(0.05, **BUDGET), prompts=1)

    whole, first = module_of(lightning), callback()
    fit(lightning, whole, tmp_path, [first, Saves()])
    assert first.report.upper <= 0.05
    assert first.report.steps == 20
    assert first.report.used > 0.5
    parts, second = module_of(lightning), callback()
    fit(lightning, parts, tmp_path, [second], ckpt=tmp_path / "middle.ckpt")
    assert first.report == second.report
    assert torch.equal(whole.table, parts.table)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
def test_lightning_refuses_a_checkpoint_without_the_old_model(lightning, tmp_path) -> None:
    from forgetless.integrations.lightning import BudgetCallback

    fit(lightning, module_of(lightning), tmp_path, [], epochs=1).save_checkpoint(tmp_path / "bare.ckpt")
    callback = BudgetCallback(Budget(0.05, **BUDGET), prompts=1)
    with pytest.raises(InputError, match="Expected the budget's state in the checkpoint"):
        fit(lightning, module_of(lightning), tmp_path, [callback], epochs=2, ckpt=tmp_path / "bare.ckpt")
