"""Models from a folder of Hugging Face as the start of a fine-tuning, made here: tiny, with a tokenizer of verses."""

import importlib.util
import json
import shutil
from dataclasses import replace

import pytest
import torch

from forgetless import diagonal_fisher, sample_text
from forgetless.cli import main
from forgetless.errors import InputError
from forgetless.experiments.base import load_config
from forgetless.experiments.fine_tune import FineTuneRun
from forgetless.experiments.fine_tune.hugging_face import FolderModel
from forgetless.experiments.fine_tune.running import run
from forgetless.experiments.fine_tune.text import Lines, Windows, load_lines, next_token_loss, next_token_losses
from forgetless.protection import make_protection
from forgetless.runs import RunFolder
from forgetless.training import train

transformers = pytest.importorskip("transformers", reason="needs the extra `transformers`")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `transformers`")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
VERSES = load_lines("kjv-nt").splits["validation"][:60]
TEXT = Lines("verses", dict.fromkeys(("train", "importance", "validation", "test"), VERSES))


def tokenizer_of(kind="words", **special):
    """Word pieces of a few verses, of which it knows every letter; `bytes` knows everything."""
    if kind == "bytes":
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet, names = tokenizers.pre_tokenizers.ByteLevel.alphabet(), ["<|endoftext|>"]
        special = {"bos_token": names[0], "eos_token": names[0], "unk_token": names[0]} | special
    else:
        made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        alphabet, names = [], ["<unk>", "<s>"]
        special = {"unk_token": "<unk>", "bos_token": "<s>"} | special
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=320, special_tokens=names, show_progress=False, initial_alphabet=alphabet
    )
    made.train_from_iterator(VERSES, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def gpt2(num_tokens, **options):
    torch.manual_seed(0)
    size = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24, "bos_token_id": 1, "eos_token_id": 1}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=num_tokens, **(size | options)))


def llama(num_tokens, kind="LlamaForCausalLM", **options):
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return getattr(transformers, kind)(transformers.LlamaConfig(vocab_size=num_tokens, **(size | options)))


def bert(num_tokens):
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=num_tokens, **size))


def t5(num_tokens):
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=num_tokens, **size))


def save(folder, make=gpt2, tokenizer=None, **options):
    tokenizer = tokenizer or tokenizer_of()
    model = make(len(tokenizer), **options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "gpt2")[0]


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("kind", ["words", "bytes"])
def test_a_folder_gives_its_weights_its_tokens_and_its_context(tmp_path, make, kind, capfd):
    tokenizer = tokenizer_of(kind)
    name, model = save(tmp_path / "model", make, tokenizer)
    capfd.readouterr()
    start = FolderModel(name, 32)
    assert capfd.readouterr() == ("", "")
    assert start.is_trained
    assert start.context == (24 if make is gpt2 else 32)
    assert FolderModel(name, 8).context == 8
    assert start.language.num_tokens == len(tokenizer)
    assert start.language.first == 1
    tokens = start.language.encode(["In the beginning", "", "was the Word"])
    pieces = [tokenizer.encode(line, add_special_tokens=False) for line in ("In the beginning", "was the Word")]
    assert tokens.dtype == torch.int64
    assert tokens.tolist() == [1, *pieces[0], 1, 1, *pieces[1]]
    made = start.make(0)
    assert made is not start.make(0)
    assert all(torch.equal(p, q) for p, q in zip(made.parameters(), model.parameters(), strict=True))
    made.train()  # without dropout that is the same
    rows = tokens[None, :8]
    assert torch.equal(made(rows).logits, model.eval()(rows).logits)


def test_weights_in_half_precision_and_of_another_file_format_are_trained_in_float32(tmp_path):
    name, model = save(tmp_path / "model")
    model.bfloat16().save_pretrained(name)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    made = FolderModel(name, 16).make(0)
    assert {p.dtype for p in made.parameters()} == {torch.float32}
    assert all(torch.equal(p, q.float()) for p, q in zip(made.parameters(), model.parameters(), strict=True))


