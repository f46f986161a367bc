"""Awkward files: each through the decoder, and all of them through the command line."""

import base64
import contextlib
import ctypes
import io
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import awkward
import pictures
from clipcls.errors import ImageError
from clipcls.images import formats
from clipcls.images.decoding import decode_picture, load_layers
from clipcls.images.fit import load_pixels
from clipcls.images.limits import _count_scans
from clipcls.records import Decode, Preprocessing
from shell import run_on_files

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

GOOD = awkward.good_pictures()
BAD = awkward.bad_files()
Shown = tuple[tuple[int, ...], bytes]
DECODES: tuple[Decode, ...] = ("fast", "exact")
SMALL = Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)


def own_size(picture: pictures.Picture) -> Preprocessing:
    """What resizes nothing."""
    return Preprocessing(picture.expected.shape[:2], (0.5,) * 3, (0.5,) * 3, resize_mode="squash")


def off_by(picture: pictures.Picture, decode: Decode) -> int:
    got = load_pixels(picture.data, own_size(picture), decode)
    return int(np.abs(got.astype(int) - picture.expected).max())


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("name", GOOD)
def test_load_pixels_shows_what_is_in_an_awkward_file(name: str, decode: Decode) -> None:
    assert off_by(GOOD[name], decode) <= GOOD[name].tolerance


@pytest.mark.parametrize("decode", DECODES)
@pytest.mark.parametrize("name", BAD)
def test_load_pixels_says_what_is_wrong_with_an_awkward_file(name: str, decode: Decode) -> None:
    data, message = BAD[name]
    with pytest.raises(ImageError, match=message) as caught:
        load_pixels(data, SMALL, decode)
    assert not awkward.INTERNALS.search(str(caught.value))


def test_load_pixels_takes_every_format_it_names() -> None:
    shown = set()
    good = pictures.good_pictures() | {name: picture for name, picture in GOOD.items() if "bomb" not in name}
    for picture in good.values():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shown.add(Image.open(io.BytesIO(picture.data)).format)
    assert shown - {"MPO"} == set(formats.FORMATS)


@pytest.mark.parametrize(
    ("name", "clear"), [("grey_2_bit_key", 1), ("rgb_16_bit_dark_key", 0), ("palette_4_bit_transparent", 1)]
)
def test_load_layers_keeps_the_transparency_of_odd_depths(name: str, clear: int) -> None:
    picture = load_layers(GOOD[name].data, SMALL)
    assert picture.mode == "RGBA"
    rgba = np.asarray(picture)
    assert np.array_equal(rgba[..., 3] == 0, np.equal(awkward.COLUMNS, clear))
    opaque = np.not_equal(awkward.COLUMNS, clear)
    assert np.array_equal(rgba[opaque][:, :3], GOOD[name].expected[opaque])


# ------------------------------------------------------------------------------------------- limits


def test_load_pixels_refuses_a_large_icon_before_decoding_it() -> None:
    large = pictures.png(np.zeros((300, 400, 3), np.uint8))
    bitmap = bytearray(40)
    bitmap[:4], bitmap[4:8], bitmap[8:12] = b"\x28\0\0\0", (400).to_bytes(4, "little"), (600).to_bytes(4, "little")
    for inner in (large[:40], bytes(bitmap)):  # the picture isn't even there
        with pytest.raises(ImageError, match=r"^400 × 300 pixels, more than the limit of 100,000$"):
            load_pixels(awkward.icon(inner, side=16), SMALL, max_pixels=100_000)


def test_load_pixels_bounds_the_tiles_of_a_tiff_by_the_limit() -> None:
    data = awkward.tile_bomb()
    with pytest.raises(ImageError, match=r"^tiles of 20,000 × 20,000 pixels, more than the limit of 100,000,000$"):
        load_pixels(data, SMALL, max_pixels=100_000_000)
    usual = GOOD["tiff_tile_larger_than_picture"]
    assert load_pixels(usual.data, SMALL, max_pixels=48 * 32).shape == (64, 64, 3)


