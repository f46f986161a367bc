"""Pixels against references: open_clip's transform for plain pictures, the corpus for awkward ones."""

import io
import os
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageFile

import pictures
from clipcls.errors import ImageError
from clipcls.images.colour import to_eight_bits
from clipcls.images.decoding import decode_picture
from clipcls.images.fit import load_pixels
from clipcls.images.geometry import as_image
from clipcls.inputs.open_file import open_file
from clipcls.records import Decode, Preprocessing

GOOD = pictures.good_pictures()
BAD = pictures.bad_files()
DECODES: tuple[Decode, ...] = ("fast", "exact")


def in_both_ways(files: dict[str, bytes]) -> list[tuple[str, Decode]]:
    """Only JPEGs are decoded in two ways."""
    return [(name, decode) for name, data in files.items() for decode in DECODES[: 2 if data[:2] == b"\xff\xd8" else 1]]


# PNG and WebP differ from JPEG in where the orientation stands: two turns show that it is found.
SHOWN = in_both_ways({n: GOOD[n].data for n in GOOD if not re.fullmatch("exif_(png|webp)_[134578]", n)})
REFUSED = in_both_ways({name: data for name, (data, _) in BAD.items()})


def preprocessing(size: tuple[int, int] = (64, 64), mode: str = "shortest", **options: object) -> Preprocessing:
    return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, resize_mode=mode, **options)  # type: ignore[arg-type]


def noise(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(width * 10_000 + height).integers(0, 256, shape, np.uint8)


def smooth(width: int, height: int) -> NDArray[np.uint8]:
    """Like a photograph in having little detail at the scale of its pixels."""
    small = noise(24, 18)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def open_clips_pixels(pixels: NDArray[np.uint8], wanted: Preprocessing) -> NDArray[np.uint8]:
    config = PreprocessCfg(
        size=wanted.size,
        interpolation=wanted.interpolation,
        resize_mode=wanted.resize_mode,
        fill_color=wanted.fill_color,
    )
    image = Image.fromarray(pixels)
    for step in image_transform_v2(config, is_train=False).transforms[:-2]:  # all but ToTensor and Normalize
        image = step(image)
    return np.array(image)


# ------------------------------------------------------------------------------------------- geometry

SIZES = [
    *((1, 1), (3, 2), (1, 60), (60, 1), (64, 64), (65, 64), (63, 64), (96, 72), (72, 97), (100, 37), (37, 101)),
    *((333, 250), (251, 333), (20, 15), (2, 130)),
]


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(
    ("size", "interpolation"),
    [
        ((64, 64), "bicubic"),
        ((64, 64), "bilinear"),
        ((48, 64), "bilinear"),
        ((72, 40), "bicubic"),
        ((33, 31), "bicubic"),
    ],
    ids=str,
)
def test_load_pixels_exact_equals_open_clip(size: tuple[int, int], mode: str, interpolation: str) -> None:
    wanted = preprocessing(size, mode, interpolation=interpolation, fill_color=127)
    for width, height in SIZES:
        for channels in (1, 3):
            pixels = noise(width, height, channels)
            try:
                expected = open_clips_pixels(pixels, wanted)
            except ValueError:  # a side is rounded to 0
                assert mode == "longest"
                continue
            got = load_pixels(pictures.png(pixels), wanted, "exact")
            assert np.array_equal(got, expected), (width, height, channels)


@pytest.mark.parametrize("mode", ["P", "1", "CMYK"])
def test_load_pixels_exact_makes_other_modes_rgb_first(mode: str) -> None:
    wanted = preprocessing((64, 64), "shortest")
    other = Image.fromarray(smooth(333, 250)).convert(mode)
    rgb = np.array(other.convert("RGB"))
    got = load_pixels(pictures.encoded(other, "TIFF"), wanted, "exact")
    assert np.array_equal(got, open_clips_pixels(rgb, wanted))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_load_pixels_fast_is_near_exact(mode: str) -> None:
    wanted = preprocessing((48, 64), mode, fill_color=127)
    for width, height in [(64, 64), (96, 72), (72, 97), (333, 250), (500, 375), (20, 15)]:
        data = pictures.png(smooth(width, height))
        difference = np.abs(load_pixels(data, wanted).astype(int) - load_pixels(data, wanted, "exact"))
        assert difference.max() <= 3, (width, height)
        assert difference.mean() < 0.5, (width, height)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_load_pixels_fast_drafts_large_jpegs_near_exact(mode: str) -> None:
    data = pictures.jpeg(smooth(2003, 900))
    wanted = preprocessing((96, 96), mode)
    difference = np.abs(load_pixels(data, wanted).astype(int) - load_pixels(data, wanted, "exact"))
    assert difference.max() <= 6
    assert difference.mean() < 0.6


@pytest.mark.parametrize(
    ("size", "mode", "decoded", "orientation"),
    [
        ((1600, 1200), "shortest", (400, 300), 1),  # a shortest side of 96 wants 192 or more
        ((1535, 1535), "shortest", (384, 384), 1),
        ((1536, 1536), "shortest", (192, 192), 1),
        ((1600, 100), "shortest", (1600, 100), 1),
        ((1600, 100), "longest", (200, 13), 1),
        ((1600, 100), "longest", (200, 13), 6),
        ((1600, 800), "squash", (400, 200), 6),
    ],
    ids=str,
)
def test_draft_keeps_twice_the_resized_picture(
    size: tuple[int, int], mode: str, decoded: tuple[int, int], orientation: int
) -> None:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    data = pictures.jpeg(np.zeros((size[1], size[0], 3), np.uint8), exif=exif.tobytes())
    picture = decode_picture(data, preprocessing((96, 96), mode))
    turned = orientation == 6
    assert as_image(picture.image).size == (decoded[::-1] if turned else decoded)
    assert picture.size == (size[::-1] if turned else size)


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (2, 30_000)], ids=str)
def test_load_pixels_bounds_extreme_shapes(size: tuple[int, int], mode: str, decode: Decode) -> None:
    data = pictures.png(np.full((size[1], size[0], 3), 77, np.uint8))
    got = load_pixels(data, preprocessing((224, 224), mode, fill_color=77), decode)
    assert got.shape == (224, 224, 3)
    assert (got == 77).all()


