"""Queries as they are typed."""

import os
from pathlib import Path

import pytest

from clipcls.errors import UsageError
from clipcls.predict.query import Term, parse_query


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat.jpg", "a - b.jpg", "2:3.jpg"):
        Path(name).touch()
    Path("photos").mkdir()


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("a red car", [Term("a red car")]),
        ("cat.jpg", [Term("cat.jpg", is_picture=True)]),
        ("cat.jpg + snow", [Term("cat.jpg", is_picture=True), Term("snow")]),
        ("horse - stripes", [Term("horse"), Term("stripes", -1.0)]),
        ("2:golden retriever + .5:cat.jpg", [Term("golden retriever", 2.0), Term("cat.jpg", 0.5, is_picture=True)]),
        ("cat - 2.5:dog + 1:fish", [Term("cat"), Term("dog", -2.5), Term("fish")]),
        ("- dog", [Term("dog", -1.0)]),
        ("  a   cat  +  a dog ", [Term("a   cat"), Term("a dog")]),
        ("T-shirt and x+y", [Term("T-shirt and x+y")]),
        ("a - b.jpg", [Term("a - b.jpg", is_picture=True)]),
        ("2:3.jpg", [Term("2:3.jpg", is_picture=True)]),
        ("https://example.com/a.jpg - cat", [Term("https://example.com/a.jpg", is_picture=True), Term("cat", -1.0)]),
        ("猫 + 雪", [Term("猫"), Term("雪")]),
        ("black/white", [Term("black/white")]),
    ],
)
def test_parse(text: str, terms: list[Term]) -> None:
    query = parse_query(text)
    assert query.text == text
    assert list(query.terms) == terms


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" ", "empty"),
        ("cat +", "on both sides"),
        ("cat + - dog", "on both sides"),
        ("+", "on both sides"),
        ("dog.png", r"dog\.png: no such file"),
        ("./dog", "no such file"),
        ("/nowhere/dog + cat", "no such file"),
        ("photos", "a folder; the query comes first"),
        ("0:cat", "a weight of 0"),
    ],
)
def test_what_is_no_query(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_query(text)


def test_only_a_text_by_itself_is_ranked_by_its_cosine() -> None:
    texts = ["cat", "3:cat", "- cat", "cat + dog", "cat.jpg"]
    assert [parse_query(text).is_text for text in texts] == [True, True, False, False, False]


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"odd\xff.jpg")
    Path(odd).touch()
    assert parse_query(odd).terms == (Term(odd, is_picture=True),)
