"""`clipcls eval` through its real entry point, as a process."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_start_up import loaded_by

from clipcls.models.catalog import EMBEDDED
from conftest import EXAMPLES, TINY_CONFIG, save_model, save_pictures
from labelled import NAMES, write_shards, write_tar
from pictures import encoded
from shell import Started

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The example pictures in class folders."""
    names = {"cat": "*cat*", "dog": "*dog*", "truck": "*truck*"}
    for name, pattern in names.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for path in EXAMPLES.glob(pattern):
            shutil.copy(path, tmp_path / "data" / name)
    return tmp_path / "data"


def result(done: "subprocess.CompletedProcess[bytes]") -> dict[str, Any]:
    made = json.loads(done.stdout)
    return dict(made["results"][made["best"]])


def accuracy(done: "subprocess.CompletedProcess[bytes]") -> float:
    return float(result(done)["figures"]["accuracy@1"]["value"])


def test_eval_of_class_folders_says_all_there_is(clipcls: Run, data: Path) -> None:
    done = clipcls("eval", "data", "--model", "pictogram")
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    assert text.startswith(f"{sum(1 for _ in data.rglob('*.*'))} images measured, 3 labels\n")
    words = ("accuracy@1", "accuracy@3", "mean per-class recall", "calibration error", "Brier score", "95 % interval")
    assert all(word in text for word in (*words, "precision", "threshold", "coverage"))
    assert text.endswith("clipcls predict INPUT --model pictogram --labels cat,dog,truck\n")


def test_confused_pairs_share_their_folder_unless_all_is_asked_for(clipcls: Run, data: Path) -> None:
    (data / "cat").rename(data / "moved")
    (data / "dog").rename(data / "cat")
    (data / "moved").rename(data / "dog")
    run = ("eval", "data", "--model", "pictogram")
    short = clipcls(*run).stdout.decode().partition("truth")[2].partition("\n\n")[0].splitlines()
    whole = clipcls(*run, "-v").stdout.decode().partition("truth")[2].partition("\n\n")[0].splitlines()
    assert short[0].endswith("such as, in data/")
    assert whole[0].endswith("such as")
    assert all(line.count("/") == 1 and "data/" not in line for line in short[1:])
    assert all(line.count("data/") == 3 for line in whole[1:])


def test_eval_suggests_a_command_that_gives_the_accuracy_it_says(clipcls: Run, data: Path) -> None:
    common = ("--model", "pictogram", "--format", "json")
    done = clipcls(
        "eval", "data", *common, "--prompts", "simple", "--template", "an icon of {}", "--template", "{} icon"
    )
    command = json.loads(done.stdout)["command"]
    import shlex

    arguments = ["data" if part == "INPUT" else part for part in shlex.split(command)[1:]]
    predicted = clipcls(*arguments, "--format", "jsonl")
    rows = [json.loads(line) for line in predicted.stdout.splitlines()]
    assert np.mean([row["label"] == Path(row["path"]).parent.name for row in rows]) == accuracy(done)


@pytest.mark.parametrize("command", ["eval", "calibrate"])
def test_addresses_in_tables_are_fetched_as_predict_fetches_them(clipcls: Run, data: Path, command: str) -> None:
    rows = [f"{path},{path.parent.name}" for path in sorted(data.rglob("*.*"))]
    (data.parent / "t.csv").write_text("\n".join(["path,label", *rows, *rows, "http://127.0.0.1:9/1.jpg,cat"]))
    run = (command, "t.csv", "--model", "pictogram", "--output", "out")
    for options, message in (((), b"an address; --allow-urls has it fetched"), (("--allow-urls",), b"private")):
        done = clipcls(*run, *options)
        assert done.returncode == 1
        assert b"http://127.0.0.1:9/1.jpg: " in done.stderr and message in done.stderr


