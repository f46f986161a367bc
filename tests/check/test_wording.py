"""What is said of labels and templates without a model, and of labels by their features."""

from pathlib import Path

import numpy as np
import pytest

from clipcls.check.findings import Finding
from clipcls.check.labels import (
    NEAREST_PAIRS,
    Wording,
    check_effects,
    check_labels,
    check_nearness,
    check_templates,
    read_label_options,
    read_prompt_options,
)
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import templates_set
from clipcls.predict.nearness import NEARLY_SAME, nearest_pairs
from clipcls.records import Label


def labels(*names: str) -> list[Label]:
    return [make_label(name) for name in names]


def said(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.subject) for finding in findings]


def test_read_label_options_keeps_the_good_ones_and_names_all_others(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("truck\nCAT\nhot_dog\nhot dog\n")
    found, findings = read_label_options(Wording("cat,,dog", ("dog",), file))
    assert [label.name for label in found] == ["cat", "dog", "truck", "hot_dog"]
    assert said(findings) == [("error", "labels")] * 4
    for finding, part in zip(
        findings, ("empty label", "'dog' and 'dog'", "'cat' and 'CAT'", "'hot_dog' and 'hot dog'"), strict=True
    ):
        assert part in finding.message
        assert finding.exit_code == 2


def test_read_label_options_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    found, findings = read_label_options(Wording("cat", labels_file=tmp_path / "none.txt"))
    assert [label.name for label in found] == ["cat"]
    assert "none.txt" in findings[0].message


def test_read_label_options_refuses_equal_synonyms(tmp_path: Path) -> None:
    file = tmp_path / "labels.json"
    file.write_text('{"sofa": ["couch"], "settee": ["Couch"]}')
    found, findings = read_label_options(Wording(labels_file=file))
    assert [label.name for label in found] == ["sofa"]
    assert "'sofa' and 'settee'" in findings[0].message


def test_read_prompt_options_names_every_bad_template() -> None:
    prompts, findings = read_prompt_options(Wording(prompts="simple", templates=("no", "a {}", "a {b}", "a {")), None)
    assert prompts is not None
    assert prompts.templates == ("a {}",)
    assert said(findings) == [("error", "prompts")] + [("error", "template")] * 3
    assert read_prompt_options(Wording(templates=("no",)), None)[0] is None


def test_read_prompt_options_names_a_set_that_is_not_there() -> None:
    prompts, findings = read_prompt_options(Wording(prompts="nothing"), None)
    assert prompts is None
    assert "'nothing'" in findings[0].message


def test_check_labels_warns_of_a_single_label() -> None:
    (finding,) = check_labels(labels("cat,dog"))
    assert (finding.level, "always 1" in finding.message, "commas" in finding.remedy) == ("warning", True, True)
    (finding,) = check_labels(labels("cat"))
    assert "commas" not in finding.remedy


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["cat, kitten, feline", "dog"], "'cat, kitten, feline'"),
        (["n01440764", "7", "cat"], "'n01440764', '7'"),
        (["t-shirt", "T shirt", "hat"], "'t-shirt', 'T shirt'"),
    ],
)
def test_check_labels_notes_names_that_are_no_words(names: list[str], part: str) -> None:
    (finding,) = check_labels(labels(*names))
    assert finding.level == "note"
    assert part in finding.message


def test_check_labels_has_nothing_to_say_of_good_ones() -> None:
    assert not list(check_labels(labels("cat", "crane, bird", "fire truck", "猫")))


def test_check_templates_warns_of_two_articles() -> None:
    prompts = templates_set(["a photo of {}", "a photo of a {}"])
    (finding,) = check_templates(labels("the cat", "dog", "answer"), prompts)
    assert "'the cat': the label's article follows the template's, as in 'a photo of a the cat'" in finding.message
    assert not list(check_templates(labels("the cat"), templates_set(["a photo of {}"])))
    assert not list(check_templates([make_label("the cat", prompts=["the cat itself"])], prompts))


def test_check_templates_notes_one_that_is_there_twice() -> None:
    (finding,) = check_templates(labels("cat"), templates_set(["a {}", "the {}", "a {}"]))
    assert finding.level == "note"
    assert "'a {}'" in finding.message


def test_check_templates_names_equal_prompts() -> None:
    two = [make_label("cat", prompts=["a photo of a pet"]), make_label("dog", prompts=["a photo of a pet"])]
    (finding,) = check_templates(two, templates_set(["{}"]))
    assert (finding.level, finding.exit_code) == ("error", 2)
    assert "'cat' and 'dog' have the same prompts" in finding.message


def directions(*degrees: float) -> np.ndarray:
    radians = np.radians(np.array(degrees))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_check_nearness_warns_of_labels_that_are_nearly_the_same() -> None:
    near, rest = check_nearness(["a", "b", "c", "d"], directions(0, 90, 1, 40))
    assert near.level == "warning"
    assert "'a' and 'c'" in near.message
    assert "cosine 1.000" in near.message
    assert rest.level == "note"
    assert (
        rest.message.index("'c' and 'd' 0.777")
        < rest.message.index("'a' and 'd' 0.766")
        < rest.message.index("'b' and 'd'")
    )
    assert "'a' and 'c'" not in rest.message


def test_check_nearness_lists_few_of_many_pairs() -> None:
    findings = list(check_nearness([str(i) for i in range(6)], directions(*range(6))))
    assert said(findings) == [("warning", "labels")] * (NEAREST_PAIRS + 1)
    assert "10 more pairs" in findings[-1].message


def test_check_nearness_needs_two_labels() -> None:
    assert not list(check_nearness(["a"], directions(0)))


@pytest.mark.parametrize("count", [2, 7, 700])
def test_nearest_pairs_are_those_of_all_cosines(count: int) -> None:
    random = np.random.default_rng(count).standard_normal((count, 6)).astype(np.float32)
    features = random / np.linalg.norm(random, axis=1, keepdims=True)
    pairs, nearly_same = nearest_pairs(features, 4)
    cosines = features @ features.T
    rows, columns = np.triu_indices(count, k=1)
    order = np.argsort(-cosines[rows, columns])[:4]
    assert [(pair.first, pair.second) for pair in pairs] == list(
        zip(rows[order].tolist(), columns[order].tolist(), strict=True)
    )
    assert np.allclose([pair.cosine for pair in pairs], cosines[rows, columns][order])
    assert nearly_same == int((cosines[rows, columns] >= NEARLY_SAME).sum())


def test_check_effects_lists_templates_that_change_nothing() -> None:
    (finding,) = check_effects(["{}.", "a drawing of a {}"], [0.995, 0.8])
    assert "1 of 2" in finding.message
    assert "'{}.' 0.9950" in finding.message
    assert not list(check_effects(["a drawing of a {}"], [0.99]))
