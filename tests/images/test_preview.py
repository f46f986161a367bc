"""Small pictures for a page."""

import io
from pathlib import Path

import pytest
from PIL import Image

from clipcls.errors import ImageError
from clipcls.images.preview import PREVIEW_SIDE, make_preview


def small(image: Image.Image, **options: object) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "PNG", **options)
    made = Image.open(io.BytesIO(make_preview(content.getvalue())))
    assert made.format == "WEBP"
    return made


@pytest.mark.parametrize(
    ("size", "expected"), [((800, 600), (160, 120)), ((30, 3000), (2, 160)), ((64, 48), (64, 48)), ((1, 1), (1, 1))]
)
def test_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert small(Image.new("RGB", size, "red")).size == expected


def test_upright_and_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert small(Image.new("L", (400, 200)), exif=exif).size == (PREVIEW_SIDE // 2, PREVIEW_SIDE)
    clear = small(Image.new("RGBA", (300, 300), (0, 0, 0, 0)))
    assert clear.mode == "RGB"
    assert clear.getpixel((80, 80)) == (255, 255, 255)


def test_what_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="not an image"):
        make_preview(b"no picture at all")
    with pytest.raises(ImageError, match="no such file"):
        make_preview(tmp_path / "gone.png")