def test_eval_compares_models_and_prompts(clipcls: Run, data: Path, tiny_model: Path) -> None:
    arguments = (
        "eval",
        "data",
        "--model",
        tiny_model,
        "--model",
        "pictogram",
        "--prompts",
        "simple",
        "--prompts",
        "default",
    )
    text = clipcls(*arguments).stdout.decode()
    lines = [line for line in text.splitlines() if line.startswith((str(tiny_model), "pictogram "))]
    assert len(lines) == 4
    assert "McNemar's p" in text and "to the best" in text and "corrected for 3 comparisons" in text
    assert "The best, model pictogram" in text
    made = json.loads(clipcls(*arguments, "--format", "json").stdout)
    assert [(row["model"], row["prompts"]) for row in made["results"]] == [
        (model, prompts) for model in (str(tiny_model), "pictogram") for prompts in ("simple", "default")
    ]
    assert made["results"][made["best"]]["difference_to_best"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_eval_takes_the_model_from_the_environment(
    clipcls: Run, data: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "my model")
    monkeypatch.setenv("CLIPCLS_MODEL", str(tmp_path / "my model"))
    done = clipcls("eval", "data", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert [row["model"] for row in json.loads(done.stdout)["results"]] == [str(tmp_path / "my model")]


def test_eval_reports_pictures_that_cannot_be_read(clipcls: Run, data: Path) -> None:
    (data / "cat" / "bad.png").write_bytes(b"no picture")
    done = clipcls("eval", "data", "--model", "pictogram")
    count = sum(1 for _ in data.rglob("*.*"))
    assert done.returncode == 1
    assert f"{count - 1} of {count} images measured".encode() in done.stdout
    assert b"1 images could not be read and are in none of the figures: data/cat/bad.png" in done.stdout
    assert b"data/cat/bad.png: not an image" in done.stderr
    quiet = clipcls("eval", "data", "--model", "pictogram", "-q")
    assert (quiet.returncode, quiet.stderr, quiet.stdout) == (1, b"", done.stdout)


def test_eval_says_what_it_counts_as_wrong_and_what_never_occurs(clipcls: Run, data: Path) -> None:
    (data / "ship").mkdir()
    done = clipcls("eval", "data", "--model", "pictogram", "--labels", "cat,dog,banana")
    text = done.stdout.decode()
    assert done.returncode == 0
    assert "aren't among the labels: truck (" in text and "counted as wrong; accuracy@1 without them: 1.0000" in text
    assert "no image is of banana" in text
    assert "data/ship: a class without pictures" in text


def test_eval_with_one_label_says_that_it_tells_nothing(clipcls: Run, data: Path) -> None:
    shutil.rmtree(data / "cat")
    shutil.rmtree(data / "dog")
    done = clipcls("eval", "data", "--model", "pictogram")
    assert done.returncode == 0
    assert b"Note: with one label" in done.stdout and b"accuracy@1" in done.stdout


def test_eval_says_how_little_a_few_right_answers_tell(clipcls: Run, data: Path) -> None:
    count = sum(1 for _ in data.rglob("*.*"))
    done = clipcls("eval", "data", "--model", "pictogram")
    assert (
        f"no answer was wrong, so that resamples can't be; of new images, up to {3 / count:.1%}" in done.stdout.decode()
    )


def test_eval_ends_with_sigterm_without_a_figure(start: Callable[..., Started], data: Path, tiny_model: Path) -> None:
    (picture,) = save_pictures(data / "noise", 1, (800, 600))
    for number in range(500):
        os.link(picture, data / "noise" / f"{number}.png")
    process = start("eval", data, "--model", tiny_model, "--no-cache", "-v")
    for line in process.stderr:
        if b"texts:" in line:
            break
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate()
    assert (process.wait(), output) == (143, b"")
    assert b"Traceback" not in errors and b"interrupted" in errors


def test_eval_judges_predictions_without_a_model(clipcls: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert clipcls("predict", data, "--model", "pictogram", "--labels", "cat,dog,truck", "--top-k", "3", "-o", out)
    direct = clipcls("eval", "data", "--model", "pictogram", "--format", "json")
    judged = clipcls("eval", "data", "--predictions", out, "--format", "json")
    assert judged.returncode == 0, judged.stderr
    for name, estimate in result(direct)["figures"].items():
        assert result(judged)["figures"][name]["value"] == pytest.approx(estimate["value"], abs=1e-6)
    assert json.loads(judged.stdout)["command"] is None
    text = clipcls("eval", "data", "--predictions", out).stdout.decode()
    assert "accuracy@1" in text and "clipcls predict" not in text
    loaded = loaded_by("eval", str(data), "--predictions", str(out))
    assert not loaded & {"torch", "open_clip", "sklearn", "scipy", "matplotlib"}


def test_eval_judges_part_files(clipcls: Run, data: Path, tmp_path: Path) -> None:
    common = ("data", "--model", "pictogram", "--labels", "cat,dog,truck")
    clipcls("predict", *common, "--output-dir", tmp_path / "parts", "--format", "jsonl")
    whole = (tmp_path / "parts" / "part-000000.jsonl").read_bytes().splitlines(keepends=True)
    for number, lines in enumerate((whole[:3], whole[3:])):
        (tmp_path / "parts" / f"part-{number:06d}.jsonl").write_bytes(b"".join(lines))
    done = clipcls("eval", "data", "--predictions", "parts", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["measured"] == len(whole) > 6


def test_eval_of_short_predictions_says_what_it_leaves_out(clipcls: Run, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    assert clipcls("predict", "data", "--model", "pictogram", "--labels", "cat,dog,truck", "-o", out)
    done = clipcls("eval", "data", "--predictions", out)
    assert done.returncode == 0
    assert b"Brier score: left out, the predictions list 1 of 3 labels" in done.stdout


def test_eval_over_the_cache_loads_no_torch(clipcls: Run, data: Path) -> None:
    arguments = ("eval", str(data), "--model", "pictogram", "--prompts", "simple", "--prompts", "default")
    assert clipcls(*arguments).returncode == 0
    assert not loaded_by(*arguments) & {"torch", "open_clip", "sklearn", "scipy", "matplotlib"}


def test_eval_help_loads_nothing_heavy() -> None:
    assert not loaded_by("eval", "--help") & {"torch", "numpy", "PIL", "rich", "yaml", "matplotlib"}


def test_eval_of_a_table_with_several_labels(clipcls: Run, data: Path, tiny_model: Path) -> None:
    paths = sorted(path.relative_to(data.parent) for path in data.rglob("*.*"))
    rows = [f"{path},{path.parent.name}{';pet' if path.parent.name != 'truck' else ''}" for path in paths]
    (data.parent / "truth.csv").write_text("path,labels\n" + "\n".join(rows))
    done = clipcls("eval", "truth.csv", "--model", tiny_model, "--threshold", "0.4")
    text = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "mean average precision" in text and "micro F1" in text
    assert "--threshold 0.4 --multi-label" in text


def test_eval_draws_the_confusion_matrix(clipcls: Run, data: Path, tmp_path: Path) -> None:
    done = clipcls("eval", "data", "--model", "pictogram", "--confusion-plot", "confusion.png")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG"
        pixels = np.array(picture.convert("RGB"))
    # the full diagonal in the darkest blue
    assert (pixels == (8, 48, 107)).all(axis=2).sum() > 10_000


def test_eval_writes_a_file(clipcls: Run, data: Path, tmp_path: Path) -> None:
    done = clipcls("eval", "data", "--model", "pictogram", "--format", "json", "-o", "out.json")
    assert (done.returncode, done.stdout) == (0, b"")
    assert json.loads((tmp_path / "out.json").read_text())["measured"] > 6


def test_eval_writes_into_what_is_no_file_without_replacing_it(clipcls: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").touch()
    (tmp_path / "link.json").symlink_to("real.json")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    common = ("eval", "data", "--model", "pictogram", "--format", "json", "-q", "-o")
    assert clipcls(*common, "link.json").returncode == clipcls(*common, "pipe").returncode == 0
    written = (tmp_path / "real.json").read_bytes()
    assert json.loads(written)["measured"] > 6
    assert os.read(reader, 1 << 16) == written
    os.close(reader)
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "pipe").is_fifo()


def test_eval_names_cannot_move_the_cursor_or_mean_markup(clipcls: Run, tmp_path: Path, tiny_model: Path) -> None:
    for name in ("a [red]b", "dog\x1b[2J", "猫"):
        save_pictures(tmp_path / "data" / name, 2)
    (tmp_path / "data" / "猫" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    done = clipcls("eval", "data", "--model", tiny_model)
    assert done.returncode == 1
    assert b"\x1b" not in done.stdout and "a [red]b" in done.stdout.decode()
    made = json.loads(clipcls("eval", "data", "--model", tiny_model, "--format", "json").stdout)
    assert made["failed"][0].keys() == {"path", "error", "path_b64"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["data", "--labels", "tree,house"], "None of the data's classes is among the labels"),
        (["data", "--model", "a", "--model", "b", "--arch", "ViT-B-32"], "evaluate it by itself"),
        (["data", "--predictions", "none.jsonl"], "none.jsonl: can't be read: no such file"),
        (["data", "--predictions", "none.jsonl", "--prompts", "simple"], "leave --prompts out"),
        (["data", "--predictions", "labels.yaml"], "labels.yaml: its name tells no format"),
        (["data", "--predictions", "data"], "data: a folder without part files"),
        (["data", "--threshold", "0.4"], "--threshold is for several labels an image"),
        (["data", "--confusion-plot", "plot.svg"], "ends in .png"),
        (["data", "--confusion-plot", "data/cat/plot.png"], "lies in data, where it would be taken for data"),
        (["data", "-o", "data/cat/cat.png"], "not a name for results"),
        (["data", "data"], "one folder, one table, or shards only"),
        (["data/cat"], "no class folder with pictures in it"),
    ],
)
def test_eval_refuses_what_cannot_be_evaluated(clipcls: Run, data: Path, arguments: list[str], message: str) -> None:
    done = clipcls("eval", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.decode() and b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_eval_does_not_overwrite_what_it_reads(clipcls: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\ntruck\n")
    done = clipcls("eval", "data", "--labels-file", "labels.txt", "-o", "labels.txt")
    assert done.returncode == 2 and b"overwrite" in done.stderr
    done = clipcls("eval", "data", "-o", "nowhere/out.json")
    assert done.returncode == 4


def test_eval_names_the_file_without_predictions(clipcls: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    done = clipcls("eval", "data", "--predictions", "empty.jsonl")
    assert (done.returncode, done.stderr) == (2, b"clipcls: error: empty.jsonl: holds no predictions.\n")


def test_eval_with_a_closed_standard_output_stops_before_the_first_picture(
    start: Callable[..., Started], data: Path
) -> None:
    process = start("eval", data, "--model", "pictogram", stdout=None)
    _, errors = process.communicate()
    assert process.wait() == 4
    assert errors == b"clipcls: error: standard output is closed. Give --output FILE.\n"


def shown(seed: int, count: int = 24) -> list[bytes]:
    """Pictures that a model with an input of 32 pixels sees as they are."""
    random = np.random.default_rng(seed)
    return [encoded(Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)), "PNG") for _ in range(count)]


@pytest.fixture
def clip_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Path], dict[str, float]]:
    """Run `clip_benchmark eval` in this process on a model folder and a folder of shards."""
    cli = pytest.importorskip("clip_benchmark.cli")
    from clip_benchmark.metrics import zeroshot_classification

    # it makes numbers of arrays with one element, which NumPy 2.4 refuses
    monkeypatch.setattr(zeroshot_classification, "float", lambda array: np.asarray(array).item(), raising=False)

    def run(model: Path, data: Path) -> dict[str, float]:
        output = tmp_path / "theirs.json"
        arguments = ["eval", "--dataset", "wds/mine", "--dataset_root", str(data), "--num_workers", "0", "--no_amp"]
        arguments += ["--model", f"local-dir:{model}", "--pretrained", "", "--quiet", "--output", str(output)]
        arguments += ["--task", "zeroshot_classification"]
        monkeypatch.setattr(sys, "argv", ["clip_benchmark", *arguments])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli.main()
        return dict(json.loads(output.read_text())["metrics"])

    return run


EXACTLY = ("--decode", "exact", "--precision", "fp32", "--format", "json")


@pytest.mark.parametrize("model", ["random", "pictogram"])
def test_eval_of_shards_equals_clip_benchmark(clipcls: Run, clip_benchmark: Any, tmp_path: Path, model: str) -> None:
    folder = EMBEDDED / "pictogram" if model == "pictogram" else save_model(tmp_path / "model", TINY_CONFIG, seed=3)
    write_shards(tmp_path / "data", shown(5), "png")
    (tmp_path / "data" / "classnames.txt").write_text("\n".join([*NAMES, "house", "key", "tree"]) + "\n")
    expected = clip_benchmark(folder, tmp_path / "data")
    done = clipcls("eval", "data", "--model", folder, *EXACTLY)
    assert done.returncode == 0, done.stderr
    figures = {name: estimate["value"] for name, estimate in result(done)["figures"].items()}
    assert figures["accuracy@1"] == pytest.approx(expected["acc1"], abs=1e-6)
    assert figures["accuracy@5"] == pytest.approx(expected["acc5"], abs=1e-6)
    assert figures["mean per-class recall"] == pytest.approx(expected["mean_per_class_recall"], abs=1e-6)
    assert result(done)["prompts"] == "zeroshot_classification_templates"
    command = json.loads(done.stdout)["command"]
    assert "--prompts data/zeroshot_classification_templates.txt --labels-file data/classnames.txt" in command


def test_eval_of_shards_with_several_labels_equals_clip_benchmark(
    clipcls: Run, clip_benchmark: Any, tmp_path: Path, tiny_model: Path
) -> None:
    random = np.random.default_rng(8)
    members: dict[str, bytes] = {}
    for number, picture in enumerate(shown(9)):
        buffer = io.BytesIO()
        np.save(buffer, random.integers(0, 2, len(NAMES)))
        members |= {f"{number}.npy": buffer.getvalue(), f"{number}.png": picture}
    write_tar(write_shards(tmp_path / "data", ()) / "test" / "0.tar", members)
    (tmp_path / "data" / "test" / "nshards.txt").write_text("1")
    (tmp_path / "data" / "dataset_type.txt").write_text("multilabel")
    expected = clip_benchmark(tiny_model, tmp_path / "data")
    done = clipcls("eval", "data", "--model", tiny_model, "--score", "cosine", "--threshold", "0", *EXACTLY)
    assert done.returncode == 0, done.stderr
    found = result(done)["figures"]["mean average precision"]["value"]
    assert found == pytest.approx(expected["mean_average_precision"], abs=1e-6)