def test_scans_are_counted_up_to_the_end_of_the_picture() -> None:
    """Cameras put films behind it; photoprism#439."""
    picture = pictures.jpeg(pictures.scene(), progressive=True)
    scans = _count_scans(picture, 1000)
    assert scans == picture.count(b"\xff\xda") > 1
    assert _count_scans(picture + b"ftypmp42" + b"\xff\xda\x01" * 300, 1000) == scans
    assert _count_scans(picture, 3) == 3


def most_memory() -> float:
    """MiB that this process has held at most, since it was last told to forget that."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells")
@pytest.mark.parametrize("name", [name for name in (*BAD, *GOOD) if "bomb" in name])
def test_load_pixels_takes_no_memory_for_a_bomb(name: str) -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = most_memory()
    with pytest.raises(ImageError) if name in BAD else contextlib.nullcontext():
        load_pixels(BAD[name][0] if name in BAD else GOOD[name].data, SMALL)
    assert most_memory() < before + 40


# ------------------------------------------------------------------------------------------- other people's output


def test_load_pixels_keeps_libraries_from_printing(capfd: pytest.CaptureFixture[str]) -> None:
    for data, _ in [*BAD.values(), *pictures.bad_files().values()]:
        with pytest.raises(ImageError):
            load_pixels(data, SMALL)
    assert capfd.readouterr() == ("", "")


def test_load_pixels_starts_no_other_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Ghostscript, which would run what an EPS file says."""
    started: list[object] = []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: started.append(args))
    monkeypatch.setattr(os, "system", started.append)
    eps = pictures.bad_files()["eps"][0]
    for data in (eps, b"\n" + eps, BAD["eps_in_windows_binary"][0], BAD["pdf"][0], BAD["svg"][0]):
        with pytest.raises(ImageError, match=r"^not an image in a format Pillow reads$"):
            load_pixels(data, SMALL)
    assert not started


# ------------------------------------------------------------------------------------------- HEIC


@pytest.fixture(scope="module")
def heics() -> dict[str, pictures.Picture]:
    pytest.importorskip("pillow_heif")
    return awkward.heics()


def test_load_pixels_shows_what_is_in_a_heic_file(heics: dict[str, pictures.Picture]) -> None:
    for name, picture in heics.items():
        for decode in DECODES:
            assert off_by(picture, decode) <= picture.tolerance, (name, decode)


def test_load_pixels_says_what_is_wrong_with_a_heic_file(heics: dict[str, pictures.Picture]) -> None:
    data = heics["heic_grey"].data
    for end in (20, 60, len(data) // 2, len(data) - 9):
        with pytest.raises(ImageError, match=r"^(truncated|damaged) HEIC") as caught:
            load_pixels(data[:end], SMALL)
        assert not awkward.INTERNALS.search(str(caught.value))


def test_load_pixels_refuses_a_large_heic_before_decoding_it(heics: dict[str, pictures.Picture]) -> None:
    with pytest.raises(ImageError, match=r"^48 × 32 pixels, more than the limit of 1,535$"):
        load_pixels(heics["heic_grey"].data, SMALL, max_pixels=48 * 32 - 1)


def test_load_pixels_reads_heic_on_threads_without_telling_pillow(heics: dict[str, pictures.Picture]) -> None:
    picture = heics["heic_orientation_6"]
    expected = load_pixels(picture.data, SMALL)
    alone = threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: load_pixels(picture.data, SMALL), range(12)))
    assert all(np.array_equal(pixels, expected) for pixels in found)
    assert threading.active_count() == alone
    assert "HEIF" not in Image.OPEN and ".heic" not in Image.registered_extensions()


@pytest.mark.parametrize("brands", [b"heic", b"heix", b"mif1\0\0\0\0heic", b"mif1\0\0\0\0miaf", b"msf1\0\0\0\0hevc"])
def test_load_pixels_names_the_extra_that_reads_heic(monkeypatch: pytest.MonkeyPatch, brands: bytes) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats._heic_opener.cache_clear()
    box = b"ftyp" + brands.ljust(8, b"\0")
    data = (4 + len(box)).to_bytes(4, "big") + box + bytes(99)
    with pytest.raises(ImageError, match=r"^HEIC needs the package pillow-heif: pip install 'clipcls\[heic\]'$"):
        load_pixels(data, SMALL)


