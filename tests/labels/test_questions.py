"""Files of questions, what is wrong with them, and statements that questions become."""

from pathlib import Path

import pytest

from clipcls.errors import UsageError
from clipcls.labels.questions import Question, make_question, read_questions, weaknesses


def read(tmp_path: Path, text: str) -> tuple[Question, ...]:
    (tmp_path / "q.yaml").write_text(text, encoding="utf-8")
    return read_questions(tmp_path / "q.yaml")


def test_all_that_a_file_may_say(tmp_path: Path) -> None:
    (tmp_path / "breeds.txt").write_text("poodle\nbeagle\n")
    found = read(
        tmp_path,
        f"""
        animal: [cat, dog, 柴犬]
        breed:
          labels: {tmp_path / "breeds.txt"}
          templates: a photo of a {{}}, a dog
          when: {{animal: dog}}
        colour:
          question: What colour is the animal?
          choices: {{black: [jet], white: }}
          when:
            animal: [cat, dog]
            breed: poodle
        door:
          statements: {{open: the door is open, shut: [the door is shut, a shut door]}}
        tags:
          choices: [face, car]
          multi: true
          threshold: 0.7
          templates: pictogram
        """,
    )
    animal, breed, colour, door, tags = found
    assert [label.name for label in animal.labels] == ["cat", "dog", "柴犬"] and animal.prompts is None
    assert [label.name for label in breed.labels] == ["poodle", "beagle"] and breed.when == (("animal", ("dog",)),)
    assert breed.prompts is not None and breed.prompts.templates == ("a photo of a {}, a dog",)
    assert colour.prompts is not None and colour.prompts.templates == ("the animal is {}",)
    assert colour.labels[0].texts == ("black", "jet") and len(colour.when) == 2
    assert door.labels[1].prompts == ("the door is shut", "a shut door")
    assert tags.multi and tags.threshold == 0.7 and tags.prompts is not None and tags.prompts.name == "pictogram"


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: [x, y]\nb: [x\n", 3, "not valid YAML"),
        ("a: [x, y]\na: [x, y]\n", 2, "question 'a': it is there twice"),
        (
            "a: [x, y]\nb:\n  choices: [x, y]\n  when: {c: x}\n",
            4,
            "when: 'c' is no question before this one; there are a",
        ),
        ("a: [x, y]\nb:\n  choices: [x, y]\n  when: {a: z}\n", 4, "when: 'z' is no choice of 'a'; there are x, y"),
        ("b:\n  choices: [x, y]\n  when: {b: x}\n", 3, "when: 'b' is no question before this one; there are none"),
        ("a:\n  choices: [x, y]\n  when: x\n", 3, "when: expected a question and its answer"),
        ("a:\n  choices: [x, y]\n\n  whn: {}\n", 4, "unknown key 'whn'"),
        ("a:\n  multi: true\n", 1, "give its answers once"),
        ("a:\n  choices: [x, y]\n  labels: [x, y]\n", 1, "give its answers once"),
        ("# first\na: []\n", 2, "no choices"),
        ("a: [x]\n", 1, "two choices or more"),
        ("a: [x, X]\n", 1, "same"),
        ("a: [x, x]\n", 1, "'x' is there twice"),
        ("a:\n  choices: [x, y]\n  templates: 'a photo'\n", 1, "No prompt set or file 'a photo'"),
        ("a:\n  choices: [x, y]\n  templates: ['{b}']\n", 1, "unknown placeholder {b}"),
        ("a:\n  choices: [x, y]\n  threshold: high\n", 1, "threshold: expected a number from 0 to 1, found 'high'"),
        ("a:\n  choices: [x, y]\n  threshold: true\n", 1, "threshold: expected a number from 0 to 1, found True"),
        ("a:\n  choices: [x, y]\n  threshold: -3\n", 1, "threshold: expected a number from 0 to 1, found '-3'"),
        ("a:\n  choices: [x, y]\n  multi: perhaps\n", 1, "multi: expected true or false"),
        ("a:\n  statements: [x, y]\n", 1, "statements: expected each choice with a statement"),
        ("a:\n  statements: {x: 'text', y: {z: 1}}\n", 1, "expected a text, or a list of texts"),
        ("path: [x, y]\n", 1, "rows have a field 'path' of their own"),
        ("a.b: [x, y]\n", 1, "without dots"),
        ("a: [yes, no]\n", 1, "Put it in quotes"),
        ("a: nowhere-at-all\n", 1, "nowhere-at-all"),
    ],
)
def test_mistakes_name_the_line(text: str, line: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'q.yaml'}, line {line}: ") and message in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text\n", "{}\n", "\0"])
def test_files_without_questions(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"q\.yaml"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("question", "statement"),
    [
        ("What colour is the car?", "the car is {}"),
        ("which color are the doors", "the doors are {}"),
        ("What animal is this?", "a photo of a {}"),
        ("What is shown?", None),
        ("Where is the cat?", "the cat is {}"),
        ("What is the man doing?", "the man is {}"),
        ("What kind of dog is it?", "a photo of a {}, a dog"),
        ("How is the weather?", "the weather is {}"),
        ("Is it raining {now}?", None),
    ],
)
def test_questions_become_statements(question: str, statement: str | None) -> None:
    prompts = make_question(question, ["a", "b"]).prompts
    assert (None if prompts is None else prompts.templates[0]) == statement


def test_what_models_tell_badly_is_known() -> None:
    def of(text: str, *choices: str) -> list[str]:
        return [what for what, _ in weaknesses(make_question(text, choices))]

    assert of("What animal is this?", "cat", "dog") == []
    assert of("How many cats are there?", "one", "two") == ["counting"]
    assert of("", "1", "2", "3") == ["counting"]
    assert of("Is there a dog?", "yes", "no") == ["negation"]
    assert of("Where is the cat?", "left", "right of it") == ["positions"]
