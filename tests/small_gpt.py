"""A folder with a small pretrained causal language model and its tokenizer, as transformers saves them."""

import random
from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

OLD = Path(__file__).parents[1] / "LICENSE"
NEW = Path(__file__).parents[1] / "docs" / "mathematics.md"


def pretrained_gpt(folder, new_text):
    """Trains a model of two layers on the text of a licence; writes another text beside it."""
    tokenizer = ByteLevelBPETokenizer()
    old = OLD.read_text(encoding="utf-8")
    tokenizer.train_from_iterator([old], vocab_size=400, show_progress=False)
    tokens = torch.tensor(tokenizer.encode(old).ids)
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": tokenizer.get_vocab_size()}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    optimizer, dice = torch.optim.AdamW(model.parameters(), lr=3e-3), random.Random(0)
    for _ in range(40):
        starts = [dice.randrange(len(tokens) - 64) for _ in range(16)]
        batch = torch.stack([tokens[start : start + 64] for start in starts])
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(folder)
    new_text.write_text(NEW.read_text(encoding="utf-8"), encoding="utf-8")
