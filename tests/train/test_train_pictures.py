"""The decoded pictures of a batch."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipcls.images.fit import load_pixels
from clipcls.inputs.labelled.examples import Example
from clipcls.records import ImageRef, Preprocessing
from clipcls.train.data.pictures import Pictures, decode_picture

HALF = (0.5, 0.5, 0.5)


def canvas(side: int, mode: Any, grey: int) -> Preprocessing:
    return Preprocessing((side, side), HALF, HALF, resize_mode=mode, fill_color=grey)


@pytest.mark.parametrize(("mode", "corner"), [("shortest", 255), ("longest", 7), ("squash", 255)])
def test_decode_picture_resizes_as_the_preprocessing_does(tmp_path: Path, mode: str, corner: int) -> None:
    Image.new("RGB", (40, 20), "red").save(tmp_path / "wide.png")
    picture = decode_picture(tmp_path / "wide.png", canvas(16, mode, 7))
    assert picture.shape == (4, 16, 16)
    assert picture[0, 0, 0] == corner


def test_pictures_leave_out_what_cannot_be_decoded(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), "red").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    names = ("good.png", "bad.png", "missing.png", "\ud800.png", "\0.png")
    good, *bad = (Example(ImageRef(str(tmp_path / name)), captions=("x",)) for name in names)
    pictures = Pictures(canvas(8, "squash", 0), cache_mb=1)
    batches = list(pictures.batches([[good, bad[0]], bad[1:], [good, good]], workers=2))
    assert [len(batch.rows) for batch in batches] == [1, 0, 2]
    assert batches[2].pictures.dtype == torch.uint8
    assert len(pictures.problems) == len(bad)


def test_decode_picture_corrects_what_predict_corrects(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(grey).save(tmp_path / "sixteen.png")
    Image.fromarray((grey >> 8).astype(np.uint8)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for name in ("sixteen.png", "turned.jpg"):
        ours = decode_picture(tmp_path / name, canvas(32, "shortest", 0))
        expected = load_pixels(tmp_path / name, canvas(32, "shortest", 0), "exact")
        difference = ours[:3].permute(1, 2, 0).numpy().astype(int) - expected
        assert abs(difference).max() <= 2
        assert (ours[3] == 255).all()


@pytest.mark.parametrize("name", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_decode_picture_interpolates_as_the_preprocessing_does(tmp_path: Path, name: Any, mode: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    given = dataclasses.replace(canvas(32, mode, 7), interpolation=name)
    ours = decode_picture(tmp_path / "noise.png", given)[:3].permute(1, 2, 0).numpy().astype(int)
    assert abs(ours - load_pixels(tmp_path / "noise.png", given, "exact")).max() <= 1


def test_decode_picture_keeps_transparency(tmp_path: Path) -> None:
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    picture.paste((0, 255, 0, 255), (0, 0, 8, 16))
    picture.save(tmp_path / "a.png")
    for decoded in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes()):
        assert decode_picture(decoded, canvas(16, "squash", 0))[3, 0].tolist() == [255] * 8 + [0] * 8


def test_pictures_keep_only_what_fits(tmp_path: Path) -> None:
    rows = []
    for number in range(3):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append(Example(ImageRef(str(tmp_path / f"{number}.png")), captions=("x",)))
    pictures = Pictures(canvas(512, "squash", 0), cache_mb=2)  # two of one MiB each
    for row in rows:
        assert pictures.picture(row) is not None
    for number in range(3):
        (tmp_path / f"{number}.png").unlink()
    assert [pictures.picture(row) is None for row in rows] == [False, False, True]
