"""A model from a folder of Hugging Face to start from, with its own tokenizer; needs the extra `transformers`."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetless.data.files import expanded, kind_of
from forgetless.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model*.bin.index.json")


class FolderTokens:
    """A language that a tokenizer of Hugging Face knows.

    Args:
        tokenizer: Of the model.
        num_tokens: V, the size of the model's vocabulary.
        first: The token that stands before each line.

    Attributes:
        num_tokens: V.
        first: The token that stands before each line.
    """

    def __init__(self, tokenizer: Any, num_tokens: int, first: int) -> None:
        self._tokenizer = tokenizer
        self.num_tokens, self.first = num_tokens, first

    def encode(self, lines: Sequence[str]) -> Tensor:
        """Lines as one sequence of tokens, (num_tokens,) in int64, the first token before each line.

        Args:
            lines: Of text.
        """
        import torch

        encoded = self._encoded(lines)
        return torch.tensor([token for line in encoded for token in (self.first, *line)], dtype=torch.int64)

    def unknown(self, lines: Sequence[str]) -> float:
        """The share of a text's tokens that stand for what the tokenizer does not know.

        A word that it leaves out, as some do with what they do not know, is such a token.

        Args:
            lines: Of text.
        """
        words = Counter(word for line in lines for word in line.split())
        unknown, total = 0, 0
        for tokens, count in zip(self._encoded(list(words)), words.values(), strict=True):
            unknown += count * (tokens.count(self._tokenizer.unk_token_id) if tokens else 1)
            total += count * max(1, len(tokens))
        return unknown / max(1, total)

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        # Texts are longer than what the model reads at a time, of which the tokenizer would tell.
        found = self._tokenizer(list(texts), add_special_tokens=False, verbose=False) if texts else {"input_ids": []}
        tokens: list[list[int]] = found["input_ids"]
        return tokens


class FolderModel:
    """A causal language model from a folder, trained already: a `StartModel`.

    Nothing is downloaded, and no code of the folder is run. Weights are trained in float32. Dropout is off: arms differ
    by what protects them, and not by what is drawn.

    Args:
        folder: As `save_pretrained` of model and tokenizer writes it.
        context: The most tokens to read at a time; fewer where the model has fewer positions.

    Attributes:
        language: The model's own tokens.
        context: T.
        is_trained: It is.
        num_weights: How many weights it has.

    Raises:
        InputError: If transformers is not installed, or the folder has no configuration, weights or tokenizer, or its
            model is not a causal language model or has no token to begin texts with.
    """

    is_trained = True

    def __init__(self, folder: str, context: int) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise InputError(
                "Expected the package transformers for a model of a folder, but got none. Install it with: "
                "pip install 'forgetless[transformers]'."
            )
        path = _checked(folder)
        with _quiet():
            config = _loaded(path, "configuration", "AutoConfig")
            self._model = _model(path, config)
            self.language = _language(path, self._model)
        self.context = min(context, getattr(self._model.config, "max_position_embeddings", None) or context)

    @property
    def num_weights(self) -> int:
        """How many weights it has."""
        return sum(weight.numel() for weight in self._model.parameters())

    def make(self, seed: int) -> nn.Module:  # noqa: ARG002 - nothing is drawn
        """The model with the weights of the folder.

        Args:
            seed: Of nothing: the weights are there.
        """
        made: nn.Module = copy.deepcopy(self._model)
        return made


def _checked(folder: str) -> Path:
    """The path of a folder that has the files that are needed."""
    path = expanded(folder)
    found = kind_of(path)
    if found != "folder":
        told = "is a file" if found else "does not exist"
        raise InputError(
            f"Expected the folder of a Hugging Face model, but got {path}, which {told}. Nothing is downloaded: "
            "save a model and its tokenizer with save_pretrained(folder) first."
        )
    if kind_of(path / "config.json") != "file":
        is_adapter = (path / "adapter_config.json").exists()
        why = "it is an adapter of PEFT; merge it into its model" if is_adapter else "save the model there"
        raise InputError(f"Expected a config.json in {path}, but got none: {why} with save_pretrained(folder).")
    if not any(any(path.glob(pattern)) for pattern in _WEIGHTS):
        raise InputError(
            f"Expected weights in {path} (model.safetensors or pytorch_model.bin), but got none. Save the model there "
            "with save_pretrained(folder)."
        )
    return path


def _loaded(path: Path, what: str, kind: str, **options: Any) -> Any:
    """What one of the Auto classes makes of a folder."""
    import transformers

    # A relative name without a slash would be looked for among the names of the hub.
    options |= {"local_files_only": True, "trust_remote_code": False}
    try:
        return getattr(transformers, kind).from_pretrained(str(path.resolve()), **options)
    except Exception as error:  # whatever is raised by a hundred architectures and four formats of files
        raise InputError(
            f"Expected a {what} in {path} that transformers can load, but got {_first_line(error)} Save it again with "
            "save_pretrained(folder)."
        ) from error


def _model(path: Path, config: Any) -> Any:
    """The causal language model of a folder, whole."""
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise _not_causal(path, config.model_type)
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(
            f"Expected weights that can be trained in {path}, but got quantized ones. Save it unquantized."
        )
    for name, value in config.to_dict().items():
        if name.endswith(("dropout", "pdrop", "layerdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)
    config.use_cache = False  # of keys and values, which only generation needs
    model, info = _loaded(
        path, "model", "AutoModelForCausalLM", config=config, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InputError(
            f"Expected all weights of a causal language model in {path}, but got none for {', '.join(missing[:3])}"
            f"{' and others' if len(missing) > 3 else ''}. Save the model with its output layer (…ForCausalLM)."
        )
    _refuse_seeing_ahead(model, path)
    return model


def _language(path: Path, model: Any) -> FolderTokens:
    """The tokens of a folder's model."""
    from forgetless.importance.text import first_token

    tokenizer = _loaded(path, "tokenizer", "AutoTokenizer")
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # made of nothing, where there are no files
        raise InputError(
            f"Expected a tokenizer in {path}, but got none. Save it there with tokenizer.save_pretrained(folder)."
        )
    config = model.config
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"Expected a tokenizer of the model in {path}, but got one of {len(tokenizer)} tokens for a model of "
            f"{config.vocab_size}. Save the model's own, or call model.resize_token_embeddings."
        )
    if config.bos_token_id is None and config.eos_token_id is None:
        config.bos_token_id = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return FolderTokens(tokenizer, config.vocab_size, first_token(model, f"Set it in {path / 'config.json'}."))


def _refuse_seeing_ahead(model: nn.Module, path: Path) -> None:
    """Refuse a model whose outputs depend on later tokens, such as BERT: it cannot write a text."""
    import torch

    from forgetless.importance.labels import logits_of
    from forgetless.importance.model import evaluating

    texts = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1]])
    with evaluating(model), torch.no_grad():
        one, other = logits_of(model(texts), "empirical")[:, :-1]
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-4):
        raise _not_causal(path, type(model).__name__)


def _not_causal(path: Path, found: str) -> InputError:
    return InputError(
        f"Expected a causal language model, which can write text, in {path}, but got {found}. Choose one such as GPT-2 "
        "or Llama."
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return told if told.endswith(".") else f"{told}."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and reports of transformers: what matters of them becomes an error."""
    from transformers.utils import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()
