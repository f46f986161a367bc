"""The compiled runtime from the command line: `--runtime`, `models prepare`, int8, a start without torch."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from clipcls.embed.cache.prune import info
from conftest import EXAMPLES, save_pictures
from shell import run_on_files

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

PICTOGRAM = ("--model", "pictogram", "--device", "cpu")
PREDICT = ("predict", EXAMPLES, *PICTOGRAM)
LABELS = ("--labels", "cat,dog,truck")
# so many that some margins are small
MANY = ("--labels", "cat,dog,truck,bicycle,banana,pizza,flower,house,airplane,elephant,key")
# of processes that share a cache over tests: a model's facts depend on where the hub's files are
SHARED = {name: value for name, value in os.environ.items() if not name.startswith("CLIPCLS_")}
DIGITS = ("--format", "jsonl", "--top-k", "3")


@pytest.fixture(autouse=True)
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets processes choose their runtime."""
    monkeypatch.delenv("CLIPCLS_RUNTIME")


def run_alone(forks: Any, folder: Path, *args: str | Path) -> tuple[str, str]:
    """Run the command line in `SHARED`, and return what it wrote on both streams."""
    streams = folder / "streams"
    streams.mkdir()
    (streams / "stdin").write_bytes(b"")
    process = forks.Process(target=run_on_files, args=([*map(str, args)], streams, SHARED))
    process.start()
    process.join(120)
    output, told = ((streams / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode == 0, told
    return output, told


def rows(done: "subprocess.CompletedProcess[bytes]") -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def computed_by(done: "subprocess.CompletedProcess[bytes]") -> str:
    """What computed the towers, as -v says it."""
    has_compiled, has_built = b"tower is computed by OpenVINO" in done.stderr, b"built the " in done.stderr
    return "openvino" if has_compiled else "torch" if has_built else "nothing"


def assert_same_labels(done: "subprocess.CompletedProcess[bytes]", expected: Any, margin: float) -> None:
    """The same labels wherever the margin of the expected ones is larger."""
    sure = 0
    for found, wanted in zip(rows(done), rows(expected), strict=True):
        first, second = (entry["score"] for entry in wanted["top"][:2])
        sure += first - second > margin
        assert found["path"] == wanted["path"]
        assert found["label"] == wanted["label"] or first - second <= margin, (found, wanted)
    assert sure >= 6


# ------------------------------------------------------------------------------------------- which runtime


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_runtimes_give_the_same_labels(clipcls: Run, tmp_path: Path, precision: str) -> None:
    asked = (*PREDICT, *MANY, *DIGITS, "--precision", precision, "-v")
    expected = clipcls(*asked, "--runtime", "torch", "--cache-dir", tmp_path / "torch")
    done = clipcls(*asked, "--runtime", "openvino", "--cache-dir", tmp_path / "openvino")
    assert (computed_by(expected), computed_by(done)) == ("torch", "openvino")
    assert_same_labels(done, expected, 0.01)
    differences = [
        abs(one["similarity"] - other["similarity"]) for one, other in zip(rows(done), rows(expected), strict=True)
    ]
    assert max(differences) <= (1e-5 if precision == "fp32" else 5e-3)


def test_auto_is_openvino_where_it_can_keep_what_it_converts(
    clipcls: Run, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (picture,) = save_pictures(tmp_path / "pictures", 1)
    asked = ("predict", picture, *LABELS, "--model", tiny_model, "-v")
    assert computed_by(clipcls(*asked, "--no-cache")) == "torch"
    assert computed_by(clipcls(*asked, "--runtime", "torch")) == "torch"
    assert computed_by(clipcls(*asked)) == "openvino"
    monkeypatch.setenv("CLIPCLS_RUNTIME", "torch")
    # the features of both are the same in other digits, and kept apart
    assert computed_by(clipcls(*asked)) == "nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--runtime", "onnx"), "--runtime onnx: use auto, torch or openvino"),
        (("--runtime", "openvino", "--no-cache"), "--runtime openvino keeps the converted model in the cache"),
        (("--runtime", "openvino", "--device", "cuda:99"), "--device cuda:99: this machine, or this build of torch"),
    ],
)
def test_runtime_that_cannot_be_had_is_refused(
    clipcls: Run, tiny_model: Path, options: Sequence[str], message: str
) -> None:
    done = clipcls("predict", EXAMPLES, *LABELS, "--model", tiny_model, *options)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode()


