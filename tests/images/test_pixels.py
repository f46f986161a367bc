"""Fast pixels against Pillow's, which `test_images` holds against open_clip's bit for bit."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import pictures
from clipcls import ModelSpec, load_encoder
from clipcls.errors import ImageError
from clipcls.images.decoding import decode_picture
from clipcls.images.fit import load_pixels
from clipcls.images.geometry import as_image, placement
from clipcls.models.catalog import EMBEDDED
from clipcls.models.encoder import Encoder
from clipcls.records import Decode, Preprocessing
from conftest import TINY_CONFIG, save_model

Pixels = NDArray[np.uint8]

CLIP = Preprocessing((224, 224), (0.5,) * 3, (0.5,) * 3)
SMALL = Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)
SIZES = [(640, 427), (500, 375), (224, 224), (100, 80), (447, 640), (1201, 1599), (225, 900)]
JPEG_OPTIONS = {
    "low_420": {"quality": 40, "subsampling": 2},
    "usual_420": {"quality": 85, "subsampling": 2},
    "422": {"quality": 90, "subsampling": 1},
    "444": {"quality": 95, "subsampling": 0},
    "progressive": {"quality": 80, "subsampling": 2, "progressive": True},
    "restarts": {"quality": 80, "subsampling": 2, "restart_marker_rows": 2},
}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Two, of 640 × 427."""
    from sklearn.datasets import load_sample_images

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what scikit-learn's dependencies have to say
        return [Image.fromarray(pixels) for pixels in load_sample_images().images]


