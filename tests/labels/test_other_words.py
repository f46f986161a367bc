"""The words for other things than the labels, and which of them may mean a label."""

import pytest

from clipcls.labels.other_words import WORDS_FILE, load_wordnet

WORDNET = load_wordnet()


def test_words_for_what_can_be_seen_are_there_with_their_licence() -> None:
    assert len(WORDNET.words) == 10_000
    assert list(WORDNET.words) == sorted(set(WORDNET.words))
    assert {"cat", "truck", "rose", "pizza", "woman", "kitchen", "polar bear", "person"} <= set(WORDNET.words)
    assert not {"justice", "yesterday", "Paris"} & set(WORDNET.words)
    assert "WordNet 3.1 Copyright 2011 by Princeton University" in WORDS_FILE.with_name("LICENSE.txt").read_text()


@pytest.mark.parametrize(
    ("label", "relatives"),
    [
        ("truck", {"truck", "lorry", "camion", "pickup", "fire engine", "motor vehicle", "vehicle"}),
        ("Fire_Trucks", {"fire engine", "truck", "vehicle"}),
        ("roses", {"rose", "shrub", "plant"}),
        ("people", {"person", "people"}),
        ("women", {"woman", "person"}),
        ("a dog", {"dog", "poodle", "animal"}),
        ("knives", {"knife", "tool"}),
    ],
)
def test_synonyms_kinds_and_what_a_label_is_a_kind_of_are_relatives(label: str, relatives: set[str]) -> None:
    assert relatives <= WORDNET.relatives([label])


def test_what_else_there_is_is_no_relative() -> None:
    found = WORDNET.relatives(["truck", "dog"])
    assert not {"cat", "bicycle", "boat", "woman", "flower"} & found


def test_of_a_compound_only_what_it_is_a_kind_of_is_known() -> None:
    found = WORDNET.relatives(["obedient police dog"])
    assert {"obedient police dog", "animal"} <= found
    assert not {"poodle", "cat"} & found


def test_a_label_in_no_dictionary_is_its_own_relative() -> None:
    assert WORDNET.relatives(["猫", "zxcv"]) == {"猫", "zxcv"}
