"""CLIP's tokenizer without torch: the same tokens as open_clip's."""

import importlib.util
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_clip.tokenizer import SimpleTokenizer

from clipcls.errors import ModelError
from clipcls.models import clip_tokenizer
from clipcls.models import tokenizer as tokenizer_module
from clipcls.models.clip_tokenizer import ClipTokenizer
from clipcls.models.tokenizer import token_counts

ROOT = Path(__file__).parents[2]
CONTEXT_LENGTHS = [77, 8, 3, 1]

MARKS = ["<start_of_text>", "<End_Of_TEXT>", "<ſtart_of_text>", "!<end_of_text>", "&lt;start_of_text&gt;", "</w>"]
CONTRACTIONS = ["'s", "'T", "'re", "'VE", "'m", "'ll", "'d", "'ſ", "’s", "''s", "n't"]
DIGITS = ["12345", "1.5", "3rd", "²½", "٣٤", "Ⅷ", "①", "\U00011de0"]
ENTITIES = [
    "&amp;",
    "&amp;amp;eacute;",
    "&EACUTE;",
    "&nbsp;",
    "&bogus;",
    "&",
    "&#",
    "&lt",
    "&#0;",
    "&#xD800;",
    "&#x110000;",
]
CASES = ["İ", "ı", "ẞß", "ΑΣ", "Σ", "ǅ", "\u212a", "ſ"]
COMPOSED = [
    "ﬁ",
    "ﬃ",
    "ﬆ",
    "e\u0301",
    "\u0301",
    "a\u0308\u0323",
    "ｆｕｌｌ",
    "ｶﾞ",
    "नमस्ते",
    "กำ",
    "한국어",
    "\u1112\u1161\u11ab",
]
SPACES = ["\u00a0", "\u2028", "\u200d", "\u200b", "\ufeff", "\u3000", "\x1c", "\x85", "\t", "\r\n", "\x0b", "  "]
CONTROLS = ["\x00", "\x1b[31m", "\x7f", "\xad", "\u202e"]
SURROGATES = ["\ud800", "\udc00", "\ud83d\ude00"]
EMOJI = ["😀", "👨\u200d👩\u200d👧", "🏳️\u200d🌈", "👍🏽"]
SCRIPTS = ["猫", "한국어", "犬の写真", "العربية", "שלום", "ёлка", "Übergrößenträger"]
MISREAD = ["Ã©", "â€œcatâ€", "schÃ¶n", "\ufffd"]
# letters of newer Unicode versions, and code points that are none
NEW_LETTERS = ["\u0558", "\u088f", "\u1c89", "\U000323b0", "\U00031350", "\U0010ffff"]
PLAIN = [
    "a photo of a cat.",
    "Siamese cat",
    "it's",
    "e-mail_me@home",
    "aaaaaaa",
    "<b>",
    '"quoted"',
    "--",
    "...",
    "~`^\\",
    "",
]
AWKWARD = [
    *(*MARKS, *CONTRACTIONS, *DIGITS, *ENTITIES, *CASES, *COMPOSED, *SPACES),
    *(*CONTROLS, *SURROGATES, *EMOJI, *SCRIPTS, *MISREAD, *NEW_LETTERS, *PLAIN),
]


@pytest.fixture(scope="module")
def simple_tokenizer() -> Any:
    return SimpleTokenizer()


def random_texts(count: int) -> Iterator[str]:
    """Texts of awkward parts, and of ASCII with nothing to clean in it."""
    choose = random.Random(5)
    printable = [chr(code) for code in range(0x20, 0x7F)]
    for number in range(count):
        parts = (AWKWARD, printable, [*"abest'<>_ &;0ſ"], [chr(choose.randrange(0x3000)) for _ in range(9)])[number % 4]
        yield choose.choice(["", " "]).join(choose.choices(parts, k=choose.randrange(1, 20)))


def assert_same(simple_tokenizer: Any, texts: Sequence[str], context_length: int) -> None:
    tokens = ClipTokenizer(context_length).tokenize(texts)
    assert tokens.dtype == np.int64
    expected = simple_tokenizer(texts, context_length=context_length).numpy()
    differing = [ascii(text) for text, same in zip(texts, (tokens == expected).all(axis=1), strict=True) if not same]
    assert not differing


@pytest.mark.parametrize("context_length", CONTEXT_LENGTHS)
def test_awkward_texts_have_the_tokens_of_open_clip(simple_tokenizer: Any, context_length: int) -> None:
    wrapped = [f"A {text}photo{text} of" for text in AWKWARD]
    assert_same(simple_tokenizer, [*AWKWARD, *wrapped], context_length)


def test_random_texts_have_the_tokens_of_open_clip(simple_tokenizer: Any) -> None:
    assert_same(simple_tokenizer, list(random_texts(8000)), 77)


def test_words_of_the_vocabulary_are_one_token(simple_tokenizer: Any) -> None:
    words = [piece.removesuffix("</w>") for piece in simple_tokenizer.encoder if piece.endswith("</w>")]
    texts = [word for word in words if word.isascii() and word.isalpha()][::-8]
    assert len(texts) > 4000
    assert (ClipTokenizer(4).tokenize(texts)[:, 2:] == [clip_tokenizer._END_OF_TEXT, 0]).all()
    assert_same(simple_tokenizer, texts, 4)


def test_long_texts_have_the_tokens_of_open_clip(simple_tokenizer: Any) -> None:
    texts = [
        "photo of a dog, " * 500,
        "antidisestablishment" * 100,
        "犬の写真" * 300,
        "a" * 3000,
        "<end_of_text>" * 300,
    ]
    assert_same(simple_tokenizer, texts, 20_000)
    assert_same(simple_tokenizer, texts, 77)


def test_no_texts(simple_tokenizer: Any) -> None:
    assert ClipTokenizer(77).tokenize([]).shape == (0, 77)
    assert ClipTokenizer(77).token_counts([]) == []


@pytest.mark.parametrize("context_length", CONTEXT_LENGTHS)
def test_truncated_agrees_with_the_one_for_open_clip(simple_tokenizer: Any, context_length: int) -> None:
    simple_tokenizer.context_length = context_length
    texts = [*AWKWARD, "dog " * (context_length - 2), "dog " * (context_length - 1)]
    assert ClipTokenizer(context_length).token_counts(texts) == token_counts(simple_tokenizer, texts)


def test_missing_open_clip_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="open_clip isn't installed"):
        clip_tokenizer._table.__wrapped__()


@pytest.mark.parametrize(("text", "imports_ftfy"), [("a photo of a cat's <toy>", False), ("café &amp; 猫", True)])
def test_tokenizing_imports_nothing_heavy(text: str, imports_ftfy: bool) -> None:
    code = (
        "import sys; from clipcls.models.clip_tokenizer import ClipTokenizer\n"
        f"tokenizer = ClipTokenizer(77); tokenizer.tokenize([{text!a}]); tokenizer.token_counts([{text!a}])\n"
        "print(*{'torch', 'open_clip', 'transformers', 'ftfy'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout.split() == (["ftfy"] if imports_ftfy else [])


def test_open_clips_tokenizer_forgets_words_but_not_its_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "_MOST_WORDS", 10)
    own, theirs = tokenizer_module._clip_tokenizer(77, {}), SimpleTokenizer(context_length=77)
    for number in range(50):
        text = f"<start_of_text> a{'bcdefgh'[number % 7] * number} <end_of_text>"
        assert (own([text]) == theirs([text])).all()
    assert len(own.cache) <= 10
