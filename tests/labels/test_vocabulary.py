"""What counts as a word, and which labels a model has seen none of."""

from pathlib import Path

import pytest

from clipcls.labels.vocabulary import all_words, caption_words, is_known, is_wholly_known, read_words, write_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Red Car", {"red", "car"}),
        ("a photo of the cat", {"photo", "cat"}),
        ("hot_dog", {"hot", "dog"}),
        ("crane, bird!", {"crane", "bird"}),
        ("rock'n'roll", {"rock", "n", "roll"}),
        ("Straße 7", {"strasse", "7"}),
        ("the of and", set()),
        ("", set()),
        ("!? — 。", set()),
        ("猫", {"猫"}),
        ("熊猫", {"熊猫"}),
        ("大熊猫", {"大熊", "熊猫"}),
        ("红色 汽车", {"红色", "汽车"}),
        ("ネコの顔", {"ネコ", "コの", "の顔"}),
        ("我的cat照片", {"我的", "cat", "照片"}),
        ("\U00020000\U00020001", {"\U00020000\U00020001"}),
        ("강아지 집", {"강아지", "집"}),
    ],
)
def test_caption_words_cuts(text: str, words: set[str]) -> None:
    assert caption_words(text) == words


@pytest.mark.parametrize(
    ("label", "known"),
    [
        ("cat", True),
        ("CAT", True),
        ("purple cat", True),
        ("ca", False),
        ("cats", False),
        ("the", False),
        ("a the of", False),
        ("", False),
        ("熊猫", True),
        ("小熊猫", True),
        ("狗屋", True),
        ("猫熊", False),
        ("飞机", False),
        ("飞机cat", True),
    ],
)
def test_is_known_needs_one_word_or_part(label: str, known: bool) -> None:
    assert is_known(label, frozenset({"cat", "熊猫", "狗", "the"})) is known


def test_words_file_round_trip(tmp_path: Path) -> None:
    write_words(tmp_path, all_words(["a Red cat", "red dog", "大熊猫"]))
    assert read_words(tmp_path) == {"red", "cat", "dog", "大熊", "熊猫"}
    lines = (tmp_path / "words.txt").read_text(encoding="utf-8").splitlines()
    assert lines == sorted(lines)


def test_words_file_may_be_missing_or_empty(tmp_path: Path) -> None:
    assert read_words(tmp_path) is None
    write_words(tmp_path, [])
    assert read_words(tmp_path) == frozenset()


def test_a_text_is_wholly_known_by_all_its_words() -> None:
    words = frozenset(["hot", "dog", "小狗"])
    assert is_wholly_known("a hot dog", words)
    assert not is_wholly_known("hot water", words)
    assert is_wholly_known("小狗", words)
