"""Turns texts into CLIP's tokens, as open_clip's `SimpleTokenizer` does, without importing torch or open_clip.

Byte-pair encoding: a word starts as the bytes of its UTF-8, and of all neighbours that the table lists, those listed
first are joined into one token, until no neighbours are listed.

Source: Sennrich et al., https://arxiv.org/abs/1508.07909; https://github.com/openai/CLIP/blob/main/clip/simple_tokenizer.py
"""

import gzip
import html
import importlib.util
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import regex
from numpy.typing import NDArray

from clipcls.errors import ModelError

# tokens in the order of their numbers: 256 bytes, the same bytes at a word's end, pieces joined of two, and two marks
_END_OF_WORD = "</w>"
_FIRST_JOINED = 2 * 256
_START_OF_TEXT, _END_OF_TEXT = 49406, 49407
_MARKS = {"<start_of_text>": _START_OF_TEXT, "<end_of_text>": _END_OF_TEXT}
# greater than the token of any joined piece
_NOT_LISTED = _END_OF_TEXT + 1

# Unicode's letters and digits are those of the package `regex`, as for open_clip: other engines know fewer.
# Case counts no more in lower-case text, but for ſ (U+017F), which matches s.
_WORDS = regex.compile(
    "|".join(_MARKS) + r"|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)

# the table writes a byte as its Latin-1 sign; bytes without a sign to be seen come last, as those from U+0100 on
_SHOWN_BYTES = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHER_BYTES = [byte for byte in range(256) if byte not in _SHOWN_BYTES]
_TOKEN_OF_BYTE = {byte: token for token, byte in enumerate(_SHOWN_BYTES + _OTHER_BYTES)}
_SIGN_OF_BYTE = {byte: chr(byte) for byte in _SHOWN_BYTES} | {
    byte: chr(0x100 + number) for number, byte in enumerate(_OTHER_BYTES)
}


class ClipTokenizer:
    """Tokenizes texts for a model with CLIP's vocabulary."""

    def __init__(self, context_length: int) -> None:
        """Set up for a model.

        Args:
            context_length: how many tokens a text may have, its start and end included.
        """
        self.context_length = context_length

    def tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the tokens of texts; those of a text that is too long are cut, and end with the end's token.

        Returns:
            `(n_texts, context_length) int64`, 0 behind a text's end.
        """
        result = np.zeros((len(texts), self.context_length), dtype=np.int64)
        for row, text in zip(result, texts, strict=True):
            tokens = _tokens_of(text)[: self.context_length]
            row[: len(tokens)] = tokens
            row[len(tokens) - 1] = _END_OF_TEXT
        return result

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, its start and end included, however many the model sees."""
        return [len(_tokens_of(text)) for text in texts]


def _tokens_of(text: str) -> list[int]:
    tokens = [_START_OF_TEXT]
    for word in _WORDS.findall(_clean(text)):
        tokens += _tokens_of_word(word)
    return [*tokens, _END_OF_TEXT]


def _clean(text: str) -> str:
    """Repair a text's characters, resolve its HTML entities, join its white space, and lower its case."""
    # most labels are plain text, in which there is nothing to repair: importing ftfy takes 0.05 s
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        # an entity may be escaped itself, as &amp;eacute;
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@lru_cache(maxsize=1 << 16)
def _tokens_of_word(word: str) -> tuple[int, ...]:
    if word in _MARKS:
        return (_MARKS[word],)
    table = _table()
    encoded = word.encode()
    pieces = [_SIGN_OF_BYTE[byte] for byte in encoded]
    pieces[-1] += _END_OF_WORD
    tokens = [_TOKEN_OF_BYTE[byte] for byte in encoded]
    tokens[-1] += 256
    # what each piece and the next one become
    joined = [table.get(f"{first} {second}", _NOT_LISTED) for first, second in pairwise(pieces)]
    while (best := min(joined, default=_NOT_LISTED)) != _NOT_LISTED:
        at = joined.index(best)
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        tokens[at : at + 2] = [best]
        del joined[at]
        for changed in range(max(at - 1, 0), min(at + 1, len(joined))):
            joined[changed] = table.get(f"{pieces[changed]} {pieces[changed + 1]}", _NOT_LISTED)
    return tuple(tokens)


@cache
def _table() -> dict[str, int]:
    """Read the token that two pieces, written with a space between them, are joined into; smaller ones come first.

    Raises:
        ModelError: open_clip, whose file it is, isn't installed.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise ModelError("open_clip isn't installed: pip install open_clip_torch")
    path = Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        # a heading comes first; of the pairs that follow, CLIP has as many as there are tokens for
        pairs = islice(file, 1, 1 + _START_OF_TEXT - _FIRST_JOINED)
        return {pair.rstrip("\n"): token for token, pair in enumerate(pairs, start=_FIRST_JOINED)}
