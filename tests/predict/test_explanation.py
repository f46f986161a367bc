"""`predict --explain`: which prompts an answer rests on, as numbers, in JSONL and on a terminal."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.labels.label_files import make_label
from clipcls.outputs.formats.jsonl import JsonlFormat
from clipcls.outputs.formats.table import TableFormat
from clipcls.outputs.rows import prediction_of, row_fields
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring
from clipcls.records import ModelSpec, Prediction
from conftest import ROOT, FakeEncoder, save_pictures

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
TEMPLATES = ["a photo of a {}", "a drawing of the {}", "{} in the rain"]


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return save_pictures(tmp_path / "pictures", 4)


def explained(labels: Any, model: Any, pictures: Any, **options: Any) -> list[Prediction]:
    session = Session(model, options.pop("execution", Execution()))
    return list(Classifier(session, labels, **({"prompts": TEMPLATES} | options), explain=True).predict(pictures))


def test_explanation_gives_the_similarity_of_the_label(tiny_model: Path, pictures: list[Path]) -> None:
    """The normalised mean of the prompts' features is the label's; so of their similarities, and their length."""
    model = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
    labels = ["cat", "delivery truck", "mountain lake"]
    encoder = Session(model, Execution()).encoder
    for prediction in explained(labels, model, pictures, scoring=Scoring(top_k=3)):
        assert prediction.explanation is not None
        found = prediction.explanation.prompts
        assert [entry.label for entry in found] == [entry.label for entry in prediction.top[:2] for _ in TEMPLATES]
        for entry in prediction.top[:2]:
            own = [prompt for prompt in found if prompt.label == entry.label]
            assert [prompt.prompt for prompt in own] == [template.format(entry.label) for template in TEMPLATES]
            length = np.linalg.norm(encoder.encode_text([prompt.prompt for prompt in own]).mean(axis=0))
            mean = np.mean([prompt.similarity for prompt in own]) / length
            assert mean == pytest.approx(entry.similarity, abs=1e-5)
            assert len({prompt.similarity for prompt in own}) == len(own)
        assert prediction.explanation.margin == pytest.approx(prediction.top[0].score - prediction.top[1].score)


def test_explanation_changes_nothing_else(tiny_model: Path, pictures: list[Path]) -> None:
    model = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
    plain = Classifier(Session(model, Execution()), ["cat", "dog"], TEMPLATES).predict(pictures)
    found = explained(["cat", "dog"], model, pictures)
    assert [replace(prediction, explanation=None) for prediction in found] == list(plain)


@pytest.mark.parametrize(
    "scoring",
    [Scoring(), Scoring(multi_label=True), Scoring(kind="cosine"), Scoring(threshold=0.99), Scoring(min_margin=1.9)],
)
def test_explanation_is_of_the_two_best_whatever_is_listed(colours: Path, scoring: Scoring) -> None:
    for prediction in explained(["red", "green", "blue"], FakeEncoder(), colours, scoring=scoring, prompts=["my {}"]):
        assert prediction.explanation is not None
        first, second = prediction.explanation.prompts
        assert first.label == prediction.top[0].label == Path(prediction.path).stem
        assert first.similarity > second.similarity
        assert first.similarity == pytest.approx(prediction.top[0].similarity)
        assert prediction.explanation.margin is not None
        assert prediction.explanation.margin > 0


def test_explanation_of_a_single_label_has_no_margin(colours: Path) -> None:
    for prediction in explained(["red"], FakeEncoder(), colours, scoring=Scoring(kind="cosine"), prompts=["my {}"]):
        assert prediction.explanation is not None
        assert prediction.explanation.margin is None
        assert len(prediction.explanation.prompts) == 1


def test_explanation_uses_a_labels_own_prompts(colours: Path) -> None:
    labels = [make_label("warm", prompts=["red", "all red"]), make_label("cold", ["green"])]
    (prediction,) = explained(labels, FakeEncoder(), [colours / "red.png"], prompts=["my {}"])
    assert prediction.explanation is not None
    said = [entry.prompt for entry in prediction.explanation.prompts]
    assert said == ["red", "all red", "my cold", "my green"]


def test_explanation_embeds_prompts_of_the_best_once_and_keeps_them(colours: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    execution = Execution(cache_dir=tmp_path / "cache")
    pictures = [colours / "red.png"] * 3
    labels = ["red", "green red", "blue"]
    explained(labels, encoder, pictures, execution=execution, prompts=["my {}", "the {}"])
    assert len(encoder.texts) == 3 * 2 + 2 * 2
    encoder.texts.clear()
    explained(labels, encoder, pictures, execution=execution, prompts=["my {}", "the {}"])
    assert not encoder.texts
    assert not any("blue" in text for text in encoder.texts)


def test_a_picture_with_an_error_has_no_explanation(colours: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    (prediction,) = explained(["red", "blue"], FakeEncoder(), [bad])
    assert prediction.error is not None
    assert prediction.explanation is None
    assert "explain" not in row_fields(prediction)


def test_explanations_are_read_back_from_jsonl(colours: Path) -> None:
    for prediction in explained(["red", "green"], FakeEncoder(), colours):
        row = json.loads(JsonlFormat().row(prediction))
        assert list(row["explain"]) == ["margin", "prompts"]
        assert all(list(entry) == ["label", "prompt", "similarity"] for entry in row["explain"]["prompts"])
        assert row_fields(prediction_of(row)) == row_fields(prediction)
        assert "explain" not in row_fields(replace(prediction, explanation=None))


def test_explanations_are_indented_on_a_terminal(colours: Path) -> None:
    (prediction,) = explained(
        ["red", "green"], FakeEncoder(), [colours / "red.png"], prompts=["a {}", "long " * 30 + "{}"]
    )
    row = TableFormat().for_labels(("red", "green"), 60).row
    plain, *lines = row(prediction).splitlines()
    assert plain == row(replace(prediction, explanation=None)).rstrip("\n")
    assert len(lines) == 1 + 2 * 2
    assert lines[0].split()[-1] == "margin"
    assert lines[1].split()[1:] == ["red", "a", "red"]
    assert lines[3].split()[1:] == ["green", "a", "green"]
    assert all(line.startswith("    ") and len(line) <= 60 for line in lines)
    assert lines[2].endswith("…")


def test_settings_tell_runs_with_explanations_from_those_without() -> None:
    session, scoring = Session(FakeEncoder(), Execution()), Scoring(kind="cosine")
    before = Classifier(session, ["red"], scoring=scoring).settings()
    assert Classifier(session, ["red"], scoring=scoring, explain=True).settings() == before | {"--explain": True}
    assert "--explain" not in before


@pytest.mark.parametrize(
    "options", [(), ("--format", "csv"), ("-o", "out.csv"), ("--output-dir", "out"), ("-o", "x.tsv")]
)
def test_predict_refuses_explanations_in_other_formats(options: tuple[str, ...], clipcls: Run, tmp_path: Path) -> None:
    done = clipcls("predict", "x.png", "--labels", "a,b", "--explain", *options)
    assert (done.returncode, b"--explain" in done.stderr) == (2, True)
    assert not list(tmp_path.glob("out*"))


def test_predict_writes_explanations_and_goes_on_with_them(
    clipcls: Run, tiny_model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "pictures" / "bad.png").write_bytes(b"no picture")
    command = ["predict", "pictures", "--model", tiny_model, "--labels", "cat,dog", "-o", "out.jsonl"]
    assert clipcls(*command, "--explain").returncode == 1
    pictures[0].rename(tmp_path / "pictures" / "bad.png")
    first = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    done = clipcls(*command, "--explain", "--resume", "--retry-errors")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(len(row["explain"]["prompts"]) == 2 * 5 for row in rows)
    assert [row for row in first if row["error"] is None] == rows[: len(first) - 1]
    refused = clipcls(*command, "--resume")
    assert refused.returncode == 2
    assert b"--explain" in refused.stderr


def test_cached_explanations_need_no_torch(
    clipcls: Run, tiny_model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    command = [
        "predict",
        "pictures",
        "--model",
        str(tiny_model),
        "--labels",
        "cat,dog",
        "--explain",
        "--format",
        "jsonl",
    ]
    first = clipcls(*command)
    assert first.returncode == 0, first.stderr
    code = (
        f"import sys, atexit; sys.argv = ['clipcls', *{command!r}]\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
        "from clipcls.cli import main; main()"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    second = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, env=environment)
    assert (second.returncode, second.stderr) == (0, b"False\n")
    assert second.stdout == first.stdout