# ------------------------------------------------------------------------------------------- the corpus


@pytest.mark.parametrize(("name", "decode"), SHOWN)
def test_load_pixels_shows_the_scene(name: str, decode: Decode) -> None:
    picture = GOOD[name]
    wanted = preprocessing(picture.expected.shape[:2], "squash")  # its own size: nothing is resized
    got = load_pixels(picture.data, wanted, decode)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - picture.expected).max() <= picture.tolerance


@pytest.mark.parametrize(("name", "decode"), REFUSED)
def test_load_pixels_refuses(name: str, decode: Decode) -> None:
    data, message = BAD[name]
    with pytest.raises(ImageError, match=message):
        load_pixels(data, preprocessing(), decode)


def test_load_pixels_corrects_before_it_resizes() -> None:
    rgba = np.dstack([pictures.scene(), pictures.alpha()])
    wanted = preprocessing((16, 16))
    flat = pictures.png(np.array(to_eight_bits(Image.fromarray(rgba))))
    assert np.array_equal(load_pixels(pictures.png(rgba), wanted, "exact"), load_pixels(flat, wanted, "exact"))


def test_load_pixels_hides_what_is_behind_transparency() -> None:
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., 0] = 255  # red, and fully transparent
    assert (load_pixels(pictures.png(rgba), preprocessing()) == 255).all()


def test_load_pixels_keeps_12_bits_as_grey() -> None:
    image = Image.fromarray(np.array([[0, 2048, 4095]], np.uint16))
    image.tag_v2 = {258: (12,), 262: 1}  # type: ignore[attr-defined]
    assert np.array(to_eight_bits(image)).tolist() == [[0, 128, 255]]


def test_load_pixels_is_writable() -> None:
    assert load_pixels(pictures.png(pictures.scene()), preprocessing()).flags.writeable


# ------------------------------------------------------------------------------------------- sources


