"""Examples from the model itself, where those that it was trained on are not there any more."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from forgetless.errors import InputError
from forgetless.importance.labels import logits_of
from forgetless.importance.model import evaluating


@torch.no_grad()
def sample_text(
    model: nn.Module,
    prompts: Tensor,
    num_tokens: int,
    *,
    context: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw text from a causal language model, x_t ~ softmax(o_{t−1}): examples for its own Fisher information.

    Fishers from own samples and from the real old data are nearly proportional, so that a model protects itself
    without old data: `diagonal_fisher(model, sample_text(...).split(8), kind="monte_carlo")`. Every token is drawn
    from the whole distribution, at temperature 1: what is cut or sharpened is no sample of the model's.

    The model is in eval mode meanwhile, and left in the mode in which it was found. It is evaluated on the whole text
    before each token, unless it has a method `next_token_reader`. That is called once; what it returns is then called
    with the text before each token, (B, t), and returns the logits of the token, (B, V). It may keep what it computed
    of the tokens that it has seen. Where `context` cuts the beginning off, it gets as many tokens as before.

    Args:
        model: Maps tokens (B, t) to logits (B, t, V), or to outputs that hold them as `logits`.
        prompts: Where each text begins, integers (B, s) with s ≥ 1: a token for the beginning of a text, or first words
            drawn as they are frequent. Texts differ by their draws even where prompts are equal.
        num_tokens: To draw, at least 1.
        context: The model sees so many of the last tokens at most; None: all.
        generator: Draws the tokens; None: the global one.

    Returns:
        Tokens (B, s + num_tokens), the prompts first.

    Raises:
        InputError: If prompts are no (B, s) integers, or the model gives no logits for each of their tokens.

    Source: the sampling of Shin et al. 2017 (arXiv:1705.08690), who replay it; here it gives the inputs of a Fisher.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    >>> sample_text(model, torch.zeros(2, 1, dtype=torch.long), 6).shape
    torch.Size([2, 7])
    """
    if prompts.ndim != 2 or not prompts.shape[1] or prompts.is_floating_point():
        raise InputError(
            f"Expected prompts as integers of shape (texts, tokens) with at least one token, but got {prompts.dtype} "
            f"of shape {tuple(prompts.shape)}. Begin each text with a token, such as that of the beginning of a text."
        )
    if num_tokens < 1 or (context is not None and context < 1):
        raise InputError(f"Expected num_tokens and context of at least 1, but got {num_tokens} and {context}.")
    with evaluating(model):
        text, read = prompts, _reader_of(model)
        for _ in range(num_tokens):
            logits = read(text if context is None else text[:, -context:])
            drawn = torch.multinomial(logits.float().softmax(-1), 1, generator=generator)
            text = torch.cat([text, drawn.to(text.dtype)], 1)
        return text


def _reader_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """What maps texts (B, t) to the logits (B, V) of their next token: the model's own, or the whole model."""
    own = getattr(model, "next_token_reader", None)
    if own is not None:
        reader: Callable[[Tensor], Tensor] = own()
        return reader

    def read(seen: Tensor) -> Tensor:
        logits = logits_of(model(seen), "monte_carlo")
        if logits.shape[:-1] != seen.shape:
            raise InputError(
                f"Expected logits (texts, tokens, words) for tokens of shape {tuple(seen.shape)}, but got "
                f"{tuple(logits.shape)}. Pass a causal language model."
            )
        return logits[:, -1]

    return read


def first_token(model: nn.Module, advice: str) -> int:
    """The token that a model of transformers begins texts with: that of the beginning, or else of the end.

    Args:
        model: With a `config`, and a `generation_config`, which goes first.
        advice: For the message: what to do without one.

    Raises:
        InputError: If it has none within its vocabulary.
    """
    config: Any = model.config
    settings = (getattr(model, "generation_config", None), config)
    firsts = [getattr(s, f"{name}_token_id", None) for name in ("bos", "eos") for s in settings]
    first = next((f[0] if isinstance(f, list) else f for f in firsts if f is not None), None)
    if first is None or not 0 <= first < config.vocab_size:
        raise InputError(
            f"Expected a model with a token to begin texts with, but got {first} as bos_token_id of its config. "
            f"{advice}"
        )
    return int(first)


def own_texts(model: nn.Module, num: int, length: int, batch_size: int, seed: int, device: torch.device) -> Tensor:
    """Texts that a causal language model writes, each from its first token on, in (num, length).

    Args:
        model: With a `config` of transformers.
        num: How many texts.
        length: Tokens of each, the first included; fewer where the model has fewer positions.
        batch_size: Texts at a time.
        seed: Of what is drawn.
        device: Of the model.

    Raises:
        InputError: If the model has no token to begin with.
    """
    config: Any = model.config
    first = first_token(model, "Set it, or give old data, or texts that you sampled yourself.")
    length = min(length, getattr(config, "max_position_embeddings", None) or length)
    generator = torch.Generator(device).manual_seed(seed)
    with evaluated(model):
        prompts = torch.split(torch.full((num, 1), first, device=device), batch_size)
        return torch.cat([sample_text(model, each, length - 1, generator=generator) for each in prompts])


@contextlib.contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode, without the caches of keys and values that only generation needs.

    Args:
        model: Left in the modes that it was found in.
    """
    config: Any = getattr(model, "config", None)
    configs = {id(c): c for c in (config, _text_config(config)) if getattr(c, "use_cache", False)}.values()
    for each in configs:
        each.use_cache = False
    try:
        with evaluating(model):
            yield
    finally:
        for each in configs:
            each.use_cache = True


def _text_config(config: Any) -> Any:
    find = getattr(config, "get_text_config", None)
    return find() if callable(find) else None
