"""A corpus of awkward pictures, made from one scene: what each should look like, and what is wrong with each."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

Pixels = NDArray[np.uint8]

HEIGHT, WIDTH = 32, 48
ORIENTATION = 0x0112


def scene() -> Pixels:
    """(32, 48, 3): a smooth picture whose corners differ, so that no turn or flip goes unseen."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    red = 20 + 200 * across / (WIDTH - 1)
    green = 230 - 190 * down / (HEIGHT - 1)
    blue = 60 + 120 * (across / WIDTH) * (down / HEIGHT)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def grey_scene() -> Pixels:
    """(32, 48)."""
    return np.ascontiguousarray(scene()[..., 0])


def alpha() -> Pixels:
    """(32, 48): clear at the left, half in the middle, opaque at the right."""
    return np.repeat(np.repeat([0, 128, 255], WIDTH // 3)[None], HEIGHT, axis=0).astype(np.uint8)


def on_white(pixels: Pixels, opacity: Pixels) -> Pixels:
    share = opacity[..., None] / 255.0
    return (pixels * share + 255 * (1 - share)).round().astype(np.uint8)


def as_rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=-1)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root reads everything: give that up for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@dataclass(frozen=True)
class Picture:
    """A file's bytes, the pixels it shows, and by how much a lossy format may miss them."""

    data: bytes
    expected: Pixels
    tolerance: int = 0


# ------------------------------------------------------------------------------------------- writing


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(pixels: Pixels, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels), "JPEG", **({"quality": 98, "subsampling": 0} | options))


def png(pixels: Pixels, **options: Any) -> bytes:
    return encoded(Image.fromarray(pixels), "PNG", **options)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def raw_png(samples: NDArray[Any], colour: int, bits: int, *extra: bytes, size: tuple[int, int] | None = None) -> bytes:
    """A PNG that Pillow can't write. `samples` is (height, width, channels); `size` may lie about it."""
    rows = samples.astype(">u2") if bits == 16 else samples.astype(np.uint8)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    width, height = size or (samples.shape[1], samples.shape[0])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def with_orientation(orientation: int, kind: str) -> bytes:
    """The scene stored so that the EXIF orientation turns it upright."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # Image.Transpose values
    image = Image.fromarray(scene())
    stored = image if undo is None else image.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    options = ({"JPEG": {"quality": 98, "subsampling": 0}} | lossless).get(kind, {})
    return encoded(stored, kind, exif=exif, **options)


def cmyk() -> Image.Image:
    """The scene without black: Pillow's CMYK without K is the inverted RGB."""
    return Image.merge("CMYK", [*Image.fromarray(255 - scene()).split(), Image.new("L", (WIDTH, HEIGHT), 0)])


def ycck_jpeg() -> bytes:
    """Adobe's YCCK: the channels of a CMYK file are filled with YCbCr and K, then its marker is changed."""
    luma, blue, red = Image.fromarray(255 - scene()).convert("YCbCr").split()
    # Pillow writes the samples inverted, as Adobe does; they must end in the file as they are here.
    planes = [band.point(lambda value: 255 - value) for band in (luma, blue, red)]
    image = Image.merge("CMYK", [*planes, Image.new("L", (WIDTH, HEIGHT), 0)])
    data = bytearray(encoded(image, "JPEG", quality=98, subsampling=0))
    marker = data.index(b"Adobe")
    data[marker + 11] = 2
    return bytes(data)


