"""`clipcls teach`, and what the others do with its file, through their real entry point, as processes."""

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli_calibrate import rows, save_classes
from test_start_up import loaded_by

from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

MODEL = ("--model", "pictogram")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 pictures in class folders, some of which are taken for others."""
    return save_classes(tmp_path_factory.mktemp("teaching"), 30)


@pytest.fixture
def data(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of every third picture of each class; the pictures are embedded once for all tests."""
    monkeypatch.setenv("CLIPCLS_CACHE_DIR", str(pictures.parent / "cache"))
    paths = sorted(pictures.rglob("*.png"))
    with (tmp_path / "examples.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((path, path.parent.name) for path in paths[::3])])
    return pictures


def test_examples_are_taught_and_used(clipcls: Run, data: Path, tmp_path: Path) -> None:
    done = clipcls("teach", "examples.csv", *MODEL, "-o", "pets.taught", "--leave-one-out", "answers.jsonl")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    assert text.startswith("30 examples of 3 of 3 labels; each is judged by what the others taught\n")
    assert "Look at these: the other examples contradict their labels" in text
    assert text.endswith("To use it:\nclipcls predict INPUT --taught pets.taught\n")
    paths_aside = [line for line in text.splitlines() if str(data) not in line]
    assert max(map(len, paths_aside)) <= 80
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 30

    # the model needn't be named
    found = rows(clipcls("predict", str(data), "--taught", "pets.taught", "--format", "jsonl", "--top-k", "3"))
    assert len(found) == 90 and {entry["label"] for entry in found[0]["top"]} == {"cat", "dog", "truck"}
    measured = clipcls("eval", str(data), "--taught", "pets.taught", "--format", "json")
    record = json.loads(measured.stdout)
    assert record["images"] == 60 and [one["prompts"] for one in record["results"]] == ["default", "pets.taught"]
    zero_shot, taught = (one["figures"]["accuracy@1"]["value"] for one in record["results"])
    assert taught > zero_shot and record["command"].endswith("--model pictogram --taught pets.taught")
    shown = [row for row in found if row["label"] == Path(row["path"]).parent.name]
    assert len(shown) / 90 > zero_shot


def test_a_calibration_is_of_what_was_taught(clipcls: Run, data: Path, tmp_path: Path) -> None:
    assert clipcls("teach", "examples.csv", *MODEL, "-o", "pets.taught").returncode == 0
    done = clipcls("calibrate", str(data), "--taught", "pets.taught", "-o", "cal.yaml", "--target-precision", "0.8")
    assert done.returncode == 0 and b"60 images, 3 labels" in done.stdout, done.stderr
    answers = ("predict", str(data), "--calibration", "cal.yaml", "--format", "jsonl")
    found = rows(clipcls(*answers, "--taught", "pets.taught"))
    assert {row["label"] for row in found} > {None}
    plain = clipcls(*answers, *MODEL, "--labels", "cat,dog,truck")
    assert plain.returncode == 2 and b"they were taught by --taught (" in plain.stderr


def test_a_run_goes_on_only_with_the_same_file(clipcls: Run, data: Path, tmp_path: Path) -> None:
    for name, labels in (("one.taught", ()), ("two.taught", ("--labels", "lion"))):
        assert clipcls("teach", "examples.csv", *MODEL, "-o", name, *labels).returncode == 0
    run = ("predict", str(data / "cat"), "--output", "rows.jsonl", "--taught")
    assert clipcls(*run, "one.taught").returncode == 0
    assert clipcls(*run, "one.taught", "--resume").returncode == 0
    other = clipcls(*run, "two.taught", "--resume")
    assert other.returncode == 2 and b"--taught" in other.stderr
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 30


def test_pictures_are_suggested(clipcls: Run, data: Path, tmp_path: Path) -> None:
    labels = (*MODEL, "--labels", "cat,dog,truck")
    done = clipcls("teach", "--suggest", "5", str(data), *labels, "-o", "next.csv")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    with (tmp_path / "next.csv").open(newline="") as file:
        first = list(csv.DictReader(file))
    assert len({row["path"] for row in first}) == 5
    # labels are filled in, and it is a table of examples
    (tmp_path / "next.csv").write_text(
        "path,label\n" + "".join(f"{row['path']},{Path(row['path']).parent.name}\n" for row in first)
    )
    done = clipcls("teach", "next.csv", "examples.csv", *MODEL, "-o", "more.taught")
    assert done.returncode == 2 and b"one table" in done.stderr
    assert clipcls("teach", "examples.csv", *MODEL, "-o", "pets.taught").returncode == 0
    found = rows(clipcls("teach", "--suggest", "90", str(data), "--taught", "pets.taught", "-o", "next.jsonl"))
    suggested = {json.loads(line)["path"] for line in (tmp_path / "next.jsonl").read_text().splitlines()}
    with (tmp_path / "examples.csv").open(newline="") as file:
        taught = {row["path"] for row in csv.DictReader(file)}
    # what has a label needn't get one again
    assert found == [] and len(suggested) == 60 and not suggested & taught


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("teach examples.csv --model pictogram", "give -o, such as -o pets.taught"),
        ("teach examples.csv -o a.taught --leave-one-out -", "--leave-one-out needs a file"),
        ("teach examples.csv -o examples.csv", "is one of the inputs, which it would overwrite"),
        ("teach examples.csv -o notes.txt", "there is a file that `clipcls teach` didn't write"),
        ("teach examples.csv -o cat.png", "not a name for results"),
        ("teach nowhere -o a.taught", "nowhere: no such file or folder"),
        ("teach one.csv -o a.taught --model pictogram", "Examples of one label only (cat)"),
        ("teach examples.csv -o a.taught --taught b.taught", "--taught goes with --suggest"),
        ("teach --suggest 3 examples.csv --labels cat,dog --leave-one-out a.csv", "--leave-one-out is for teaching"),
        ("teach --suggest 3 PICTURES --model pictogram", "No labels."),
        ("teach --suggest 3 PICTURES --model pictogram --labels cat", "two labels or more"),
        ("predict PICTURES --taught notes.txt", "not a file that `clipcls teach` wrote"),
        ("predict PICTURES --taught notes.txt --labels cat", "--taught has labels and prompts of its own"),
        ("predict PICTURES --taught notes.txt --prompts simple", "--taught has labels and prompts of its own"),
        ("eval PICTURES --taught notes.txt --labels cat", "--taught has labels and prompts of its own"),
        ("eval examples.csv --taught notes.txt", "not a file that `clipcls teach` wrote"),
        ("eval examples.csv --retrieval --taught notes.txt", "leave --taught out"),
        ("calibrate PICTURES --taught notes.txt -o c.yaml --label cat", "--taught has labels and prompts of its own"),
    ],
)
def test_mistakes(arguments: str, message: str, clipcls: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("remember the milk\n")
    (tmp_path / "one.csv").write_text(f"path,label\n{data / 'cat/000.png'},cat\n{data / 'cat/001.png'},cat\n")
    before = (tmp_path / "examples.csv").read_bytes()
    done = clipcls(*arguments.replace("PICTURES", str(data)).split())
    assert done.returncode == 2 and done.stdout == b"", done
    assert message in done.stderr.decode() and len(done.stderr.splitlines()) == 1, done.stderr
    assert (tmp_path / "examples.csv").read_bytes() == before and not (tmp_path / "a.taught").exists()


def test_cached_features_need_no_torch(
    clipcls: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    teach = ("teach", "examples.csv", *MODEL, "-o", "pets.taught")
    predict = ("predict", str(data / "cat"), "--taught", "pets.taught")
    for command in (teach, predict):
        assert clipcls(*command).returncode == 0
        assert "torch" not in loaded_by(*command)


def test_the_command_for_zero_shot_answers_has_the_prompts_of_the_file(
    clipcls: Run, data: Path, tmp_path: Path
) -> None:
    shown = {"dog.jpg": "dog", "poodle.webp": "dog", "fire-engine.jpg": "truck", "pickup-truck.png": "truck"}
    rows_of_table = [f"{EXAMPLES / name},{label}\n" for name, label in shown.items()]
    (tmp_path / "right.csv").write_text("path,label\n" + "".join(rows_of_table))
    taught = ("teach", "right.csv", *MODEL, "--template", "the {}", "--labels", "cat,dog,truck", "-o", "pets.taught")
    assert b"zero-shot answers are kept" in clipcls(*taught).stdout
    record = json.loads(clipcls("eval", str(data), "--taught", "pets.taught", "--format", "json").stdout)
    assert record["best"] == 0
    assert record["command"].endswith("--model pictogram --template 'the {}' --labels cat,dog,truck")