@pytest.fixture(scope="module", params=["pictogram", "ViT"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    vision = {"image_size": 224, "layers": 3, "width": 192, "patch_size": 32}
    folder = EMBEDDED / "pictogram"
    if request.param == "ViT":
        folder = save_model(tmp_path_factory.mktemp("models") / "vit", TINY_CONFIG | {"vision_cfg": vision})
    return load_encoder(ModelSpec(str(folder), device="cpu", precision="fp32"))


@pytest.fixture(params=["cykooz-resizer", "pillow"])
def either_resize(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast mode with what usually resizes, and with Pillow, which does where that isn't installed."""
    if request.param == "pillow":
        monkeypatch.setattr("clipcls.images.resizing.cykooz_resizer", None)


def difference(one: Pixels, other: Pixels) -> NDArray[np.int64]:
    return np.abs(one.astype(np.int64) - other)


def cosines(encoder: Encoder, files: list[bytes]) -> NDArray[np.float32]:
    """The products of exact features with fast ones."""
    exact, fast = (
        encoder.encode_image([load_pixels(data, encoder.preprocess, decode) for data in files])
        for decode in get_args(Decode)
    )
    products: NDArray[np.float32] = (fast * exact).sum(axis=1)
    return products


def outcome(data: bytes, wanted: Preprocessing = SMALL, decode: Decode = "fast") -> Pixels | str:
    """The pixels, or what the error says."""
    try:
        return load_pixels(data, wanted, decode)
    except ImageError as exc:
        return str(exc)


# ------------------------------------------------------------------------------------------- photographs


@pytest.mark.usefixtures("one_thread")
def test_fast_features_equal_exact_ones_on_photographs(encoder: Encoder, photographs: list[Image.Image]) -> None:
    files = []
    for i, size in enumerate(SIZES):
        photograph = photographs[i % 2].resize(size, Image.Resampling.LANCZOS)
        files += [pictures.encoded(photograph, "JPEG", **options) for options in JPEG_OPTIONS.values()]
        files += [pictures.encoded(photograph.convert("L"), "JPEG"), pictures.encoded(photograph, "PNG")]
    files += [pictures.encoded(photograph.crop((150, 60, 430, 400)), "JPEG") for photograph in photographs]
    assert cosines(encoder, files).min() >= 0.999


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", ["low_420", "444", "progressive"])
def test_fast_features_equal_exact_ones_where_decoding_is_reduced(
    encoder: Encoder, photographs: list[Image.Image], options: str
) -> None:
    sizes = [(4000, 3000), (2501, 1667), (1801, 1203), (960, 1283)]
    files = [
        pictures.encoded(photographs[i % 2].resize(size, Image.Resampling.BICUBIC), "JPEG", **JPEG_OPTIONS[options])
        for i, size in enumerate(sizes)
    ]
    assert cosines(encoder, files).min() >= 0.999


@pytest.mark.usefixtures("one_thread")
def test_fast_features_equal_exact_ones_of_turned_photographs(encoder: Encoder, photographs: list[Image.Image]) -> None:
    files = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[pictures.ORIENTATION] = orientation
        photograph = photographs[orientation % 2].resize((1801, 1203), Image.Resampling.BICUBIC)
        files.append(pictures.encoded(photograph, "JPEG", quality=90, exif=exif))
    assert cosines(encoder, files).min() >= 0.999


@pytest.mark.usefixtures("either_resize")
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("window", [(224, 224), (160, 224), (224, 97)], ids=str)
def test_fast_pixels_of_photographs_are_near_exact(
    photographs: list[Image.Image], window: tuple[int, int], mode: str
) -> None:
    wanted = Preprocessing(window, (0.5,) * 3, (0.5,) * 3, resize_mode=mode, fill_color=77)  # type: ignore[arg-type]
    for i, size in enumerate([(640, 427), (321, 240), (427, 431), (100, 80), (225, 700)]):
        photograph = photographs[i % 2].resize(size, Image.Resampling.LANCZOS)
        for options in ("usual_420", "444"):
            for picture in (photograph, photograph.convert("L")):
                data = pictures.encoded(picture, "JPEG", **JPEG_OPTIONS[options])
                off = difference(load_pixels(data, wanted), load_pixels(data, wanted, "exact"))
                # at a reduced scale, or averaged down by Pillow
                reduced = decode_picture(data, wanted).extent != size or size[0] > 6 * window[1]
                assert off.max() <= (16 if reduced else 3) and off.mean() < (1.0 if reduced else 0.3), (
                    size,
                    options,
                    off.max(),
                    off.mean(),
                )


@pytest.mark.usefixtures("either_resize")
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_fast_pixels_of_reduced_photographs_are_near_exact(photographs: list[Image.Image], mode: str) -> None:
    wanted = Preprocessing((96, 64), (0.5,) * 3, (0.5,) * 3, resize_mode=mode, fill_color=77)  # type: ignore[arg-type]
    for i, size in enumerate([(1201, 1599), (1600, 1200), (1003, 701)]):
        photograph = photographs[i % 2].resize(size, Image.Resampling.BICUBIC)
        data = pictures.encoded(photograph, "JPEG", quality=95)
        off = difference(load_pixels(data, wanted), load_pixels(data, wanted, "exact"))
        # a picture shifted by half a pixel would be off by 5 on average
        assert off.mean() < 1.0, (size, off.max(), off.mean())


def test_fast_pixels_are_no_more_off_without_simplejpeg(
    photographs: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        (size, name): pictures.encoded(photographs[0].resize(size), "JPEG", **options)
        for size in ((640, 427), (1201, 1599), (300, 225))
        for name, options in JPEG_OPTIONS.items()
    }
    files[(640, 427), "grey"] = pictures.encoded(photographs[1].convert("L"), "JPEG")
    with_it = {name: load_pixels(data, CLIP) for name, data in files.items()}
    monkeypatch.setattr("clipcls.images.jpeg.simplejpeg", None)
    for name, data in files.items():
        off = difference(with_it[name], load_pixels(data, CLIP))
        # reduced, simplejpeg takes the quicker transform and doesn't smooth colours
        assert off.max() <= (12 if name[0] == (1201, 1599) else 1) and off.mean() < 1, (name, off.max(), off.mean())


def test_pixels_import_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "scene.jpg"
    path.write_bytes(pictures.jpeg(pictures.scene()))
    code = (
        "import sys\n"
        "from clipcls.images.fit import load_pixels\n"
        "from clipcls.records import Preprocessing\n"
        "for decode in ('fast', 'exact'):\n"
        "    load_pixels(sys.argv[1], Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3), decode)\n"
        "print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]


# ------------------------------------------------------------------------------------------- sizes

EXTREME = [(1, 5000), (5000, 1), (2, 3000), (5000, 40), (1, 1), (3, 1), (1, 2), (7, 30)]


@pytest.mark.usefixtures("either_resize")
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("window", [(64, 64), (48, 96)], ids=str)
def test_fast_pixels_of_extreme_shapes_are_near_exact(window: tuple[int, int], mode: str) -> None:
    wanted = Preprocessing(window, (0.5,) * 3, (0.5,) * 3, resize_mode=mode, fill_color=9)  # type: ignore[arg-type]
    for width, height in EXTREME:
        across = np.linspace(0, 255, max(width, height)).round().astype(np.uint8)
        grey = np.resize(across, (height, width)) if height == 1 else np.repeat(across[:height, None], width, axis=1)
        if width > height > 1:
            grey = np.repeat(across[None], height, axis=0)
        data = pictures.jpeg(np.ascontiguousarray(grey))
        off = difference(load_pixels(data, wanted), load_pixels(data, wanted, "exact"))
        assert off.max() <= 4, (width, height, off.max())


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_fast_never_decodes_under_twice_the_resized_picture(mode: str) -> None:
    wanted = Preprocessing((96, 72), (0.5,) * 3, (0.5,) * 3, resize_mode=mode)  # type: ignore[arg-type]
    reduced = set()
    for width, height in [(160, 120), (385, 290), (1153, 769), (1201, 1599), (1537, 1536), (300, 1999), (2304, 1700)]:
        for orientation in (1, 3, 6, 8):
            exif = Image.Exif()
            exif[pictures.ORIENTATION] = orientation
            data = pictures.jpeg(np.zeros((height, width), np.uint8), exif=exif.tobytes())
            picture = decode_picture(data, wanted)
            decoded, upright = as_image(picture.image).size, (width, height) if orientation < 5 else (height, width)
            assert picture.size == upright
            if decoded != upright:
                resized = placement(upright, wanted).resized
                assert decoded[0] >= 2 * resized[0] and decoded[1] >= 2 * resized[1], (width, height, decoded)
                reduced.add(round(upright[0] / decoded[0]))
    assert reduced == {2, 4, 8}


@pytest.mark.usefixtures("either_resize")
@pytest.mark.parametrize("size", [(98 * 4 + 1, 784), (937, 1044), (1007, 1128), (1036, 921), (1960, 1921)], ids=str)
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_fast_fills_the_window_whatever_the_quotients_round_to(size: tuple[int, int], mode: str) -> None:
    """522 * (249 / 522) is less than 249: a row short, which would be padded in black."""
    data = pictures.jpeg(np.full((size[1], size[0], 3), 255, np.uint8))
    for side in (49, 61, 98, 103, 107, 161, 187, 196, 197, 224):
        wanted = Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3, resize_mode=mode, fill_color=255)  # type: ignore[arg-type]
        assert (load_pixels(data, wanted) == 255).all(), side


# ------------------------------------------------------------------------------------------- orientation


@pytest.mark.usefixtures("either_resize")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(1201, 799), (300, 225)], ids=str)
def test_fast_turns_photographs_upright(
    photographs: list[Image.Image], orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    data = pictures.encoded(photographs[0].resize(size), "JPEG", quality=95, exif=exif)
    off = difference(load_pixels(data, SMALL), load_pixels(data, SMALL, "exact"))
    # turned wrongly, 20 and more; off by a quarter of a pixel, 1.5
    assert off.mean() < 0.7, (off.max(), off.mean())


# ------------------------------------------------------------------------------------------- odd JPEGs


def patched(data: bytes, marker: int, offset: int, value: int) -> bytes:
    """A copy with one byte changed, so far behind a marker of two bytes."""
    changed = bytearray(data)
    changed[data.index(bytes([0xFF, marker])) + offset] = value
    return bytes(changed)


def odd_jpegs() -> dict[str, bytes]:
    scene = Image.fromarray(pictures.scene()).resize((300, 200))
    plain = pictures.encoded(scene, "JPEG", quality=95)
    rgb = pictures.encoded(scene, "JPEG", quality=95, keep_rgb=True)
    return {
        "cmyk": pictures.encoded(pictures.cmyk(), "JPEG"),
        "cmyk_of_odd_size": pictures.encoded(pictures.cmyk().resize((301, 203)), "JPEG"),
        "ycck": pictures.ycck_jpeg(),
        "rgb": rgb,
        "no_jfif": plain[:2] + plain[2 + 2 + int.from_bytes(plain[4:6], "big") :],
        "12_bits": patched(plain, 0xC0, 4, 12),
        "arithmetic": patched(plain, 0xC0, 1, 0xC9),
        "lossless": patched(plain, 0xC0, 1, 0xC3),
        "two_components": patched(plain, 0xC0, 9, 2),
        "five_components": patched(plain, 0xC0, 9, 5),
        "no_width": patched(patched(plain, 0xC0, 7, 0), 0xC0, 8, 0),
        "higher_than_it_is": patched(plain, 0xC0, 5, 3),
        "wider_than_it_is": patched(plain, 0xC0, 7, 3),
        "lower_than_it_is": patched(plain, 0xC0, 6, 90),
        "unknown_table": patched(plain, 0xDA, 6, 0x33),
        "trailing": plain + b"\xff\xd8\xff" + bytes(99),
        "twice": plain + plain,
        "no_end": plain[:-2],
        "no_end_and_less": plain[:-3],
        "fill_bytes": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "one_pixel": pictures.encoded(scene.resize((1, 1)), "JPEG"),
    }


@pytest.mark.parametrize("name", odd_jpegs())
def test_fast_reads_odd_jpegs_as_pillow_does(name: str) -> None:
    data = odd_jpegs()[name]
    for side in (64, 20):  # decoded in full, and reduced
        wanted = Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3)
        fast, exact = outcome(data, wanted), outcome(data, wanted, "exact")
        if isinstance(fast, str) or isinstance(exact, str):
            assert fast == exact
        else:
            assert difference(fast, exact).mean() < 2


# ------------------------------------------------------------------------------------------- damage


def damaged(data: bytes) -> Iterator[bytes]:
    """Cut at many places, and with flipped bytes all over it."""
    random = np.random.default_rng(1)
    start = data.index(b"\xff\xda")
    # past the tables cuts all do the same, but for the last bytes
    ends = [*range(3, start + 20, 23), *range(start + 20, len(data) - 6, 1499), *range(len(data) - 6, len(data))]
    yield from (data[:end] for end in ends)
    for begin, end in pairwise([2, start, start + 100, len(data)]):
        for _ in range(12):
            changed = bytearray(data)
            for position in random.integers(begin, end, random.integers(1, 3)):
                changed[position] ^= 1 << random.integers(0, 8)
            yield bytes(changed)


@pytest.mark.parametrize("options", ["usual_420", "444", "progressive", "restarts"])
@pytest.mark.parametrize("side", [120, 40], ids=["whole", "reduced"])
def test_fast_refuses_damaged_jpegs_exactly_where_pillow_does(
    photographs: list[Image.Image], options: str, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Preprocessing((side, side), (0.5,) * 3, (0.5,) * 3)
    files = list(damaged(pictures.encoded(photographs[1].resize((230, 170)), "JPEG", **JPEG_OPTIONS[options])))
    fast = [outcome(data, wanted) for data in files]
    exact = [outcome(data, wanted, "exact") for data in files]
    monkeypatch.setattr("clipcls.images.jpeg.simplejpeg", None)
    by_pillow = [outcome(data, wanted) for data in files]
    refused = 0
    for i, answers in enumerate(zip(fast, exact, by_pillow, strict=True)):
        one, other, third = answers
        if isinstance(one, str) or isinstance(other, str) or isinstance(third, str):
            assert one == other == third, i
            refused += 1
        else:
            assert difference(one, third).mean() < 1, i
            if side == 120:
                assert difference(one, other).max() <= 3, i
    assert 20 < refused < len(files) - 10


def test_fast_without_memory_is_an_error_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    simplejpeg = pytest.importorskip("simplejpeg")

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg", fail)
    with pytest.raises(ImageError, match=r"^not enough memory to decode it$"):
        load_pixels(pictures.jpeg(pictures.scene()), SMALL)


def test_fast_leaves_a_file_open_and_reads_it_twice(tmp_path: Path) -> None:
    path = tmp_path / "scene.jpg"
    path.write_bytes(pictures.jpeg(pictures.scene()))
    with path.open("rb") as file:
        first, second = load_pixels(file, SMALL), load_pixels(file, SMALL)
        assert not file.closed
    assert np.array_equal(first, second)
    assert np.array_equal(first, load_pixels(path, SMALL))