@pytest.mark.parametrize("brands", [b"avif", b"mif1\0\0\0\0avif", b"avis\0\0\0\0heic"])
def test_load_pixels_leaves_avif_to_pillow(monkeypatch: pytest.MonkeyPatch, brands: bytes) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats._heic_opener.cache_clear()
    box = b"ftyp" + brands.ljust(8, b"\0")
    with pytest.raises(ImageError, match=r"^damaged AVIF"):
        load_pixels((4 + len(box)).to_bytes(4, "big") + box + bytes(99), SMALL)


# ------------------------------------------------------------------------------------------- the command line


LABELS = ("cat", "dog", "truck")


@pytest.fixture
def corpus(tmp_path: Path) -> list[awkward.Case]:
    (tmp_path / "corpus").mkdir()
    return awkward.write_corpus(tmp_path / "corpus")


def rows_of(stdout: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def name_in(row: dict[str, Any]) -> str:
    """The path, whatever bytes it is made of."""
    return os.fsdecode(base64.b64decode(row["path_b64"])) if "path_b64" in row else row["path"]


def shown_by(pixels: pictures.Pixels) -> Shown:
    """What tells pictures apart."""
    return pixels.shape, pixels.tobytes()


def similarities(row: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.array([found["similarity"] for found in sorted(row["top"], key=lambda found: str(found["label"]))])


def predict(clipcls: Run, *args: str | Path, **options: Any) -> "subprocess.CompletedProcess[bytes]":
    common = ("--labels", ",".join(LABELS), "--model", "pictogram", "--top-k", "3", "--format", "jsonl")
    return clipcls("predict", *args, *common, **options)


def check_rows(cases: list[awkward.Case], rows: list[dict[str, Any]], references: dict[Shown, Any]) -> None:
    """Each row against the row of a plain PNG of the same pixels, or against what the error should say."""
    for case, row in zip(cases, rows, strict=True):
        if case.picture is None:
            assert row["label"] is None and row["score"] is None and row["top"] == [], case.name
            assert re.search(case.error, row["error"]), (case.name, row["error"])
            assert not awkward.INTERNALS.search(row["error"]), (case.name, row["error"])
        else:
            assert row["error"] is None, (case.name, row["error"])
            reference = references[shown_by(case.picture.expected)]
            off = np.abs(similarities(row) - similarities(reference)).max()
            assert off <= (0.03 if case.picture.tolerance else 0.002), (case.name, off)


def references(clipcls: Run, folder: Path, cases: list[awkward.Case]) -> dict[Shown, Any]:
    """The rows of plain PNGs of all that the corpus shows, by their pixels."""
    flipped = np.ascontiguousarray(pictures.scene()[::-1, ::-1])
    pixels = [flipped, *(case.picture.expected for case in cases if case.picture)]
    shown = {shown_by(one): one for one in pixels}
    (folder / "references").mkdir()
    for i, one in enumerate(shown.values()):
        Image.fromarray(one).save(folder / "references" / f"{i:03d}.png")
    done = predict(clipcls, "references")
    assert done.returncode == 0, done.stderr
    return dict(zip(shown, rows_of(done.stdout), strict=True))


def check_end(done: "subprocess.CompletedProcess[bytes]", cases: list[awkward.Case]) -> None:
    """The exit code, and nothing on stderr but lines of clipcls's own."""
    failed = sum(case.picture is None for case in cases)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 1, done.stderr
    assert all(line.startswith("clipcls: ") for line in lines), lines
    assert lines[-1] == f"clipcls: {failed} of {len(cases)} images could not be read"


@pytest.mark.parametrize("decode", DECODES)
def test_predict_has_one_right_row_for_each_awkward_file(
    clipcls: Run, tmp_path: Path, corpus: list[awkward.Case], decode: Decode
) -> None:
    named = b"".join(os.fsencode(f"corpus/{case.name}") + b"\0" for case in corpus)
    done = predict(clipcls, "--files-from", "-", "-0", "--decode", decode, input=named)
    rows = rows_of(done.stdout)
    assert [name_in(row) for row in rows] == [f"corpus/{case.name}" for case in corpus]
    plain = references(clipcls, tmp_path, corpus)
    check_rows(corpus, rows, plain)
    check_end(done, corpus)
    # the comparison would see a picture that is upside down
    upright, flipped = plain[shown_by(pictures.scene())], next(iter(plain.values()))
    assert np.abs(similarities(upright) - similarities(flipped)).max() > 0.03


def test_predict_goes_through_a_folder_of_awkward_files(
    clipcls: Run, tmp_path: Path, corpus: list[awkward.Case]
) -> None:
    folder = tmp_path / "corpus"
    (folder / "folder.jpg").mkdir()
    (folder / "folder.jpg" / "inside.png").write_bytes(pictures.png(pictures.scene()))
    (folder / "back").symlink_to(".")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "notes.txt").write_bytes(b"")
    (folder / "drawing.svg").write_bytes(b"<svg/>")
    inside = awkward.Case("folder.jpg/inside.png", pictures.Picture(b"", pictures.scene()))
    cases = sorted([*corpus, inside], key=lambda case: case.name)
    done = predict(clipcls, "corpus")
    assert [name_in(row) for row in rows_of(done.stdout)] == [f"corpus/{case.name}" for case in cases]
    check_end(done, cases)


def test_predict_takes_awkward_names_as_arguments(clipcls: Run, tmp_path: Path) -> None:
    """Typed by hand or by a shell's pattern: behind `--`, where they begin with a dash."""
    names = sorted(case.name for case in awkward._odd_names(tmp_path))
    done = clipcls(
        "predict", "--labels", "cat,dog", "--model", "pictogram", "--format", "jsonl", "--", *names
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [name_in(row) for row in rows_of(done.stdout)] == names


# ------------------------------------------------------------------------------------------- permissions


def run_without_privileges(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    """In a process of its own: the command line as a user who may not read everything."""
    if os.geteuid() == 0:  # root without its capabilities is still the owner of its files
        nothing = (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), nothing) == 0
    run_on_files(arguments, folder, environment)


def test_predict_says_what_it_may_not_read(forks: Any, tmp_path: Path) -> None:
    shown, streams = tmp_path / "shown", tmp_path / ".streams"
    (shown / "closed").mkdir(parents=True)
    streams.mkdir()
    for name in ("a.png", "b.png", "closed/c.png"):
        (shown / name).write_bytes(pictures.png(pictures.scene()))
    (shown / "b.png").chmod(0)
    (shown / "closed").chmod(0)
    (streams / "stdin").touch()
    arguments = ["predict", "shown", "shown/closed/c.png", "--labels", "cat,dog", "--model", "pictogram"]
    arguments += ["--format", "jsonl"]
    process = forks.Process(target=run_without_privileges, args=(arguments, streams, dict(os.environ)))
    process.start()
    process.join(120)
    (shown / "closed").chmod(0o700)
    errors = (streams / "stderr").read_text()
    assert process.exitcode == 1, errors
    assert "Traceback" not in errors
    assert [(row["path"], row["error"]) for row in rows_of((streams / "stdout").read_bytes())] == [
        ("shown/a.png", None),
        ("shown/b.png", "permission denied"),
        ("shown/closed", "permission denied"),
        ("shown/closed/c.png", "permission denied"),
    ]


def test_decode_picture_leaves_the_place_of_pixels_to_the_file(tmp_path: Path) -> None:
    """libtiff reads a file by its descriptor, and Pillow another one at the same time."""
    path = tmp_path / "scene.tif"
    path.write_bytes(GOOD["tiff_deflate"].data)
    with path.open("rb") as file:
        first, second = decode_picture(file, SMALL), decode_picture(file, SMALL)
    assert first.image == second.image