def test_load_pixels_takes_paths_bytes_and_files(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(pictures.png(pictures.scene()))
    expected = load_pixels(path.read_bytes(), preprocessing())
    with path.open("rb") as file:
        file.seek(7)  # whoever read it before
        for source in (str(path), path, bytearray(path.read_bytes()), memoryview(path.read_bytes()), file):
            assert np.array_equal(load_pixels(source, preprocessing()), expected)
        assert not file.closed


def test_load_pixels_goes_by_content_whatever_the_name(tmp_path: Path) -> None:
    paths = pictures.write_corpus(tmp_path)
    wanted = preprocessing((pictures.HEIGHT, pictures.WIDTH), "squash")
    assert np.array_equal(load_pixels(paths["png"], wanted), pictures.scene())
    for name, path in paths.items():
        if name in BAD:
            with pytest.raises(ImageError) as caught:
                load_pixels(str(path), wanted)
            assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["with space.png", "new\nline.png", "qu'o\"te.png", "-dash.png", "😀.png", os.fsdecode(b"\xff\xfe.png")]
)
def test_load_pixels_reads_names_of_any_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pictures.png(pictures.scene()))
    assert load_pixels(name, preprocessing()).shape == (64, 64, 3)


def test_open_file_refuses_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to("nowhere.jpg")
    expected = {
        "fifo.jpg": "not a regular file: FIFO",
        "folder.jpg": "not a regular file: directory",
        "/dev/zero": "not a regular file: device",
        "loop.jpg": "too many levels of symbolic links",
        "dangling.jpg": "no such file or directory",
        "a\0b.jpg": "not a possible file name: embedded null byte",
        "x" * 300: "file name too long",
    }
    for name, message in expected.items():
        with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
            open_file(str(tmp_path / name))


def test_open_file_says_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "closed.png"
    path.write_bytes(pictures.png(pictures.scene()))
    path.chmod(0)
    with pictures.unprivileged(), pytest.raises(ImageError, match=r"^permission denied$"):
        open_file(path)


# ------------------------------------------------------------------------------------------- limits, Pillow's state


def test_load_pixels_refuses_more_than_max_pixels() -> None:
    data = pictures.png(pictures.scene())
    assert load_pixels(data, preprocessing(), max_pixels=48 * 32).shape == (64, 64, 3)
    with pytest.raises(ImageError, match=r"^48 × 32 pixels, more than the limit of 1,535$"):
        load_pixels(data, preprocessing(), max_pixels=48 * 32 - 1)


def test_load_pixels_raises_pillows_limit_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = pictures.png(pictures.scene())
    with pytest.raises(ImageError, match=r"^1,536 pixels, more than the limit of 200$"):
        load_pixels(data, preprocessing(), max_pixels=200)
    assert Image.MAX_IMAGE_PIXELS == 100
    load_pixels(data, preprocessing(), max_pixels=2000)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_load_pixels_lets_no_warning_of_pillow_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1,536 pixels are then suspicious, not too many
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_pixels(pictures.png(pictures.scene()), preprocessing(), max_pixels=2000)
        load_pixels(GOOD["exif_garbage"].data, preprocessing(), max_pixels=2000)
        warnings.warn("not Pillow's", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["not Pillow's"]


def test_load_pixels_translates_memory_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match=r"^not enough memory to decode it$"):
        load_pixels(pictures.png(pictures.scene()), preprocessing())


def test_load_pixels_tells_a_failing_disk_from_a_damaged_file() -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= 100:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(ImageError, match=r"^can't be read: input/output error$"):
        load_pixels(Failing(pictures.jpeg(noise(64, 64))), preprocessing())


def test_load_pixels_is_the_same_on_many_threads() -> None:
    names = [name for name in GOOD if not name.startswith("exif_")]
    expected = [load_pixels(GOOD[name].data, preprocessing()) for name in names]
    start = threading.Barrier(4)

    def load_all(_: int) -> list[NDArray[np.uint8]]:
        start.wait(timeout=120)
        return [load_pixels(GOOD[name].data, preprocessing()) for name in names]

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(load_all, range(4)):
            assert all(np.array_equal(one, other) for one, other in zip(got, expected, strict=True))


def test_load_pixels_survives_mutated_files() -> None:
    random = np.random.default_rng(5)
    for name in ("jpeg", "png", "webp", "palette_gif", "tiff_lzw", "rgba_16_bit", "bmp", "ycck_jpeg"):
        for _ in range(40):
            data = bytearray(GOOD[name].data)
            for position in random.integers(0, len(data), 6):
                data[position] = random.integers(0, 256)
            try:
                assert load_pixels(data, preprocessing((32, 32)), max_pixels=10**6).shape == (32, 32, 3)
            except ImageError as exc:
                assert str(exc)


def test_images_imports_no_torch() -> None:
    code = "import sys, clipcls.images, clipcls.inputs.discover; print({'torch', 'open_clip'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
