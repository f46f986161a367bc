"""`clipcls ask`, and the commands that take its answers, through their real entry point, as processes."""

import csv
import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from test_cli_calibrate import rows

from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

MODEL = ("--model", "pictogram")
QUESTIONS = """
animal: [cat, dog, truck]
colour:
  question: What colour is the animal?
  choices: [black, white, brown]
  when: {animal: [cat, dog]}
"""


@pytest.fixture(autouse=True)
def questions(tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(QUESTIONS)


def test_answers_are_written_and_taken(clipcls: Run, tmp_path: Path) -> None:
    done = clipcls("ask", str(EXAMPLES), "--questions", "q.yaml", *MODEL, "-o", "answers.jsonl")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    found = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    alone = rows(clipcls("predict", str(EXAMPLES), "--labels", "cat,dog,truck", *MODEL, "--format", "jsonl"))
    for mine, own in zip(found, alone, strict=True):
        assert mine["path"] == own["path"] and mine["animal"]["label"] == own["label"]
        assert mine["animal"]["score"] == pytest.approx(own["score"], abs=1e-5)
        assert (mine["colour"] is None) == (own["label"] == "truck")
    refused = clipcls("sort", "answers.jsonl", "--into", "sorted")
    assert refused.returncode == 2 and b"answers to animal, colour; choose one with --question animal" in refused.stderr
    assert clipcls("sort", "answers.jsonl", "--into", "sorted", "--question", "animal").returncode == 0
    assert {path.name for path in (tmp_path / "sorted").iterdir() if path.is_dir()} >= {"cat", "dog", "truck"}
    measured = clipcls("eval", "sorted", "--predictions", "answers.jsonl", "--question", "animal")
    assert measured.returncode == 2 and b"None of the predictions is of a picture of the data" in measured.stderr
    page = clipcls("report", "answers.jsonl", "--question", "colour")
    assert page.returncode == 0 and (tmp_path / "report.html").exists(), page.stderr


def test_priors_are_taken_off(clipcls: Run) -> None:
    ask = ("ask", str(EXAMPLES), "--questions", "q.yaml", *MODEL, "--format", "csv", "-q")
    plain, without = (clipcls(*ask, *more) for more in ((), ("--without-priors",)))
    assert plain.returncode == without.returncode == 0
    plain_rows, found = (list(csv.DictReader(io.StringIO(done.stdout.decode()))) for done in (plain, without))
    assert [row["animal.label"] for row in plain_rows] == [row["animal.uncorrected"] for row in found]
    assert any(row["animal.score"] != other["animal.score"] for row, other in zip(plain_rows, found, strict=True))


def test_one_question_in_a_table(clipcls: Run) -> None:
    given = ("--question", "What colour is the cat?", "--choices", "black,white")
    done = clipcls("ask", str(EXAMPLES / "black-cat.png"), *given, *MODEL, "--format", "table")
    assert done.returncode == 0 and b"answer: black" in done.stdout
    assert max(map(len, done.stdout.decode().splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ask PICTURES", "No question. Give --questions FILE.yaml"),
        ("ask PICTURES --questions nowhere.yaml", "nowhere.yaml: can't be read"),
        ("ask PICTURES --questions bad.yaml", "bad.yaml, line 3: question 'b': when: 'c' is no question before"),
        ("ask PICTURES --questions q.yaml --choices a,b", "Give --questions FILE, or --question with --choices"),
        ("ask PICTURES --question= --choices a,b", "No question. Give --questions FILE.yaml"),
        ("ask PICTURES --question what --choices a", "two choices or more"),
        ("ask PICTURES --question what --choices a,,b", "--choices a,,b: an empty label"),
        ("ask --questions q.yaml", "No images."),
        ("ask - --questions q.yaml --without-priors --model pictogram", "standard input can be read once only"),
        ("ask PICTURES --questions q.yaml -o q.yaml --format csv", "is one of the inputs, which it would overwrite"),
        ("eval mc.jsonl --labels a,b", "have choices of their own: leave --labels out"),
        ("eval mc.jsonl --model pictogram --model everyday", "one model and one prompt set at a time"),
        ("eval empty.jsonl", "no column question, which multiple choice needs"),
    ],
)
def test_mistakes(arguments: str, message: str, clipcls: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [x, y]\nb:\n  when: {c: x}\n  choices: [x, y]\n")
    (tmp_path / "mc.jsonl").write_text('{"image": "a", "question": "b", "choices": ["x", "y"], "answer": 0}\n')
    (tmp_path / "empty.jsonl").write_text('{"image": "a", "choices": ["x", "y"], "answer": 0}\n')
    done = clipcls(*arguments.replace("PICTURES", str(EXAMPLES)).split())
    assert (done.returncode, done.stdout) == (2, b""), done
    assert message in done.stderr.decode() and len(done.stderr.splitlines()) == 1, done.stderr


def test_multiple_choice(clipcls: Run, tmp_path: Path) -> None:
    def row(picture: str, answer: object, *choices: str, **more: object) -> str:
        question = {"question": "What animal is this?", "choices": list(choices), "answer": answer}
        return json.dumps({"image": str(EXAMPLES / picture), **question, **more}) + "\n"

    (tmp_path / "mc.jsonl").write_text(
        row("cat.png", "cat", "dog", "cat", "truck", id="one")
        + row("dog.jpg", "B", "cat", "dog", id=2)
        + row("poodle.webp", 0, "dog", "cat")
        + row("fire-engine.jpg", 1, "truck", "cat", id="wrong")
        + row("gone.png", 0, "dog", "cat", "truck", "rose")
        + row("cat.png", 7, "dog", "cat")
    )
    done = clipcls("eval", "mc.jsonl", *MODEL, "--format", "json")
    assert done.returncode == 1
    record = json.loads(done.stdout)
    assert record["accuracy"]["value"] == 0.75 and record["measured"] == 4 and record["wrong"] == ["wrong"]
    assert record["chance"] == pytest.approx((1 / 3 + 3 * 0.5) / 4)  # of those that were measured
    assert record["problems"] == ["mc.jsonl, line 6: the answer 7 is none of the choices"]
    shown = clipcls("eval", "mc.jsonl", *MODEL, "-q").stdout.decode()
    assert shown.startswith("4 questions measured\n") and max(map(len, shown.splitlines())) <= 120


def test_multiple_choice_leaves_out_odd_answers(clipcls: Run, tmp_path: Path) -> None:
    row = {"image": str(EXAMPLES / "cat.png"), "question": "What?", "choices": ["dog", "cat"]}
    rows = [json.dumps(row | {"answer": answer}) + "\n" for answer in ("1", "²", "9" * 5000, "", None, [0])]
    (tmp_path / "mc.jsonl").write_text("".join(rows))
    done = clipcls("eval", "mc.jsonl", *MODEL, "--format", "json")
    record = json.loads(done.stdout)
    assert record["measured"] == 1 and len(record["problems"]) == 5 and max(map(len, record["problems"])) < 120
    assert record["problems"][0] == "mc.jsonl, line 2: the answer '²' is none of the choices"


def test_multiple_choice_names_the_question_whose_choices_are_the_same(clipcls: Run, tmp_path: Path) -> None:
    row = {"image": str(EXAMPLES / "cat.png"), "question": "What?", "choices": ["Cat", "cat"], "answer": 0, "id": "one"}
    (tmp_path / "mc.jsonl").write_text(json.dumps(row) + "\n")
    done = clipcls("eval", "mc.jsonl", *MODEL)
    assert done.returncode == 2 and b"error: one: Labels 'Cat' and 'cat' are the same" in done.stderr
