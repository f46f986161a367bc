"""Built-in label sets: what they hold, how they are named, and what the embedded model makes of them."""

import logging
import runpy
import shutil
from pathlib import Path

import pytest

from clipcls import Classifier, Execution, ModelSpec, Session
from clipcls.errors import UsageError
from clipcls.labels import label_sets, vocabulary
from clipcls.labels.label_files import parse_labels, read_labels, refuse_duplicates
from clipcls.labels.label_sets import builtin_names, load_label_set
from clipcls.labels.prompts import load_prompt_set, render
from clipcls.models import everyday

FILES = sorted((Path(label_sets.__file__).parent / "sets").glob("*.yaml"))
COUNTS = {
    "cifar10": 10,
    "cifar100": 100,
    "coco": 80,
    "dtd": 47,
    "eurosat": 10,
    "everyday": 300,
    "everyday-zh": 300,
    "flowers102": 102,
    "food101": 101,
    "imagenet": 998,
    "oxford-pets": 37,
    "scenes": 120,
}


def test_builtin_sets_are_those_that_are_promised() -> None:
    assert {name: len(load_label_set(name).labels) for name in builtin_names()} == COUNTS


@pytest.mark.parametrize("name", builtin_names())
def test_a_set_is_described_and_can_be_told_apart(name: str) -> None:
    label_set = load_label_set(name)
    assert label_set.name == name
    assert label_set.description.endswith(".") and label_set.source
    labels = read_labels(name)
    assert tuple(label.name for label in labels) == label_set.labels
    refuse_duplicates(labels)
    prompts = [render(label, load_prompt_set("default")) for label in labels]
    assert len(set(prompts)) == len(prompts)
    assert not any("_" in label or label != label.strip() for label in label_set.labels)


@pytest.mark.parametrize("name", builtin_names())
def test_a_set_written_one_label_a_line_reads_back(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("".join(f"{label}\n" for label in load_label_set(name).labels), encoding="utf-8")
    assert read_labels(file) == read_labels(name)
    assert caplog.text == ""


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_file_of_a_set_is_a_label_file(file: Path) -> None:
    assert read_labels(file) == read_labels(file.stem)


# ------------------------------------------------------------------------------------------- by name


def test_labels_by_name_stand_behind_given_ones() -> None:
    assert [label.name for label in parse_labels("fox", file="cifar10")][:2] == ["fox", "airplane"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [("imagnet", "imagenet"), ("COCO", "coco"), ("food-101", "food101"), ("pets", "oxford-pets")],
)
def test_an_unknown_name_is_answered_with_the_near_ones(name: str, meant: str) -> None:
    for load in (load_label_set, read_labels):
        with pytest.raises(UsageError, match=rf"No label set or file '{name}'. Did you mean {meant}.*\? Built in: "):
            load(name)


def test_an_unknown_name_that_is_like_none_lists_all() -> None:
    with pytest.raises(UsageError, match=r"No label set or file 'xyz'\. Built in: cifar10, .*, scenes\. A"):
        read_labels("xyz")


@pytest.mark.parametrize("name", ["none.txt", "coco.txt"])
def test_a_name_with_an_extension_is_a_files(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: can't be read: no such file"):
        read_labels(name)


def test_a_set_goes_before_a_file_of_its_name_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "coco").write_text("coconut\n")
    monkeypatch.chdir(tmp_path)
    assert len(read_labels("coco")) == 80
    assert "the file of that name is ./coco" in caplog.text
    assert [label.name for label in read_labels("./coco")] == ["coconut"]
    assert [label.name for label in read_labels(Path("coco"))] == ["coconut"]


# ------------------------------------------------------------------------------------------- imagenet


def test_imagenets_names_are_open_clips_in_their_order() -> None:
    classnames = runpy.run_path(str(label_sets.zero_shot_metadata_file()))["IMAGENET_CLASSNAMES"]
    assert list(load_label_set("imagenet").labels) == list(dict.fromkeys(classnames))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "it has no list IMAGENET_CLASSNAMES"),
        ("IMAGENET_CLASSNAMES = 'cat'", "it has no list"),
        ("IMAGENET_CLASSNAMES = ('cat', 1)", "it has no list"),
        ("IMAGENET_CLASSNAMES = load()", "malformed"),
        ("IMAGENET_CLASSNAMES = (", "never closed"),
        (None, "No such file"),
    ],
)
def test_another_open_clip_without_the_names_is_an_error(
    source: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "zero_shot_metadata.py"
    if source is not None:
        file.write_text(source)
    monkeypatch.setattr(label_sets, "zero_shot_metadata_file", lambda: file)
    with pytest.raises(UsageError, match=f"{file}: the names of ImageNet's classes can't be read.*{said}"):
        read_labels("imagenet")


def test_imagenet_says_how_many_names_stand_for_two_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "zero_shot_metadata.py"
    shutil.copyfile(label_sets.zero_shot_metadata_file(), file)
    monkeypatch.setattr(label_sets, "zero_shot_metadata_file", lambda: file)
    assert load_label_set("imagenet").description == "The 1,000 classes of ImageNet-1k; 2 names stand for two classes."
    file.write_text("IMAGENET_CLASSNAMES = ['cat', 'dog']")
    assert load_label_set("imagenet").description == "The 2 classes of ImageNet-1k."


# ------------------------------------------------------------------------------------------- everyday


@pytest.mark.parametrize("name", ["everyday", "everyday-zh"])
def test_the_model_everyday_knows_the_set_and_tells_its_labels_apart(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels = read_labels(name)
    words = vocabulary.read_words(Path(everyday.__file__).parent)
    assert words is not None
    assert all(vocabulary.is_known(label.name, words) for label in labels)
    with Session(ModelSpec("everyday", device="cpu"), Execution(cache_dir=None)) as session:
        assert len(Classifier(session, labels).label_features.names) == 300
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
