"""The callback in the Trainer of Hugging Face transformers, against loops by hand, on embedded text."""

import copy
import functools
import gc
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from forgetless import InputError, WeightPlasticity, diagonal_fisher
from forgetless.data.text import load_text

transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
pytest.importorskip("accelerate", reason="needs the extra `transformers`")

from accelerate.state import PartialState  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from forgetless.integrations.old_examples import fixed_randomness  # noqa: E402
from forgetless.integrations.transformers import PlasticityCallback  # noqa: E402

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
pytestmark = [
    pytest.mark.filterwarnings("ignore:diagonal_fisher goes through the examples one by one"),
    pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
WORDS, LENGTH = 64, 8


@pytest.fixture(autouse=True, scope="module")
def _fast_collections():
    """The Trainer collects garbage at every start, among all that was imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@functools.cache
def words():
    return load_text("kjv", num_words=WORDS).train


def examples(first, number, length=LENGTH):
    """Consecutive pieces of the King James text."""
    pieces = words()[first : first + number * length].view(number, length)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


OLD, NEW = functools.partial(examples, 400_000), functools.partial(examples, 5_000)


def gpt2(**options):
    torch.manual_seed(0)
    options = {"n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 1, "eos_token_id": 1} | options
    return GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=LENGTH, **options))


def llama():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, bos_token_id=1, **size))


def with_lora(model):
    peft = pytest.importorskip("peft", reason="needs the extra `transformers`")
    names = ["c_attn", "c_fc"] if isinstance(model, GPT2LMHeadModel) else ["q_proj", "down_proj"]
    config = peft.LoraConfig(r=2, target_modules=names, fan_in_fan_out=names[0] == "c_attn", lora_dropout=0.1)
    return peft.get_peft_model(model, config)


def trainer(model, callback, folder, steps=8, data=None, eval_dataset=None, callbacks=(), **options):
    silent = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no", "logging_steps": 2}
    sizes = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "learning_rate": 5e-3}
    args = TrainingArguments(output_dir=str(folder), max_steps=steps, **(silent | sizes | options))
    callbacks = [*callbacks, *([callback] if callback else [])]
    data = NEW(20) if data is None else data
    return Trainer(model, args, train_dataset=data, eval_dataset=eval_dataset, callbacks=callbacks)


def train(model, callback, folder, steps=8, resume=None, **options):
    made = trainer(model, callback, folder, steps, **options)
    made.train(resume_from_checkpoint=resume)
    return made


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left.parameters(), right.parameters(), strict=True))


class Dies(TrainerCallback):
    """Ends a training in the middle of a step, as a kill does: nothing is told of it."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError("killed")


class Sees(TrainerCallback):
    """What a reporter sees, which comes before the user's callbacks."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))

    def told(self):
        """What is said of the protection."""
        told = [{n: v for n, v in log.items() if n.startswith(("old_", "plasticity_"))} for log in self.logs]
        return [log for log in told if log]


# ---- the training --------------------------------------------------------------------------------------------------


def by_hand(model, plasticity, folder, accumulate, clip, **options):
    """What the Trainer should do, with the optimizer attached by hand."""
    made = trainer(model, None, folder, gradient_accumulation_steps=accumulate, max_grad_norm=clip, **options)
    optimizer, scheduler = made.create_optimizer(), made.create_scheduler(8)
    plasticity.attach(optimizer)
    torch.manual_seed(made.args.seed)
    model.train()
    batches = []
    while len(batches) < 8 * accumulate:
        loader = made.get_train_dataloader()
        loader.set_epoch(len(batches) // len(loader))
        batches += list(loader)
    for step in range(8):
        some = batches[step * accumulate : (step + 1) * accumulate]
        number = made._get_num_items_in_batch(some, torch.device("cpu"))
        for batch in some:
            model(**batch, num_items_in_batch=number).loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("make", "accumulate", "clip"),
    [(gpt2, 1, 0.0), (gpt2, 2, 0.0), (gpt2, 1, 0.3), (llama, 1, 1.0)],
    ids=["gpt2", "accumulated", "clipped", "llama"],
)
def test_training_is_that_of_a_loop_by_hand(tmp_path, make, accumulate, clip):
    options = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if make is gpt2 else {}
    model, twin, free = (make(**options) for _ in range(3))
    data = NEW(20 * accumulate)
    old = OLD(16)
    callback = PlasticityCallback(alpha=100.0, old_data=old)
    settings = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip, "data": data[: 20 * accumulate]}
    train(model, callback, tmp_path, **settings)

    plasticity = WeightPlasticity(twin.parameters(), alpha=100.0)
    kept = [e["input_ids"] for i, e in enumerate(old) if i not in {0, 4, 8, 12}]  # every fourth measures the loss
    tokens = torch.stack(kept)
    targets = F.pad(tokens[:, 1:], (0, 1), value=-100)
    twin.config.use_cache = False
    importance = diagonal_fisher(
        twin,
        [({"input_ids": x}, y) for x, y in zip(tokens.split(4), targets.split(4), strict=True)],
        per_token,
        per="target",
    )
    plasticity.consolidate(twin, importance)
    by_hand(twin, plasticity, tmp_path, accumulate, clip, data=settings["data"])
    assert same(model, twin)
    train(free, None, tmp_path, **settings)
    assert not same(model, free)


def per_token(outputs, targets):
    return F.cross_entropy(outputs.logits.mT, targets, reduction="none")


def test_what_was_known_is_kept(tmp_path):
    old, held_out = examples(400_000, 100), examples(450_000, 100)

    def loss(model):
        model.eval()
        with torch.no_grad():
            return float(model(**{name: torch.stack([e[name] for e in held_out]) for name in held_out[0]}).loss)

    pretrained = gpt2(n_layer=1)
    train(pretrained, None, tmp_path, 100, data=old, per_device_train_batch_size=16, learning_rate=2e-2)
    before, after = loss(pretrained), {}
    shuffled = [{name: value.flip(0) for name, value in e.items()} for e in NEW(40)]  # text backwards
    for name, callback in {
        "free": None,
        "old data": PlasticityCallback(alpha=100.0, old_data=old, damping=1e-3),
        "own samples": PlasticityCallback(alpha=100.0, samples=64, damping=1e-3),
        "tolerance": PlasticityCallback(tolerance=0.02, old_data=old, damping=1e-3, calibrate_every=5),
    }.items():
        model = copy.deepcopy(pretrained)
        train(model, callback, tmp_path, 40, data=shuffled)
        after[name] = loss(model) - before
    assert after["free"] > 0.1
    assert after["old data"] < after["free"] / 2
    assert after["own samples"] < after["free"] / 2
    assert after["tolerance"] < 0.04


# ---- checkpoints ---------------------------------------------------------------------------------------------------

PROTECTIONS = {
    "alpha": lambda: PlasticityCallback(alpha=30.0, old_data=OLD(16)),
    "tolerance": lambda: PlasticityCallback(tolerance=1e-4, samples=8, sample_length=LENGTH, calibrate_every=2),
}


def killed_and_resumed(make, protection, folder, **options):
    """A model that was trained without a stop, and one whose training was killed between two checkpoints."""
    whole, killed, resumed = make(), make(), make()
    sees = Sees()
    train(whole, protection(), folder / "whole", callbacks=[sees], **options)
    options |= {"save_strategy": "steps", "save_steps": 3, "save_total_limit": 1}
    with pytest.raises(RuntimeError, match="killed"):
        train(killed, protection(), folder / "killed", callbacks=[Dies(5)], **options)
    callback, sees_again = protection(), Sees()
    train(resumed, callback, folder / "killed", resume=True, callbacks=[sees_again], **options)
    assert sees.told()[1:] == sees_again.told()
    assert any(told["plasticity_alpha"] > 0 for told in sees_again.told())
    return whole, resumed


MODELS = {"gpt2": gpt2, "lora": lambda: with_lora(gpt2()), "llama-lora": lambda: with_lora(llama())}


@pytest.mark.parametrize(
    ("make", "protection"),
    [("gpt2", "alpha"), ("gpt2", "tolerance"), ("lora", "alpha"), ("lora", "tolerance"), ("llama-lora", "alpha")],
)
def test_a_killed_and_resumed_training_is_one_never_stopped(tmp_path, make, protection):
    whole, resumed = killed_and_resumed(MODELS[make], PROTECTIONS[protection], tmp_path)
    assert same(whole, resumed)
    free = MODELS[make]()
    train(free, None, tmp_path / "free")
    assert not same(whole, free)


OPTIMS = ["adamw_torch", "adafactor", "sgd", "rmsprop"]


@pytest.mark.parametrize("optim", OPTIMS)
def test_every_optimizer_is_followed_and_resumed(tmp_path, optim):
    make = functools.partial(gpt2, n_layer=1)
    whole, resumed = killed_and_resumed(make, PROTECTIONS["alpha"], tmp_path, optim=optim)
    assert same(whole, resumed)
    free = make()
    train(free, None, tmp_path / "free", optim=optim)
    assert not same(whole, free)


def test_many_small_weights_under_a_tolerance_are_resumed(tmp_path):
    make = functools.partial(gpt2, n_layer=6)  # 76 weights, which are drawn as a few flat ones
    whole, resumed = killed_and_resumed(make, PROTECTIONS["tolerance"], tmp_path)
    assert same(whole, resumed)


def test_the_checkpoint_decides_and_says_so(tmp_path):
    train(gpt2(), PROTECTIONS["alpha"](), tmp_path, 3, save_strategy="steps", save_steps=3)
    callback = PlasticityCallback(alpha=1.0, old_data=OLD(16))
    with pytest.warns(UserWarning, match=r"The checkpoint has \(alpha, tolerance, damping\) = \(30.0, None, 0.0\)"):
        train(gpt2(), callback, tmp_path, 5, resume=tmp_path / "checkpoint-3")
    assert callback.plasticity.alpha == 30.0


@pytest.mark.parametrize("why", ["save_only_model", "saved without it"])
def test_a_checkpoint_without_the_state_is_refused(tmp_path, why):
    only_model = why == "save_only_model"
    callback = PROTECTIONS["alpha"]() if only_model else None
    train(gpt2(), callback, tmp_path, 3, save_strategy="steps", save_steps=3, save_only_model=only_model)
    with pytest.raises(InputError, match="Expected the plasticity's state in the checkpoint of step 3, but got none"):
        train(gpt2(), PROTECTIONS["alpha"](), tmp_path, 5, resume=True)


def test_an_optimizer_that_saves_in_its_own_way_is_told_of(tmp_path):
    class Own(torch.optim.SGD):
        def state_dict(self):
            (group,) = self.param_groups
            return {"state": {}, "param_groups": [group | {"params": list(range(len(group["params"])))}]}

    model = gpt2(n_layer=1)
    made = trainer(model, PROTECTIONS["alpha"](), tmp_path, 1, save_strategy="steps", save_steps=1)
    made.optimizer = Own(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="without that of the plasticity: a run that is resumed"):
        made.train()


def test_the_best_model_is_loaded_at_the_end(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    callback = PROTECTIONS["alpha"]()
    options |= {"load_best_model_at_end": True, "save_total_limit": 1, "eval_dataset": NEW(8)}
    made = train(gpt2(), callback, tmp_path, 6, **options)
    assert made.state.best_model_checkpoint is not None
    assert callback.plasticity.expected_increase() > 0  # of the weights that were loaded, from the anchors of the start
    assert not made.optimizer.optimizer._optimizer_step_post_hooks
    assert not made.optimizer.optimizer._optimizer_state_dict_post_hooks


# ---- what is protected ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"old_data": OLD(16)}, {"samples": 8, "sample_length": LENGTH}], ids=["old", "own"]
)
def test_without_strength_it_is_plain_training(tmp_path, options):
    """Fisher, own samples and measurements draw nothing from where training draws its dropout."""
    model, plain = gpt2(), gpt2()
    train(model, PlasticityCallback(alpha=0.0, **options), tmp_path)
    train(plain, None, tmp_path)
    assert same(model, plain)


def test_a_fresh_adapter_is_anchored_at_a_product_of_zero(tmp_path):
    model = with_lora(gpt2())
    callback = PROTECTIONS["alpha"]()
    train(model, callback, tmp_path, 2)
    plasticity = callback.plasticity
    held = {n: plasticity.anchor(p) for n, p in model.named_parameters() if p.requires_grad}
    assert len(held) == len(plasticity.shared_parameters) == 8  # and nothing of the model inside
    for name, anchor in held.items():
        weight = model.get_parameter(name)
        assert bool(anchor.any()) == ("lora_A" in name)
        assert bool(plasticity.importance(weight).any()) == ("lora_B" in name)
        assert bool(weight.any())


def test_the_logs_reach_the_reporters_and_the_history(tmp_path):
    sees = Sees()
    made = train(gpt2(), PROTECTIONS["alpha"](), tmp_path, 4, callbacks=[sees])
    assert [list(told) for told in sees.told()] == 2 * [
        ["plasticity_alpha", "plasticity_expected_increase", "old_loss", "old_loss_increase"]
    ]
    assert made.state.log_history[0].items() >= sees.told()[0].items()
    assert json.loads(json.dumps(made.state.log_history)) == made.state.log_history


def test_the_old_loss_is_that_of_examples_that_the_fisher_does_not_see(tmp_path):
    sees, model, old = Sees(), gpt2(), OLD(16)
    tokens = torch.stack([old[i]["input_ids"] for i in (0, 4, 8, 12)])
    with torch.no_grad():
        first = float(model.eval()(tokens, labels=tokens).loss)
    train(model, PlasticityCallback(alpha=1.0, old_data=old), tmp_path, 2, callbacks=[sees])
    with torch.no_grad():
        last = float(model.eval()(tokens, labels=tokens).loss)
    (told,) = sees.told()
    assert told["old_loss"] == pytest.approx(last, rel=1e-5)
    assert told["old_loss_increase"] == pytest.approx(last - first, abs=1e-5)


def test_one_train_protects_the_model_that_it_starts_from(tmp_path):
    model, callback = gpt2(), PROTECTIONS["alpha"]()
    made = train(model, callback, tmp_path, 2)
    first, start = callback.plasticity, model.transformer.wte.weight.detach().clone()
    made.train()
    assert callback.plasticity is not first
    assert torch.equal(callback.plasticity.anchor(model.transformer.wte.weight), start)


class RunsOutOfMemory(TrainerCallback):
    """Once, after two steps."""

    has = False

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2 and not self.has:
            self.has = True
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_smaller_batches_after_too_large_ones_keep_the_first_anchor(tmp_path):
    model, callback = gpt2(n_layer=1), PROTECTIONS["alpha"]()
    start = model.transformer.wte.weight.detach().clone()
    made = train(model, callback, tmp_path, 4, callbacks=[RunsOutOfMemory()], auto_find_batch_size=True)
    assert made.state.train_batch_size < 4
    assert torch.equal(callback.plasticity.anchor(model.transformer.wte.weight), start)
    assert not made.optimizer.optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize("old", [None, OLD(16)], ids=["", "measured"])
def test_a_plasticity_that_is_consolidated_is_taken_as_it_is(tmp_path, old):
    model = gpt2()
    plasticity = WeightPlasticity(model.transformer.parameters(), alpha=1e8)
    plasticity.consolidate(model, {n: torch.ones_like(p) for n, p in model.named_parameters()})
    before = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
    sees = Sees()
    train(model, PlasticityCallback(plasticity, old_data=old), tmp_path, 4, callbacks=[sees])
    assert torch.allclose(model.transformer.h[0].mlp.c_fc.weight, before, atol=1e-4)
    assert torch.equal(plasticity.importance(model.transformer.wte.weight), torch.ones(WORDS, 16))
    assert ("old_loss" in sees.told()[0]) == (old is not None)


def test_a_plasticity_says_what_is_protected(tmp_path):
    model = gpt2()
    plasticity = WeightPlasticity(model.transformer.h, alpha=1e4)
    train(model, PlasticityCallback(plasticity, old_data=OLD(16)), tmp_path, 2)
    assert plasticity.anchor(model.transformer.h[0].mlp.c_fc.weight) is not None
    assert len(plasticity.shared_parameters) == 24


def test_a_plasticity_of_an_earlier_model_is_told_of(tmp_path):
    model = gpt2(n_layer=1)
    plasticity = WeightPlasticity(model)
    train(model, PlasticityCallback(plasticity, old_data=OLD(8)), tmp_path, 1)
    with pytest.warns(UserWarning, match="and not where this training starts; old examples only measure"):
        train(model, PlasticityCallback(plasticity, old_data=OLD(8)), tmp_path, 1)
    plasticity.reset()
    train(model, PlasticityCallback(plasticity, old_data=OLD(8)), tmp_path, 1)


def test_embeddings_that_were_resized_are_refused_until_they_are_replaced(tmp_path):
    model = gpt2(n_layer=1)
    plasticity = WeightPlasticity(model, alpha=1e8)
    plasticity.consolidate(model, {n: torch.ones_like(p) for n, p in model.named_parameters()})
    old = model.transformer.wte.weight
    before = old.detach().clone()
    model.resize_token_embeddings(WORDS + 3, mean_resizing=False)
    with pytest.raises(ValueError, match=r"Expected an anchor in its weight's shape \(67, 16\), but got \(64, 16\)"):
        train(model, PlasticityCallback(plasticity), tmp_path)
    plasticity.replace(old, model.transformer.wte.weight)
    train(model, PlasticityCallback(plasticity), tmp_path)
    assert torch.allclose(model.transformer.wte.weight[:WORDS], before, atol=1e-4)


def bert(kind, **options):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(BertConfig(vocab_size=WORDS, max_position_embeddings=LENGTH, **size, **options))


def test_a_classifier_has_one_target_per_example(tmp_path):
    model = bert(BertForSequenceClassification, num_labels=3)
    data = [{"input_ids": e["input_ids"], "labels": int(e["input_ids"][0]) % 3} for e in OLD(16)]
    callback, twin = PlasticityCallback(alpha=1.0, old_data=data), copy.deepcopy(model)
    train(model, callback, tmp_path, 1, data=data)
    kept = [e for i, e in enumerate(data) if i % 4]
    batch = torch.stack([e["input_ids"] for e in kept]), torch.tensor([e["labels"] for e in kept])
    expected = diagonal_fisher(twin, [batch], lambda o, y: F.cross_entropy(o.logits, y))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(callback.plasticity.importance(weight), expected[name])


class Masks:
    """A collator that draws, as one of masked language models."""

    def __call__(self, rows):
        tokens = torch.stack([row["input_ids"] for row in rows])
        hidden = torch.rand(tokens.shape) < 0.3
        return {"input_ids": tokens.masked_fill(hidden, 2), "labels": tokens.where(hidden, -100)}


def test_a_collator_that_draws_hides_the_same_words_each_time(tmp_path):
    sees = [Sees(), Sees()]
    models = bert(BertForMaskedLM), bert(BertForMaskedLM)
    for each, model, old in zip(sees, models, (OLD(16), None), strict=True):
        callback = None if old is None else PlasticityCallback(alpha=0.0, old_data=old)
        made = trainer(model, callback, tmp_path, 4, callbacks=[each], learning_rate=0.0)
        made.data_collator = Masks()
        made.train()
    assert [told["old_loss_increase"] for told in sees[0].told()] == [0.0, 0.0]
    assert [log.get("loss") for log in sees[0].logs] == [log.get("loss") for log in sees[1].logs]


def test_drawing_leaves_every_generator_as_it_was():
    before = generators()
    draws = []
    for _ in range(2):
        with fixed_randomness(3):
            draws.append((torch.rand(2).tolist(), random.random(), np.random.rand()))  # noqa: NPY002
    assert draws[0] == draws[1]
    assert generators() == before


def generators():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"gradient_checkpointing": True}, {"label_smoothing_factor": 0.1}], ids=str
)
def test_other_ways_to_train_are_protected(tmp_path, options):
    increases = {}
    for alpha in (0.0, 1e6):
        model, callback = gpt2(n_layer=1), PlasticityCallback(alpha=alpha, old_data=OLD(16))
        train(model, callback, tmp_path, 4, **options)
        increases[alpha] = callback.plasticity.expected_increase()
    assert 0 < increases[1e6] < increases[0.0] / 100


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Expected something to protect, but got none of old_data, samples and a consolidated"),
        ({"alpha": 1.0}, "Expected something to protect"),
        ({"plasticity": WeightPlasticity(())}, "Expected something to protect"),
        ({"old_data": [], "samples": 3}, "Expected old_data or samples, but got both"),
        ({"plasticity": WeightPlasticity(()), "alpha": 1.0, "samples": 3}, "Expected a plasticity or its options"),
        ({"samples": 0}, "Expected samples and calibrate_every of at least 1"),
        ({"samples": 3, "sample_length": 1}, "and sample_length of at least 2"),
        ({"samples": 3, "alpha": 1.0, "tolerance": 0.1}, "Expected alpha or tolerance, but got both"),
        ({"samples": 3, "alpha": -1.0}, "Expected alpha to be finite and at least 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PlasticityCallback(**options)


UNLABELLED = [{"input_ids": torch.arange(LENGTH)}] * 8


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (gpt2, {"old_data": UNLABELLED}, "Expected old examples with labels, but got a batch of input_ids"),
        (gpt2, {"old_data": []}, "Expected old_data with at least one example"),
        (gpt2, {"old_data": ["In the beginning"]}, "Expected old examples as the Trainer's collator takes them"),
        (
            functools.partial(gpt2, bos_token_id=None, eos_token_id=None),
            {"samples": 4},
            "Expected a model with a token to",
        ),
        (
            functools.partial(bert, BertForMaskedLM, bos_token_id=1),
            {"samples": 4, "sample_length": 4},
            "Expected a causal language model to write samples, but got BertForMaskedLM",
        ),
    ],
    ids=["no labels", "no examples", "no tokens", "no first token", "not causal"],
)
def test_what_cannot_be_protected_is_refused(tmp_path, make, options, message):
    with pytest.raises(InputError, match=message):
        train(make(), PlasticityCallback(**options), tmp_path)


class OtherLoss(GPT2LMHeadModel):
    """Whose loss is not the cross entropy."""

    def forward(self, input_ids=None, labels=None, **kwargs):
        outputs = super().forward(input_ids, labels=labels, **kwargs)
        if labels is not None:
            outputs.loss = outputs.loss + outputs.logits.square().mean() + 0.1
        return outputs


def test_another_loss_has_to_be_given(tmp_path):
    def make():
        return OtherLoss(gpt2(n_layer=1).config)

    with pytest.raises(InputError, match=r"mean cross entropy of its labels, shifted by one or not, but got a loss of"):
        train(make(), PROTECTIONS["alpha"](), tmp_path)
    model, callback = make(), PlasticityCallback(alpha=1.0, old_data=OLD(8), loss_fn=shifted_loss)
    train(model, callback, tmp_path, 1)
    assert callback.plasticity.importance(model.transformer.wte.weight).any()


def shifted_loss(outputs, labels):
    return F.pad(F.cross_entropy(outputs.logits[:, :-1].mT, labels[:, 1:], reduction="none"), (0, 1))


def test_an_optimizer_that_steps_during_the_backward_pass_is_refused(tmp_path):
    model = gpt2(n_layer=1)
    made = trainer(model, PROTECTIONS["alpha"](), tmp_path)
    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    with pytest.raises(InputError, match="Expected gradients of the protected weights at the optimizer's step"):
        made.train()


def test_an_optimizer_that_no_step_can_follow_is_refused(tmp_path):
    model = gpt2(n_layer=1)
    made = trainer(model, PROTECTIONS["alpha"](), tmp_path)
    made.optimizer = torch.optim.Rprop(model.parameters())
    with pytest.raises(ValueError, match="Expected an optimizer that a proximal step can follow, but got Rprop"):
        made.train()


def test_an_optimizer_of_other_weights_is_refused(tmp_path):
    made = trainer(gpt2(n_layer=1), PROTECTIONS["alpha"](), tmp_path)
    made.optimizer = torch.optim.SGD(gpt2(n_layer=1).parameters())
    with pytest.raises(ValueError, match="Expected an optimizer of some of the shared parameters"):
        made.train()


@pytest.mark.parametrize("kind", ["DEEPSPEED", "FSDP"])
def test_weights_in_shards_are_refused(tmp_path, kind, monkeypatch):
    made = trainer(gpt2(n_layer=1), PROTECTIONS["alpha"](), tmp_path)
    monkeypatch.setitem(PartialState._shared_state, "distributed_type", DistributedType[kind])
    with pytest.raises(InputError, match=rf"but got a Trainer that shards them \({kind}\)"):
        made.callback_handler.on_train_begin(made.args, made.state, made.control)


def test_a_tolerance_that_is_not_calibrated_is_told_of(tmp_path):
    model = gpt2(n_layer=1)
    plasticity = WeightPlasticity(model, tolerance=0.1)
    plasticity.consolidate(model, {n: torch.ones_like(p) for n, p in model.named_parameters()})
    with pytest.warns(UserWarning, match="A tolerance that is not calibrated may be exceeded"):
        train(model, PlasticityCallback(plasticity), tmp_path, 1)


def test_the_lines_of_the_documentation(tmp_path):
    text = (Path(__file__).parents[1] / "docs" / "integrations.md").read_text(encoding="utf-8")
    code = text.partition("## Hugging Face Trainer")[2].partition("```python\n")[2].partition("```")[0]
    assert len(code.strip().splitlines()) == 4
    args = TrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to=[], disable_tqdm=True)
    names = {"Trainer": Trainer, "model": gpt2(), "args": args, "old_dataset": OLD(8), "new_dataset": NEW(8)}
    exec(code, names)
    assert names["callback"].plasticity.expected_increase() > 0


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "lora"])
def test_trl_fine_tunes_with_the_same_callback(tmp_path, lora):
    trl = pytest.importorskip("trl", reason="needs TRL, which is in no extra")
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    vocabulary = {"<unk>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, WORDS)}}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")), eos_token="<eos>", pad_token="<eos>"
    )
    tokens = {"input_ids": [e["input_ids"].tolist() for e in NEW(20)]}
    silent = {"use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 2, "bf16": False}
    whole, resumed = (with_lora(gpt2()) if lora else gpt2() for _ in range(2))

    def run(model, folder, resume=None, **options):
        args = trl.SFTConfig(
            output_dir=str(tmp_path / folder),
            max_steps=8,
            per_device_train_batch_size=4,
            max_length=LENGTH,
            learning_rate=5e-3,
            **silent,
            **options,
        )
        sees, old = Sees(), [{"input_ids": e["input_ids"].tolist()} for e in OLD(16)]
        callback = PlasticityCallback(alpha=30.0, old_data=old)
        made = trl.SFTTrainer(
            model, args, train_dataset=Dataset.from_dict(tokens), processing_class=tokenizer, callbacks=[sees, callback]
        )
        made.train(resume_from_checkpoint=resume)
        return sees.told()

    told = run(whole, "run", save_strategy="steps", save_steps=3)
    assert all(log["plasticity_expected_increase"] > 0 for log in told)
    again = run(resumed, "other", tmp_path / "run" / "checkpoint-3", save_strategy="no")
    assert again == told[1:]
    assert same(whole, resumed)