def test_unknown_is_a_share_of_tokens_whatever_a_tokenizer_does_with_what_it_does_not_know(tmp_path, folder):
    known = FolderModel(folder, 16).language
    assert known.unknown(VERSES) == 0
    assert known.unknown([]) == 0
    word = known.encode(["the"]).tolist()[1:]
    assert known.unknown(["the the Ω"]) == pytest.approx(1 / (2 * len(word) + 1))
    assert known.unknown(["ΩΨ ΔΞ"]) == 1
    leaves_out = tokenizer_of()
    leaves_out.backend_tokenizer.model = tokenizers.models.BPE(
        vocab=leaves_out.get_vocab(),
        merges=[tuple(m) for m in json.loads(leaves_out.backend_tokenizer.to_str())["model"]["merges"]],
    )
    name, _ = save(tmp_path / "leaves-out", gpt2, leaves_out)
    assert FolderModel(name, 16).language.unknown(["ΩΨ ΔΞ"]) == 1
    name, _ = save(tmp_path / "bytes", gpt2, tokenizer_of("bytes"))
    assert FolderModel(name, 16).language.unknown(["ΩΨ ΔΞ"]) == 0


def test_a_text_in_another_alphabet_is_refused(folder):
    start = FolderModel(folder, 16)
    greek = Lines("greek", dict.fromkeys(TEXT.splits, ["Ἐν ἀρχῇ ἦν ὁ λόγος"] * 40))
    with pytest.raises(InputError, match=r"shares its vocabulary with the model, but \d+ % of greek are unknown to it"):
        Windows(greek, start.language, 4, start.context)


def test_own_samples_and_the_fisher_are_those_of_the_model(folder):
    start = FolderModel(folder, 16)
    model = start.make(0)
    prompts = torch.full((6, 1), start.language.first)
    texts = sample_text(model, prompts, 8, generator=torch.Generator().manual_seed(0))
    assert texts.shape == (6, 9)
    batches = [(part[:, :-1], part[:, 1:]) for part in texts.split(3)]
    fisher = diagonal_fisher(model, batches, next_token_losses, per="target")
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for text in texts:  # E[(Σ_t ∂ℓ_t)²]/T, text by text
        loss = next_token_loss(model(text[None, :-1]), text[None, 1:]) * 8
        for name, gradient in zip(wanted, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            wanted[name] += gradient.square() / 8 / 6
    for name, value in wanted.items():
        torch.testing.assert_close(fisher[name], value, rtol=1e-3, atol=1e-9)


def test_lora_lowers_the_loss_on_new_text_and_leaves_the_model(folder):
    pytest.importorskip("peft", reason="needs the extra `transformers`")
    start = FolderModel(folder, 16)
    model = start.make(0)
    text = Windows(TEXT, start.language, 4, start.context)
    before = text.error(model, "test", 8)
    protection = make_protection("lora", list(model.parameters()), strength=2)
    trained = protection.adapted(model)
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], lr=0.01)
    batches = text.training_batches(30, torch.Generator().manual_seed(0))
    train(batches, lambda batch: next_token_loss(trained(batch[0]), batch[1]), optimizer, protection)
    assert text.error(trained, "test", 8) < before - 0.02
    assert text.error(model, "test", 8) == before


# ---- bad input -----------------------------------------------------------------------------------------------------