def _run_without(module: str, arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    sys.modules[module] = None  # type: ignore[assignment] # as if it weren't installed
    run_on_files(arguments, folder, environment)


@pytest.fixture
def without(tmp_path: Path, forks: Any) -> Run:
    """Run the command line where a package isn't installed."""

    def run(module: str, *args: str | Path) -> "subprocess.CompletedProcess[bytes]":
        folder = tmp_path / ".streams"
        folder.mkdir(exist_ok=True)
        (folder / "stdin").write_bytes(b"")
        process = forks.Process(target=_run_without, args=(module, [*map(str, args)], folder, dict(os.environ)))
        process.start()
        process.join(120)
        output, errors = ((folder / name).read_bytes() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(args, process.exitcode, output, errors)

    return run


def test_without_openvino_torch_computes(without: Run, clipcls: Run, tiny_model: Path) -> None:
    asked = ("predict", EXAMPLES, *LABELS, "--model", tiny_model, "-v")
    done = without("openvino", *asked)
    assert (done.returncode, computed_by(done)) == (0, "torch") and b"OpenVINO" not in done.stderr
    for options in (("--runtime", "openvino"), ("--precision", "int8")):
        done = without("openvino", *asked, *options)
        assert done.returncode == 2
        assert f"{' '.join(options)} needs OpenVINO: pip install 'clipcls[openvino]'" in done.stderr.decode()
    done = without("openvino", "models", "prepare", tiny_model)
    assert (done.returncode, done.stdout) == (2, b"") and b"needs OpenVINO" in done.stderr


# ------------------------------------------------------------------------------------------- models prepare


def test_prepare_converts_once(clipcls: Run, tiny_model: Path) -> None:
    first = clipcls("models", "prepare", tiny_model, "--precision", "fp32")
    assert first.returncode == 0, first.stderr
    image, text = first.stdout.decode().splitlines()
    assert image.startswith("image tower\tOpenVINO, fp32, ") and text.startswith("text tower\tOpenVINO, fp32, ")
    told = first.stderr.decode().splitlines()
    assert [line.partition(" converting its ")[2].partition(" for ")[0] for line in told] == [
        "image tower",
        "text tower",
    ]
    again = clipcls("models", "prepare", tiny_model, "--precision", "fp32", "-v")
    assert again.stdout == first.stdout
    assert b"convert" not in again.stderr and b"built" not in again.stderr
    counts = dict(line.split("\t") for line in clipcls("cache", "info").stdout.decode().splitlines())
    assert counts["converted towers"] == "2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "int8"), "give --images FOLDER"),
        (("--images", "."), "other precisions need none"),
    ],
)
def test_prepare_refuses_what_it_cannot_do(
    clipcls: Run, tiny_model: Path, options: Sequence[str], message: str
) -> None:
    done = clipcls("models", "prepare", tiny_model, *options)
    assert (done.returncode, done.stdout) == (2, b"") and message in done.stderr.decode()


# ------------------------------------------------------------------------------------------- a start without torch

MODULES = """
import os, sys
os._exit = sys.exit  # as clipcls quits where torch is loaded
sys.argv = ['clipcls', *sys.argv[1:]]
from clipcls.cli import main
try:
    main()
except SystemExit as exc:
    assert not exc.code, exc.code
print('MODULES', *{name.split('.')[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory, forks: Any) -> Path:
    """A cache that an earlier run has used; not to be changed."""
    folder = tmp_path_factory.mktemp("used")
    _, told = run_alone(forks, folder, *PREDICT, *LABELS, "--cache-dir", folder / "cache")
    assert "converting its image tower" in told
    return folder / "cache"


@pytest.mark.parametrize("labels", ["cat,dog,truck", "key,rose,a 猫"], ids=["known", "new"])
@pytest.mark.parametrize("picture", ["known", "new"])
def test_second_run_starts_without_torch(used: Path, tmp_path: Path, picture: str, labels: str) -> None:
    cache = shutil.copytree(used, tmp_path / "cache")
    (new,) = save_pictures(tmp_path / "new", 1)
    asked = ["predict", new if picture == "new" else EXAMPLES / "cat.png", *PICTOGRAM, "--labels", labels]
    command = [sys.executable, "-c", MODULES, *asked, "--cache-dir", cache]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=SHARED)
    assert len(done.stdout.splitlines()) == 1
    loaded = set(done.stderr.rpartition("MODULES")[2].split())
    assert ("openvino" in loaded) == (picture == "new" or labels != "cat,dog,truck")
    assert not loaded & {"torch", "open_clip", "torchvision", "timm", "transformers", "huggingface_hub"}


# ------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples on white, as they are, mirrored and smaller: as many as quantising wants."""
    folder = tmp_path_factory.mktemp("drawings")
    for path in sorted(EXAMPLES.glob("*.[pjw]*")):
        with Image.open(path) as opened:
            drawing = opened.convert("RGBA")
        white = Image.new("RGBA", drawing.size, "white")
        white.alpha_composite(drawing)
        picture = white.convert("RGB")
        for name, other in [("is", picture), ("mirrored", ImageOps.mirror(picture)), ("smaller", _smaller(picture))]:
            other.save(folder / f"{path.stem}-{name}.png")
    return folder


