"""`clipcls heatmap` as a process."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copyfile(EXAMPLES / "cat.png", folder / "cat.png")
    shutil.copyfile(EXAMPLES / "dog.jpg", folder / "dog.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def test_a_folder_is_drawn_with_what_can_be_read(tmp_path: Path, pictures: Path, clipcls: Run) -> None:
    done = clipcls("heatmap", "pictures", "--labels", "cat,dog", "--model", "pictogram", "-o", "heat", "--npy")
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith("clipcls: pictures/broken.png: ")
    assert lines[1:] == ["clipcls: 1 of 3 images could not be read", "clipcls: 2 drawings in heat"]
    assert not done.stdout
    drawn = ["pictures_cat", "pictures_dog"]
    files = sorted(path.name for path in (tmp_path / "heat").iterdir())
    assert files == sorted(f"{stem}{end}" for stem in drawn for end in (".png", ".cat.npy", ".dog.npy"))
    values = {label: np.load(tmp_path / "heat" / f"pictures_cat.{label}.npy") for label in ("cat", "dog")}
    assert values["cat"].shape == (8, 8) and values["cat"].dtype == np.float32
    assert values["cat"].max() > 2 * values["dog"].max()
    with Image.open(tmp_path / "heat" / "pictures_cat.png") as drawing:
        assert drawing.format == "PNG" and drawing.width > 3 * 224


def test_one_picture_by_the_gradient(tmp_path: Path, pictures: Path, tiny_model: Path, clipcls: Run) -> None:
    options = ("--labels", "cat,dog", "--model", tiny_model, "--against", "others", "--top-k", "1", "--npy")
    done = clipcls("heatmap", "pictures/cat.png", *options, "-o", "one.png")
    assert done.returncode == 0, done.stderr
    (values,) = tmp_path.glob("one.*.npy")
    assert np.load(values).shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--model", "pictogram", "-o", "x.png"), 2, "x.png is for one picture, and there are more: give a folder."),
        (("--model", "pictogram", "-o", "x.jpg"), 2, "--output x.jpg: give a folder, or a name that ends in .png."),
        (("--model", "pictogram", "-o", "no/x.png"), 4, "no/x.png: can't be written"),
        (("--model", "pictogram", "--top-k", "99"), 2, "Invalid value for '--top-k'"),
        (
            ("--model", "pictogram", "--method", "gradient"),
            2,
            "pictogram has no attention to parts of a picture: use --method occlusion.",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(pictures: Path, clipcls: Run, arguments: Any, code: int, message: str) -> None:
    done = clipcls("heatmap", "pictures", "--labels", "cat,dog", *arguments)
    assert done.returncode == code
    assert message in done.stderr.decode()


def test_a_picture_is_never_overwritten(pictures: Path, clipcls: Run) -> None:
    before = (pictures / "cat.png").read_bytes()
    done = clipcls(
        "heatmap", "pictures/cat.png", "--labels", "cat,dog", "--model", "pictogram", "-o", "pictures/cat.png"
    )
    assert done.returncode == 2 and b"is one of the inputs" in done.stderr
    assert (pictures / "cat.png").read_bytes() == before