def without(folder, tmp_path, *patterns):
    """A copy of a folder without some of its files."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    for pattern in patterns:
        for path in target.glob(pattern):
            path.unlink()
    return target


def refused(folder, told):
    with pytest.raises(InputError, match=told) as caught:
        FolderModel(str(folder), 16)
    assert "\n" not in str(caught.value)


def test_folders_that_lack_a_part_are_refused(folder, tmp_path):
    refused(tmp_path / "gone", r"Expected the folder of a Hugging Face model, but got .*gone, which does not exist")
    refused("gpt2-of-the-hub", r"gpt2-of-the-hub, which does not exist. Nothing is downloaded")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "which is a file")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"Expected a config.json in .*, but got none: save the model there")
    (tmp_path / "empty" / "adapter_config.json").touch()
    refused(tmp_path / "empty", r"Expected a config.json in .*, but got none: it is an adapter of PEFT; merge it")
    refused(
        without(folder, tmp_path / "1", "*.safetensors"), r"Expected weights in .*model.safetensors.*, but got none"
    )
    refused(without(folder, tmp_path / "2", "tokenizer*"), r"Expected a tokenizer in .*, but got none")


def test_folders_with_damaged_files_are_refused(folder, tmp_path):
    for name, told in (
        ("config.json", "configuration"),
        ("model.safetensors", "model"),
        ("tokenizer.json", "tokenizer"),
    ):
        target = without(folder, tmp_path / name)
        (target / name).write_text("{")
        refused(target, rf"Expected a {told} in .* that transformers can load, but got \w+: ")


def test_models_that_cannot_write_are_refused(tmp_path):
    refused(save(tmp_path / "t5", t5)[0], r"Expected a causal language model, .*, but got t5")
    refused(save(tmp_path / "bert", bert)[0], r"Expected a causal language model, .*, but got BertLMHeadModel")
    without_output = save(tmp_path / "llama", llama, kind="LlamaModel")[0]
    refused(without_output, r"Expected all weights of a causal language model in .*, but got none for lm_head.weight")
    no_first = save(tmp_path / "gpt2", gpt2, tokenizer_of(bos_token=None), bos_token_id=None, eos_token_id=None)[0]
    refused(no_first, r"a token to begin texts with, but got None as bos_token_id")
    other = save(tmp_path / "other")[0]
    gpt2(100).save_pretrained(other)
    refused(other, r"Expected a tokenizer of the model in .*, but got one of \d+ tokens for a model of 100")


def test_without_transformers_one_sentence_names_the_extra(folder, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    refused(folder, r"Expected the package transformers .*, but got none. .*forgetless\[transformers\]")


# ---- the command ---------------------------------------------------------------------------------------------------

ADAPTERS = ["lora", "osf"] if importlib.util.find_spec("peft") else []
SIZES = {"steps": 4, "seeds": 1, "samples": 4, "batch-size": 2, "evaluate-every": 4, "context": 12}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Folders of an old and a new text."""
    made = tmp_path_factory.mktemp("texts")
    verses = {"old": VERSES, "new": load_lines("kjv-nt").splits["importance"][:60]}
    for name, lines in verses.items():
        (made / name).mkdir()
        for split, part in (("train", lines[:40]), ("valid", lines[40:50]), ("test", lines[50:])):
            (made / name / f"{split}.txt").write_text("\n".join(part))
    return made


def command(folder, texts, *protections):
    sizes = (word for name, value in SIZES.items() for word in (f"--{name}", str(value)))
    of = ("--model", str(folder), "--old", str(texts / "old"), "--to", str(texts / "new"))
    return ["fine-tune", *of, *sizes, "--protection", *protections]


def test_a_folder_is_fine_tuned_by_the_command_and_goes_on_where_it_was_stopped(texts, tmp_path, capsys):
    name = save(tmp_path / "llama", llama)[0]
    path, protections = tmp_path / "run", ["none", "wpl", "wise-ft", "replay", "lwf", *ADAPTERS]
    assert main([*command(name, texts, *protections), "--output", str(path)]) == 0
    assert "Fine-tuned on new" in capsys.readouterr().out
    folder = RunFolder(path)
    config = load_config(folder)
    made = FineTuneRun.read(config, folder)
    assert [record.protection for record in made] == protections
    assert all(record.old_before == pytest.approx(5.7, abs=0.2) for record in made)
    assert all(record.new_after < record.new_before for record in made)
    again = run(config, finished=made[:2]).runs  # as if stopped in the third arm
    assert [replace(record, seconds=0.0) for record in again] == [replace(record, seconds=0.0) for record in made]


def test_the_command_refuses_before_it_writes_anything(texts, folder, tmp_path, capsys, monkeypatch):
    def told(*words):
        assert main([*words, "--output", str(tmp_path / "run")]) == 2
        assert not (tmp_path / "run").exists()
        return capsys.readouterr().err

    assert "which does not exist" in told(*command(tmp_path / "gone", texts, "none"))
    greek = tmp_path / "greek"
    greek.mkdir()
    for split in ("train", "valid", "test"):
        (greek / f"{split}.txt").write_text("Ἐν ἀρχῇ ἦν ὁ λόγος\n" * 40)
    assert "are unknown to it" in told(*command(folder, texts, "none"), "--to", str(greek))
    if ADAPTERS:
        assert "but got GPT2LMHeadModel with Conv1D. Leave osf out" in told(*command(folder, texts, "none", "osf"))
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "peft" else find(name))
        assert "Expected the package peft for lora, but got none" in told(*command(folder, texts, "none", "lora"))
