"""Keep the words a small model was trained on, so that `predict` can warn of labels it has never seen.

A model trained on a closed set of captions answers any label with confidence. `clipcls train` writes the words of its
captions beside the weights (`words.txt`).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipcls.errors import quoted
from clipcls.records import Label

FILE_NAME = "words.txt"

# Han, Hiragana and Katakana are written without spaces, so their runs are cut into pairs of signs.
_CJK = r"\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
# words that say nothing of what a picture shows
_STOP_WORDS = frozenset(["a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the", "to", "with"])


def caption_words(text: str) -> set[str]:
    """Return the lower-case words of a caption, without articles, conjunctions and prepositions.

    A run of signs written without spaces gives its pairs of neighbours; a single sign gives itself.

    Args:
        text: a caption, or a label.

    Returns:
        The set of words; empty for a text without letters or digits.
    """
    words: set[str] = set()
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).casefold()):
        if _IS_CJK.match(run) and len(run) > 1:
            words.update(run[i : i + 2] for i in range(len(run) - 1))
        else:
            words.add(run)
    return words - _STOP_WORDS


def is_known(text: str, words: frozenset[str]) -> bool:
    """Tell whether `words` has any word of `text`, or any pair or sign of a run without spaces."""
    parts = caption_words(text)
    parts |= {sign for part in parts if _IS_CJK.match(part) for sign in part}
    return not parts.isdisjoint(words)


def unknown_labels(labels: Iterable[Label], words: frozenset[str]) -> list[str]:
    """Return the names of labels of which `words` has no word: of their own prompts or, without any, of their texts."""
    return [label.name for label in labels if not any(is_known(text, words) for text in label.prompts or label.texts)]


def is_wholly_known(text: str, words: frozenset[str]) -> bool:
    """Tell whether `words` has every word of `text`."""
    return all(is_known(part, words) for part in caption_words(text))


def unknown_message(model: str, unknown: Sequence[str]) -> str:
    """Return the warning of names that a model has never seen a word of."""
    them = "it" if len(unknown) == 1 else "them"
    return f"model {model} was never trained on a word of {quoted(unknown)}; its scores for {them} mean nothing"


def all_words(captions: Iterable[str]) -> frozenset[str]:
    """Return the words of all captions."""
    return frozenset(word for caption in captions for word in caption_words(caption))


def write_words(folder: Path, words: Iterable[str]) -> None:
    """Write words into a model folder, sorted, one per line."""
    (folder / FILE_NAME).write_text("".join(f"{word}\n" for word in sorted(words)), encoding="utf-8")


def read_words(folder: Path) -> frozenset[str] | None:
    """Read the words that a model folder lists; None if it has no list."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    return frozenset(path.read_text(encoding="utf-8").split())