def tiff(values: NDArray[Any], mode: str | None = None, **tags: Any) -> bytes:
    image = Image.fromarray(values)
    assert mode is None or image.mode == mode
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"photometric": 262}[name]] = value
    return encoded(image, "TIFF", tiffinfo=info)


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(scene()), Image.new("RGB", (WIDTH, HEIGHT), "black")]
    if kind == "GIF":
        frames = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    options = {"WEBP": {"lossless": True}, "MPO": {"quality": 98, "subsampling": 0}}.get(kind, {})
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def palette() -> Image.Image:
    """Four colours of which the first is transparent."""
    image = Image.new("P", (WIDTH, HEIGHT))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 250, 250, 0])
    image.putdata((np.arange(WIDTH * HEIGHT) % WIDTH // 12).tolist())
    return image


def palette_colours(first: tuple[int, int, int]) -> Pixels:
    colours = np.array([first, (0, 200, 0), (0, 0, 200), (250, 250, 0)], np.uint8)
    return colours[np.repeat(np.arange(WIDTH)[None] // 12, HEIGHT, axis=0)]


# ------------------------------------------------------------------------------------------- the corpus


def _plain() -> dict[str, Picture]:
    rgb, grey = Image.fromarray(scene()), Image.fromarray(grey_scene())
    lossless = {name: Picture(encoded(rgb, name.upper()), scene()) for name in ("png", "bmp", "tiff", "ppm", "tga")}
    more = {
        "jpeg": Picture(jpeg(scene()), scene(), 4),
        "jpeg_progressive": Picture(jpeg(scene(), progressive=True), scene(), 4),
        "jpeg_grey": Picture(jpeg(grey_scene()), as_rgb(grey_scene()), 4),
        "webp": Picture(encoded(rgb, "WEBP", lossless=True), scene()),
        "jpeg2000": Picture(encoded(rgb, "JPEG2000"), scene()),
        "ico": Picture(encoded(rgb.resize((48, 48)), "ICO", sizes=[(48, 48)]), np.array(rgb.resize((48, 48)))),
        "tiff_lzw": Picture(encoded(rgb, "TIFF", compression="tiff_lzw"), scene()),
        "grey": Picture(encoded(grey, "PNG"), as_rgb(grey_scene())),
        "one_bit": Picture(
            encoded(grey.point(lambda v: 255 * (v > 128)).convert("1"), "PNG"),
            as_rgb(((grey_scene() > 128) * 255).astype(np.uint8)),
        ),
        "icc_profile": Picture(
            encoded(rgb, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()),
            scene(),
        ),
        "exif_garbage": Picture(jpeg(scene(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage"), scene(), 4),
        "exif_orientation_9": Picture(jpeg(scene(), exif=_exif(9)), scene(), 4),
        "trailing_garbage": Picture(jpeg(scene()) + b"\0" * 5000, scene(), 4),
    }
    return lossless | more


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def _oriented() -> dict[str, Picture]:
    kinds = {"JPEG": 4, "PNG": 0, "WEBP": 0, "TIFF": 0}
    return {
        f"exif_{kind.lower()}_{orientation}": Picture(with_orientation(orientation, kind), scene(), tolerance)
        for kind, tolerance in kinds.items()
        for orientation in range(1, 9)
    }


def _colours() -> dict[str, Picture]:
    lab = Image.fromarray(scene()).convert("LAB")
    luma = Image.fromarray(scene()).convert("YCbCr")
    return {
        "cmyk_jpeg": Picture(encoded(cmyk(), "JPEG", quality=98, subsampling=0), scene(), 6),
        "cmyk_tiff": Picture(encoded(cmyk(), "TIFF"), scene(), 1),
        "ycck_jpeg": Picture(ycck_jpeg(), scene(), 6),
        "lab_tiff": Picture(encoded(lab, "TIFF"), scene(), 20),
        "ycbcr_tiff": Picture(encoded(luma, "TIFF"), scene(), 4),
        "palette": Picture(encoded(palette(), "PNG"), palette_colours((200, 0, 0))),
        "palette_gif": Picture(encoded(palette(), "GIF"), palette_colours((200, 0, 0))),
    }


def _transparent() -> dict[str, Picture]:
    rgba = np.dstack([scene(), alpha()])
    la = np.dstack([grey_scene(), alpha()])
    white_left = scene().copy()
    white_left[0, 0] = 255
    partial = bytes([128, 255, 255, 255])
    half_red = on_white(palette_colours((200, 0, 0)), np.full((HEIGHT, WIDTH), 128, np.uint8))[0, 0]
    key = tuple(int(value) for value in scene()[0, 0])
    wide_key = struct.pack(">HHH", *(value * 257 for value in key))
    return {
        "rgba": Picture(png(rgba), on_white(scene(), alpha()), 1),
        "rgba_webp": Picture(
            encoded(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), on_white(scene(), alpha()), 1
        ),
        "rgba_tiff": Picture(tiff(rgba), on_white(scene(), alpha()), 1),
        "la": Picture(png(la), on_white(as_rgb(grey_scene()), alpha()), 1),
        "palette_transparent": Picture(encoded(palette(), "PNG", transparency=0), palette_colours((255, 255, 255))),
        "palette_transparent_gif": Picture(encoded(palette(), "GIF", transparency=0), palette_colours((255, 255, 255))),
        "palette_half_transparent": Picture(
            encoded(palette(), "PNG", transparency=partial), palette_colours(tuple(half_red)), 1
        ),
        "rgb_key": Picture(png(scene(), transparency=key), white_left),
        "rgb_key_16_bit": Picture(
            raw_png(scene().astype(np.uint32) * 257, 2, 16, chunk(b"tRNS", wide_key)), white_left
        ),
        "rgba_16_bit": Picture(raw_png(rgba.astype(np.uint32) * 257, 6, 16), on_white(scene(), alpha()), 1),
    }


def _deep() -> dict[str, Picture]:
    grey = grey_scene()
    wide = grey.astype(np.uint32) * 257
    rgb = as_rgb(grey)
    unit = (grey / 255).astype(np.float32)
    odd = unit.copy()
    odd[0, :3] = np.nan, np.inf, -np.inf
    odd_rgb = rgb.copy()
    odd_rgb[0, :3] = np.array([[0], [255], [0]])
    stretched = (grey.astype(np.float64) - grey.min()) / (int(grey.max()) - int(grey.min())) * 255
    stretched_rgb = as_rgb(stretched.round().astype(np.uint8))
    keyed = rgb.copy()
    keyed[grey == grey[0, 0]] = 255
    key = struct.pack(">H", int(wide[0, 0]))
    header = f"P5 {WIDTH} {HEIGHT} 65535\n".encode()
    return {
        "grey_16_bit": Picture(raw_png(wide[..., None], 0, 16), rgb),
        "grey_16_bit_key": Picture(raw_png(wide[..., None], 0, 16, chunk(b"tRNS", key)), keyed),
        "grey_16_bit_tiff": Picture(tiff(wide.astype(np.uint16)), rgb),
        "grey_16_bit_tiff_big_endian": Picture(tiff(wide.astype(">u2"), "I;16B"), rgb),
        "grey_16_bit_tiff_white_is_zero": Picture(tiff((65535 - wide).astype(np.uint16), photometric=0), rgb),
        "grey_16_bit_pgm": Picture(header + wide.astype(">u2").tobytes(), rgb),
        "rgb_16_bit": Picture(raw_png(scene().astype(np.uint32) * 257, 2, 16), scene()),
        "integer_8_bit_range": Picture(tiff(grey.astype(np.int32)), rgb),
        "integer_16_bit_range": Picture(tiff(wide.astype(np.int32)), rgb),
        "integer_signed": Picture(tiff(grey.astype(np.int32) * 1000 - 90_000), stretched_rgb, 1),
        "float_unit": Picture(tiff(unit), rgb),
        "float_255": Picture(tiff(grey.astype(np.float32)), rgb),
        "float_free": Picture(tiff(grey.astype(np.float32) * 7 - 300), stretched_rgb, 1),
        "float_huge": Picture(tiff(((grey / 255 - 0.5) * 6e38).astype(np.float32)), stretched_rgb, 1),
        "float_flat": Picture(tiff(np.full((HEIGHT, WIDTH), -5, np.float32)), np.zeros_like(rgb)),
        "float_not_finite": Picture(tiff(odd), odd_rgb),
    }


def _multiple() -> dict[str, Picture]:
    return {
        "gif_animated": Picture(animation("GIF"), scene(), 24),
        "webp_animated": Picture(animation("WEBP"), scene()),
        "apng": Picture(animation("PNG"), scene()),
        "mpo": Picture(animation("MPO"), scene(), 4),
        "tiff_pages": Picture(animation("TIFF"), scene()),
    }


def good_pictures() -> dict[str, Picture]:
    """By name: pictures that can be read, of 48 × 32 pixels (`ico`: 48 × 48)."""
    return _plain() | _oriented() | _colours() | _transparent() | _deep() | _multiple()


def bad_files() -> dict[str, tuple[bytes, str]]:
    """By name: files that can't be read, and a pattern for what the error says."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    whole = {kind: encoded(Image.fromarray(noise), kind) for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP")}
    cut = {
        f"{kind.lower()}_cut_at_{share}": (data[: int(len(data) * share)], f"(truncated|damaged) {kind}")
        for kind, data in whole.items()
        for share in (0.3, 0.6, 0.95)
    }
    flipped = bytearray(whole["PNG"])
    flipped[len(flipped) // 2] ^= 0xFF
    bomb = raw_png(np.zeros((1, 1, 3)), 2, 8, size=(30_000, 30_000))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    rest = {
        "empty": (b"", "^empty file$"),
        "one_byte": (b"\xff", "not an image"),
        "text": (b"this is not a picture\n" * 9, "^not an image in a format Pillow reads$"),
        "html": (b"<!DOCTYPE html><html><body>404</body></html>", "not an image"),
        "zeros": (bytes(4096), "not an image"),
        "eps": (eps, "not an image"),
        "jpeg_header_only": (whole["JPEG"][:3], "^damaged JPEG: its header can't be read$"),
        "png_header_only": (whole["PNG"][:20], "^truncated PNG: the file ends before the picture does$"),
        "png_flipped_byte": (bytes(flipped), "damaged PNG"),
        "bomb": (bomb, "^900,000,000 pixels, more than the limit of 178,956,970$"),
        "all_nan": (tiff(np.full((4, 4), np.nan, np.float32)), "no pixel holds a finite number"),
    }
    return cut | rest


def write_corpus(folder: Path) -> dict[str, Path]:
    """Write every picture and bad file that has bytes; what lives in the file system only is the test's to make."""
    files: dict[str, bytes] = {name: picture.data for name, picture in good_pictures().items()}
    files |= {name: data for name, (data, _) in bad_files().items()}
    paths = {}
    for name, data in files.items():
        paths[name] = folder / f"{name}.jpg"  # whatever it holds: the content counts
        paths[name].write_bytes(data)
    return paths
