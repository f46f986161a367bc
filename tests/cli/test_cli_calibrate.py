"""`clipcls calibrate` and `predict --calibration` through their real entry point, as processes."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from test_start_up import loaded_by

from clipcls.predict.calibration import share_interval
from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

PREDICT = ("predict", "data", "--model", "pictogram", "--labels", "cat,dog,truck", "--format", "jsonl")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 pictures in class folders."""
    return save_classes(tmp_path_factory.mktemp("pictures"), 60)


@pytest.fixture
def data(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same pictures for each test, which are embedded once."""
    monkeypatch.setenv("CLIPCLS_CACHE_DIR", str(pictures.parent / "cache"))
    shutil.copytree(pictures, tmp_path / "data", copy_function=os.link)
    return tmp_path / "data"


def save_classes(tmp_path: Path, count: int) -> Path:
    """The example pictures in class folders, turned, faded and with noise, so that some are taken for others."""
    random = np.random.default_rng(0)
    for name in ("cat", "dog", "truck"):
        (tmp_path / "data" / name).mkdir(parents=True)
        pictures = sorted(path for path in EXAMPLES.iterdir() if kind_of(path) == name)
        for number in range(count):
            path = pictures[number % len(pictures)]
            with Image.open(path) as picture:
                clear = picture.convert("RGBA").resize((48, 48))
            white = Image.new("RGBA", clear.size, "white")
            white.alpha_composite(clear)
            turned = white.convert("RGB").rotate(random.uniform(-40, 40), fillcolor=(255, 255, 255))
            faded = np.asarray(turned) * random.uniform(0.4, 1) + random.normal(0, random.uniform(5, 90), (48, 48, 3))
            Image.fromarray(faded.clip(0, 255).astype(np.uint8)).save(tmp_path / "data" / name / f"{number:03d}.png")
    return tmp_path / "data"


def kind_of(path: Path) -> str | None:
    words = {"cat": "cat", "dog": "dog", "poodle": "dog", "truck": "truck", "lorry": "truck"}
    return next((name for word, name in words.items() if word in path.stem and path.suffix != ".txt"), None)


def calibrated(clipcls: Run, *options: str, file: str = "cal.yaml") -> "subprocess.CompletedProcess[bytes]":
    done = clipcls("calibrate", "data", "--model", "pictogram", "-o", file, *options)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    return done


def rows(done: "subprocess.CompletedProcess[bytes]") -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def right(row: dict[str, Any]) -> bool:
    return bool(row["label"] == Path(row["path"]).parent.name)


def figures(text: str) -> dict[str, tuple[float, float, float]]:
    """Of each figure in the first table: before, after, and the upper end of the interval after."""
    found: dict[str, tuple[float, float, float]] = {}
    for line in text.splitlines():
        for name in ("accuracy@1", "calibration error", "log loss", "right of the answered"):
            if line.startswith(name) and name not in found:
                numbers = line[len(name) :].split()
                found[name] = (float(numbers[0]), float(numbers[4]), float(numbers[7]))
    return found


def test_calibrate_lowers_the_error_on_pictures_that_were_held_out(clipcls: Run, data: Path, tmp_path: Path) -> None:
    text = calibrated(clipcls, "--holdout", "0.5", "--target-precision", "0.8").stdout.decode()
    assert text.startswith("90 images, 3 labels\ntemperature ")
    assert "On 90 images that were held out:" in text and "On the 90 images that it was fitted on:" in text
    assert max(map(len, text.splitlines())) <= 80
    found = figures(text)
    before, after, _ = found["calibration error"]
    assert after < before
    assert found["log loss"][1] < found["log loss"][0]
    assert found["accuracy@1"][0] == found["accuracy@1"][1] < found["right of the answered"][1]
    content = yaml.safe_load((tmp_path / "cal.yaml").read_text())
    assert content["model"]["name"] == "pictogram" and content["fitted_on"]["images"] == 90
    again = calibrated(clipcls, "--holdout", "0.5", "--target-precision", "0.8", file="again.yaml").stdout.decode()
    assert again == text


def test_calibrate_finds_thresholds_that_hold_on_pictures_that_were_held_out(clipcls: Run, tmp_path: Path) -> None:
    save_classes(tmp_path, 150)
    text = calibrated(clipcls, "--holdout", "0.5", "--target-precision", "0.95").stdout.decode()
    before, after, high = figures(text)["right of the answered"]
    assert before < 0.8 < 0.9 < after and high >= 0.95
    labels = yaml.safe_load((tmp_path / "cal.yaml").read_text())["labels"]
    found = [label for label in labels if label["threshold"] is not None]
    assert found and all(label["right"] >= 0.95 * label["answers"] >= 19 for label in found)


def test_predict_with_a_calibration_answers_as_it_was_measured(clipcls: Run, data: Path, tmp_path: Path) -> None:
    calibrated(clipcls, "--target-precision", "0.9", "--min-answers", "10")
    content = yaml.safe_load((tmp_path / "cal.yaml").read_text())
    plain, found = rows(clipcls(*PREDICT)), rows(clipcls(*PREDICT, "--calibration", "cal.yaml"))
    answered = [row for row in found if row["label"] is not None]
    assert 0 < len(answered) < len(plain)
    assert sum(map(right, answered)) >= 0.9 * len(answered) > 0.9 * sum(map(right, plain)) / len(plain)
    for label in content["labels"]:
        own = [row for row in answered if row["label"] == label["name"]]
        assert (len(own), sum(map(right, own))) == (label["answers"], label["right"])
        if own:
            low, high = share_interval(label["right"], label["answers"])
            assert label["precision_between"] == [round(low, 4), round(high, 4)]
    scores = [row["score"] for row in found]
    assert np.mean(scores) < np.mean([row["score"] for row in plain])


def test_calibrate_of_several_labels(clipcls: Run, data: Path, tmp_path: Path) -> None:
    paths = sorted(path.relative_to(tmp_path) for path in data.rglob("*.png"))
    lines = [f"{path},{path.parent.name}{';pet' if path.parent.name != 'truck' else ''}" for path in paths]
    (tmp_path / "truth.csv").write_text("path,labels\n" + "\n".join(lines))
    done = clipcls("calibrate", "truth.csv", "--model", "pictogram", "--best-f1", "-o", "cal.yaml")
    assert done.returncode == 0, done.stderr
    assert b"logit_bias" in done.stdout and b"micro F1" in done.stdout
    labels = "--labels=" + ",".join(
        label["name"] for label in yaml.safe_load((tmp_path / "cal.yaml").read_text())["labels"]
    )
    common = ("predict", "data", "--model", "pictogram", labels, "--multi-label", "--format", "jsonl")
    found, plain = rows(clipcls(*common, "--calibration", "cal.yaml")), rows(clipcls(*common))
    assert [row["label"] for row in found] != [row["label"] for row in plain]
    done = clipcls("predict", "data", "--model", "pictogram", labels, "--calibration", "cal.yaml")
    assert done.returncode == 2
    assert b"they were --score sigmoid --multi-label and are --score softmax" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "cat,dog,bus"], "the labels are without 'truck' and with 'bus'"),
        (["--labels", "cat,dog,truck", "--prompts", "simple"], "the prompts differ (default then, simple now)"),
        (["--labels", "cat,dog,truck", "--score", "cosine"], "they were --score softmax and are --score cosine"),
        (["--labels", "cat,dog,truck", "--model", "MODEL"], "the model was pictogram ("),
        (["--labels", "cat,dog,truck", "--threshold", "0.5"], "has a threshold for each label: leave --threshold out"),
    ],
)
def test_predict_refuses_a_calibration_of_something_else(
    clipcls: Run, data: Path, tiny_model: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    calibrated(clipcls, "--best-f1")
    (tmp_path / "out.tsv").write_text("kept")
    given = [str(tiny_model) if option == "MODEL" else option for option in options]
    model = [] if "--model" in given else ["--model", "pictogram"]
    done = clipcls("predict", "data", *model, *given, "--calibration", "cal.yaml", "-o", "out.tsv")
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode() and b"cal.yaml" in done.stderr and b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (tmp_path / "out.tsv").read_text() == "kept"


def test_predict_says_that_the_precision_is_another(clipcls: Run, data: Path) -> None:
    calibrated(clipcls, "--precision", "fp32")
    done = clipcls(*PREDICT, "--calibration", "cal.yaml", "--precision", "bf16")
    assert done.returncode == 0
    assert b"warning: cal.yaml: --precision fp32 then, bf16 now; scores differ a little" in done.stderr


def test_predict_is_not_gone_on_with_under_another_calibration(clipcls: Run, data: Path, tmp_path: Path) -> None:
    calibrated(clipcls)
    calibrated(clipcls, "--best-f1", file="other.yaml")
    common = (*PREDICT, "-o", "out.jsonl", "--resume")
    assert clipcls(*common, "--calibration", "cal.yaml").returncode == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    for options in (["--calibration", "other.yaml"], []):
        done = clipcls(*common, *options)
        assert done.returncode == 2 and b"--calibration (" in done.stderr, done.stderr
    assert clipcls(*common, "--calibration", "cal.yaml").returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_calibrate_to_standard_output_tells_figures_on_standard_error(clipcls: Run, data: Path) -> None:
    done = clipcls("calibrate", "data", "--model", "pictogram", "-o", "-")
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["clipcls_calibration"] == 1
    assert b"calibration error" in done.stderr
    quiet = clipcls("calibrate", "data", "--model", "pictogram", "-o", "-", "-q")
    assert (quiet.stdout, quiet.stderr) == (done.stdout, b"")


def test_calibrate_replaces_a_calibration_and_nothing_else(clipcls: Run, data: Path, tmp_path: Path) -> None:
    calibrated(clipcls)
    calibrated(clipcls, "--best-f1")
    assert yaml.safe_load((tmp_path / "cal.yaml").read_text())["thresholds"]["rule"] == "best F1"
    (tmp_path / "prompts.yaml").write_text("- a photo of a {}\n")
    done = clipcls("calibrate", "data", "--model", "pictogram", "-o", "prompts.yaml")
    assert done.returncode == 2 and b"there is a file that isn't a calibration" in done.stderr
    assert (tmp_path / "prompts.yaml").read_text() == "- a photo of a {}\n"
    assert clipcls("calibrate", "data", "--model", "pictogram", "-o", "nowhere/cal.yaml").returncode == 4
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_calibrate_tells_of_what_it_cannot_do(clipcls: Run, data: Path) -> None:
    (data / "cat" / "bad.png").write_bytes(b"no picture")
    (data / "ship").mkdir()
    options = ("--target-precision", "0.95", "--labels", "cat,dog,bus")
    done = clipcls("calibrate", "data", "--model", "pictogram", "-o", "cal.yaml", *options)
    text = done.stdout.decode()
    assert done.returncode == 1
    assert b"data/cat/bad.png: not an image" in done.stderr
    assert b"1 of 181 images could not be read" in done.stderr
    assert "never answered: no image of it" in text and "never answered, so that such images will be unknown: " in text
    assert "60 images are of classes that aren't among the labels" in text
    assert "data/ship: a class without pictures" in text


def test_calibrate_says_that_few_images_are_few_and_that_none_was_wrong(clipcls: Run, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(path for path in EXAMPLES.iterdir() if kind_of(path))):
        folder = tmp_path / "data" / str(kind_of(path))
        folder.mkdir(parents=True, exist_ok=True)
        os.link(path, folder / f"{number}{path.suffix}")
    text = calibrated(clipcls, "--target-precision", "0.95").stdout.decode()
    assert "images are few" in text and "no answer was wrong" in text and "temperature 1 (" in text
    assert "of 20 that it takes" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "-o", "c.yaml"], "nowhere: no such file or folder"),
        (["data", "-o", "c.yaml", "--target-precision", "95"], "--target-precision must lie between 0 and 1"),
        (["data", "-o", "c.yaml", "--target-precision", "0.9", "--best-f1"], "give one"),
        (["data", "-o", "c.yaml", "--min-answers", "5"], "--min-answers is for thresholds"),
        (["data", "-o", "c.yaml", "--holdout", "2"], "--holdout is a share"),
        (["data", "-o", "c.yaml", "--score", "cosine"], "Cosines have no temperature"),
        (["data", "-o", "c.yaml", "--labels", "cat"], "With one label its softmax score is always 1"),
        (["data", "-o", "c.yaml", "--prompts", "simple", "--template", "{}"], "not both"),
        (["data", "-o", "data"], "can't be written"),
    ],
)
def test_calibrate_refuses_what_cannot_be_calibrated(
    clipcls: Run, tmp_path: Path, arguments: list[str], message: str
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "a.png")
    done = clipcls("calibrate", *arguments)
    assert done.returncode == (4 if arguments[-1] == "data" else 2), done.stderr
    assert message in done.stderr.decode() and b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout
    assert not (tmp_path / "c.yaml").exists()


@pytest.mark.parametrize("content", [b"", b"a: [", b"clipcls_calibration: 9\n", b"clipcls_calibration: 1\n"])
def test_predict_refuses_what_is_no_calibration(clipcls: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cal.yaml").write_bytes(content)
    done = clipcls("predict", EXAMPLES, "--model", "pictogram", "--labels", "cat,dog", "--calibration", "cal.yaml")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"clipcls: error: cal.yaml: ") and len(done.stderr.splitlines()) == 1


def test_calibrated_run_over_the_cache_loads_no_torch(clipcls: Run, data: Path, tmp_path: Path) -> None:
    calibrated(clipcls)
    file = str(tmp_path / "cal.yaml")
    heavy = {"torch", "open_clip", "sklearn", "scipy", "matplotlib"}
    assert not loaded_by("calibrate", str(data), "--model", "pictogram", "-o", file) & heavy
    predict = ("predict", str(data), "--model", "pictogram", "--labels", "cat,dog,truck", "--calibration", file)
    assert not loaded_by(*predict) & heavy


def test_calibrate_help_loads_nothing_heavy() -> None:
    assert not loaded_by("calibrate", "--help") & {"torch", "numpy", "PIL", "rich", "yaml", "matplotlib"}
