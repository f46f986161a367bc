"""Loads a model's tokenizer from open_clip, and counts its tokens."""

import copy
from collections.abc import Sequence
from typing import Any

from open_clip import tokenizer as open_clip_tokenizer
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from clipcls.errors import ModelError
from clipcls.models.locate import NO_TRANSFORMERS, ModelFiles

_MOST_WORDS = 2**16


def context_length_of(files: ModelFiles) -> int:
    """Return how many tokens a prompt may have, its start and end included."""
    length: int = files.config["text_cfg"].get("context_length", 77)
    return length


def load_tokenizer(files: ModelFiles) -> Any:
    """Return one of open_clip's tokenizers, set up for a model.

    Raises:
        ModelError: its package or its files are missing, or can't be read.
    """
    text_config = files.config["text_cfg"]
    context_length = context_length_of(files)
    try:
        options = dict(text_config.get("tokenizer_kwargs") or {})
        if files.tokenizer is None:
            return _clip_tokenizer(context_length, options)
        return HFTokenizer(
            str(files.tokenizer),
            context_length=context_length,
            tokenizer_mode=text_config.get("tokenizer_mode"),
            **options,
        )
    except ImportError as exc:
        raise ModelError(f"{files.name}: {NO_TRANSFORMERS}") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise ModelError(f"{files.tokenizer or files.name}: the tokenizer can't be loaded: {exc}") from exc


def _clip_tokenizer(context_length: int, options: dict[str, Any]) -> SimpleTokenizer:
    if options:
        tokenizer = SimpleTokenizer(context_length=context_length, **options)
    else:
        # copied: open_clip has built one already, and its table of word pieces takes 0.1 s
        tokenizer = copy.copy(open_clip_tokenizer._tokenizer)
        tokenizer.context_length = context_length
    tokenizer.cache = _KnownWords(tokenizer.cache)
    return tokenizer


class _KnownWords(dict[str, str]):
    """The pieces of words; open_clip's own would remember every word that a server ever sees."""

    def __init__(self, always: dict[str, str]) -> None:
        super().__init__(always)
        self._always = dict(always)

    def __setitem__(self, word: str, pieces: str) -> None:
        if len(self) >= _MOST_WORDS:
            self.clear()
            self.update(self._always)
        super().__setitem__(word, pieces)


def truncated(tokenizer: Any, texts: Sequence[str]) -> list[bool]:
    """Return for each text whether the tokenizer cuts it, because it has too many tokens."""
    return [count > tokenizer.context_length for count in token_counts(tokenizer, texts)]


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens of each text, its start and end included, however many the model sees."""
    if isinstance(tokenizer, HFTokenizer):
        cleaned = [tokenizer.clean_fn(text) for text in texts]
        return [len(ids) for ids in tokenizer.tokenizer(cleaned)["input_ids"]] if cleaned else []
    # `encode` leaves out the start and end tokens
    return [len(tokenizer.encode(text)) + 2 for text in texts]