def _smaller(picture: Image.Image) -> Image.Image:
    return ImageOps.expand(picture, picture.width // 5, "white")


@pytest.fixture(scope="module")
def prepared(drawings: Path, tmp_path_factory: pytest.TempPathFactory, forks: Any) -> Path:
    """A cache with the pictogram model in int8; not to be changed."""
    folder = tmp_path_factory.mktemp("prepared")
    command = ("models", "prepare", "pictogram", "--precision", "int8", "--images", drawings)
    output, told = run_alone(forks, folder, *command, "--cache-dir", folder / "cache")
    assert "quantising its image tower to int8, once" in told and "int8, calibrated on 27 pictures" in told
    # NNCF's bars and lines stay out of it
    image, text = output.splitlines()
    assert image.startswith("image tower\tOpenVINO, int8, ") and text.startswith("text tower\tOpenVINO, fp32, ")
    assert len(told.splitlines()) == 4
    return folder / "cache"


@pytest.fixture
def int8(prepared: Path, tmp_path: Path) -> tuple[str, ...]:
    """The options of a run in int8, with a cache that may be changed."""
    shutil.copytree(prepared, tmp_path / "prepared")
    return ("--precision", "int8", "--cache-dir", str(tmp_path / "prepared"))


def test_int8_agrees_with_fp32(clipcls: Run, int8: Sequence[str], tmp_path: Path) -> None:
    expected = clipcls(*PREDICT, *MANY, *DIGITS, "--precision", "fp32", "--cache-dir", tmp_path / "other")
    done = clipcls(*PREDICT, *MANY, *DIGITS, *int8, "-v")
    assert computed_by(done) == "openvino" and b"quantising" not in done.stderr
    assert_same_labels(done, expected, 0.2)
    differences = [
        abs(one["similarity"] - other["similarity"]) for one, other in zip(rows(done), rows(expected), strict=True)
    ]
    assert 1e-5 < max(differences) <= 0.05


def test_int8_is_quantised_by_prediction_only_where_it_must_be(
    clipcls: Run, int8: Sequence[str], drawings: Path, tmp_path: Path
) -> None:
    listed = "\n".join(map(str, sorted(drawings.iterdir()))).encode()
    assert len(rows(clipcls("predict", "-", *PICTOGRAM, *LABELS, *DIGITS, *int8, input=listed))) == 36
    unprepared = ("--precision", "int8", "--cache-dir", tmp_path / "new")
    for options, message in [
        ((EXAMPLES,), "at least 16 that can be read, and there are 12"),
        (("-",), "standard input can't be read twice"),
    ]:
        done = clipcls("predict", *options, *PICTOGRAM, *LABELS, *unprepared, input=listed)
        assert (done.returncode, done.stdout) == (2, b"")
        assert message in done.stderr.decode() and b"clipcls models prepare" in done.stderr


def test_int8_without_nncf(without: Run, int8: Sequence[str], tmp_path: Path) -> None:
    done = without("nncf", *PREDICT, *LABELS, *int8)
    assert done.returncode == 0, done.stderr  # since it has been quantised
    done = without("nncf", *PREDICT, *LABELS, "--precision", "int8", "--cache-dir", tmp_path / "new")
    assert (done.returncode, done.stdout) == (2, b"")
    assert "needs NNCF once, to quantise the model: pip install 'clipcls[int8]'" in done.stderr.decode()


def test_damaged_int8_is_quantised_anew_or_refused(clipcls: Run, int8: Sequence[str]) -> None:
    cache = Path(int8[-1])
    assert info(cache).conversions == 3
    for path in cache.glob("openvino/*/features.npy"):
        path.write_bytes(b"damaged")
    done = clipcls(*PREDICT, *LABELS, *int8)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"features.npy isn't what was written" in done.stderr and b"at least 16 that can be read" in done.stderr
