"""Whether two pictures are one, by their pixels."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from clipcls.errors import ImageError
from clipcls.images.comparison import Thumbnail, compare, may_be_copies, outline, read_thumbnail
from clipcls.images.sharpness import sharpness
from conftest import EXAMPLES

PHOTOS = sorted((EXAMPLES.parent / "photos").glob("*.jpg"))
ICONS = sorted((EXAMPLES.parent / "images").glob("*.png"))
Picture = Image.Image


def encoded(image: Picture, quality: int = 90, orientation: int = 1, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    image.save(content, format, quality=quality, exif=exif.tobytes())
    return content.getvalue()


def thumbnail(image: Picture, quality: int = 95) -> Thumbnail:
    return read_thumbnail(encoded(image, quality))


def are_copies(one: bytes, other: bytes) -> bool:
    first, second = read_thumbnail(one), read_thumbnail(other)
    difference = compare(first, second)
    found = difference is not None and difference.is_copy
    assert may_be_copies(outline(first), outline(second)) or not found
    back = compare(second, first)
    assert found == (back is not None and back.is_copy)
    return found


def photo(path: Path) -> Picture:
    return Image.open(path).convert("RGB")


def part(image: Picture, left: float, top: float, share: float) -> Picture:
    width, height = round(image.width * share), round(image.height * share)
    x, y = round(left * image.width), round(top * image.height)
    return image.crop((x, y, x + width, y + height))


def shrunk(image: Picture, share: float) -> Picture:
    return image.resize((round(image.width * share), round(image.height * share)))


COPIES: dict[str, Callable[[Picture], bytes]] = {
    "JPEG 30": lambda image: encoded(image, 30),
    "WebP": lambda image: encoded(image, 60, format="WEBP"),
    "PNG": lambda image: encoded(image, format="PNG"),
    "a quarter": lambda image: encoded(shrunk(image, 0.25)),
    "twice": lambda image: encoded(shrunk(image, 2)),
    "a corner": lambda image: encoded(part(image, 0.1, 0.1, 0.9)),
    "the middle": lambda image: encoded(part(image, 0.05, 0.05, 0.9)),
    "without its top": lambda image: encoded(image.crop((0, image.height // 10, image.width, image.height))),
    "sent": lambda image: encoded(shrunk(part(image, 0, 0.1, 0.9), 0.5), 50),
    "turned with the flag": lambda image: encoded(image.transpose(Image.Transpose.ROTATE_90), 90, 6),
}


def moved(image: Picture) -> Picture:
    width, height = image.width // 4, image.height // 4
    other = image.copy()
    other.paste(image.crop((width, height, 2 * width, 2 * height)), (width + width // 2, height + height // 2))
    return other


def written_over(image: Picture) -> Picture:
    other = image.copy()
    size = image.width // 10
    ImageDraw.Draw(other).text(
        (size, size), "Happy birthday", "white", font_size=size, stroke_width=2, stroke_fill="black"
    )
    return other


OTHERS: dict[str, Callable[[Picture], Picture]] = {
    "turned by a degree": lambda image: part(image.rotate(1, Image.Resampling.BICUBIC), 0.05, 0.05, 0.9),
    "turned by three": lambda image: part(image.rotate(-3, Image.Resampling.BICUBIC), 0.05, 0.05, 0.9),
    "something moved": moved,
    "lighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "mirrored": ImageOps.mirror,
    "turned without a flag": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "grey": lambda image: image.convert("L"),
    "with a text": written_over,
}


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_is_the_same_picture(change: str) -> None:
    assert all(are_copies(path.read_bytes(), COPIES[change](photo(path))) for path in PHOTOS)


@pytest.mark.parametrize("change", OTHERS)
def test_another_picture_of_the_same_things_is_not(change: str) -> None:
    # of nearly grey photographs, nothing tells a version in grey apart
    paths = [path for path in PHOTOS if change != "grey" or path.stem in ("cat", "coffee", "tulips")]
    wrong = [path.stem for path in paths if are_copies(path.read_bytes(), encoded(OTHERS[change](photo(path))))]
    assert not wrong


def test_a_frame_shifted_by_a_little_is_not() -> None:
    for path in PHOTOS:
        image = photo(path)
        assert not are_copies(encoded(part(image, 0.03, 0.03, 0.9)), encoded(part(image, 0.06, 0.05, 0.9))), path.stem


def test_different_pictures_are_not() -> None:
    thumbnails = [read_thumbnail(path) for path in (*PHOTOS, *ICONS)]
    for number, one in enumerate(thumbnails):
        for other in thumbnails[:number]:
            difference = compare(one, other)
            assert difference is None or not difference.is_copy


@pytest.mark.parametrize("colour", ["black", "white", "#336699"])
def test_pictures_without_detail_are_never_copies(colour: str) -> None:
    flat = Image.new("RGB", (300, 200), colour)
    assert not are_copies(encoded(flat), encoded(flat, format="PNG"))


def test_a_sky_is_not_compared() -> None:
    down = np.linspace(90, 200, 240)[:, None, None]
    sky = np.broadcast_to(down + np.array([0, 20, 55]), (240, 320, 3)).astype(np.uint8)
    assert not are_copies(encoded(Image.fromarray(sky)), encoded(Image.fromarray(np.flipud(sky[::-1] - 2))))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (16, 16)])
def test_tiny_pictures_are_compared_without_an_error(size: tuple[int, int]) -> None:
    image = photo(PHOTOS[0]).resize(size)
    are_copies(encoded(image, format="PNG"), encoded(image, format="PNG"))
    assert not are_copies(encoded(image, format="PNG"), encoded(photo(PHOTOS[1]).resize(size), format="PNG"))


def test_icons_in_another_colour_are_not() -> None:
    for path in ICONS[:4]:
        image = Image.open(path).convert("RGB")
        red, green, blue = image.split()
        assert not are_copies(encoded(image), encoded(Image.merge("RGB", (blue, red, green)))), path.stem
        assert are_copies(encoded(image), encoded(shrunk(image, 0.6)))


def test_transparency_counts_as_white() -> None:
    image = photo(PHOTOS[0]).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    assert are_copies(encoded(image, format="PNG"), encoded(white))


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [photo(path).resize((200, 150)) for path in PHOTOS[:2]]
    content = io.BytesIO()
    frames[0].save(content, "WEBP", save_all=True, append_images=frames[1:], quality=90)
    assert are_copies(content.getvalue(), encoded(frames[0]))
    assert not are_copies(content.getvalue(), encoded(frames[1]))


def page(words: list[str], width: int = 900) -> Picture:
    """A printed page: lines of words on white, with the same margins whatever the words."""
    image = Image.new("RGB", (width, round(width * 1.414)), "white")
    draw = ImageDraw.Draw(image)
    for line in range(36):
        text = " ".join(words[(line * 9 + place) % len(words)] for place in range(9))
        draw.text((width // 10, width // 10 + line * width // 30), text[:70], "black", font_size=width // 50)
    return image


def test_two_pages_of_print_are_not_one() -> None:
    chance = np.random.default_rng(0)
    texts = [
        ["".join(chance.choice(list("etaoinshrdlu"), size=chance.integers(2, 9))) for _ in range(300)] for _ in range(4)
    ]
    pages = [page(text) for text in texts]
    for number, one in enumerate(pages):
        assert are_copies(encoded(one), encoded(shrunk(one, 0.5), 60))
        assert not any(are_copies(encoded(one), encoded(other)) for other in pages[:number])


def test_a_form_filled_in_differently_is_not_one() -> None:
    form = page(["name", "address", "city", "telephone", "signature"])
    filled = [form.copy(), form.copy()]
    for image, name in zip(filled, ("Ann Miller", "Tom Baker"), strict=True):
        ImageDraw.Draw(image).text((500, 60), name, "black", font_size=40)
    assert not are_copies(*map(encoded, filled))
    assert are_copies(encoded(filled[0]), encoded(filled[0], 50))


def test_a_file_that_is_no_picture_is_refused() -> None:
    with pytest.raises(ImageError):
        read_thumbnail(b"no picture")


def test_an_original_is_sharper_than_its_copies() -> None:
    for path in PHOTOS:
        image = photo(path)
        best = sharpness(path)
        assert best > sharpness(encoded(image.filter(ImageFilter.GaussianBlur(1))))
        assert best > sharpness(encoded(shrunk(image, 0.5).resize(image.size)))
    assert sharpness(encoded(Image.new("L", (2, 2)))) == 0
