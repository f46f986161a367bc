"""Files of the kinds that trip readers of images, beyond those in `pictures`: what each shows, or what is wrong.

Most are put together byte by byte, so that the pixels are known by construction and not by the library under test.
"""

import base64
import io
import os
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import pictures
from pictures import HEIGHT, WIDTH, Picture, Pixels, alpha, as_rgb, chunk, encoded, grey_scene, jpeg, on_white, scene

COLUMNS = np.repeat(np.arange(WIDTH)[None] // 12, HEIGHT, axis=0)  # 0 to 3, each 12 pixels wide
COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (250, 250, 0)]
WHITE = (255, 255, 255)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# what no user should have to read in an error
INTERNALS = re.compile(
    r"Traceback|PIL\b|Plugin|pillow_heif|[A-Z]\w+(Error|Exception)\b|<\w|object at|NoneType|\bb'|0x|\n"
)

# the grey scene, by libjpeg-turbo's `cjpeg -arithmetic -quality 90 -grayscale`
_ARITHMETIC = (
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMU"
    "FRUVDA8XGBYUGBIUFRT/yQALCAAgADABAREA/8wABgAQEAX/2gAIAQEAAD8A/wDkS3IYLJjkOtjXB0Q4PormJCcn0EDi0Ks8aEGO"
    "H6dt9TC2kYVq7IwPSKNiZo/EfTXuGXJVlQTE+vSGEUSJUsD/2Q=="
)


def columns(*colours: tuple[int, int, int]) -> Pixels:
    """Four columns in these colours."""
    return np.array(colours, np.uint8)[COLUMNS]


def greys(*values: int) -> Pixels:
    """Four grey columns."""
    return columns(*((value, value, value) for value in values))


# ------------------------------------------------------------------------------------------- PNG


def png_file(
    rows: bytes,
    colour: int,
    bits: int,
    *before: bytes,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    interlace: int = 0,
    after: bytes = b"",
    parts: int = 1,
) -> bytes:
    """A PNG of filtered rows, with chunks before and after the picture, which may lie in many parts."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, interlace))
    body = zlib.compress(rows)
    step = -(-len(body) // parts)
    data = b"".join(chunk(b"IDAT", body[start : start + step]) for start in range(0, len(body), step))
    return PNG_SIGNATURE + header + b"".join(before) + data + after + chunk(b"IEND", b"")


def unfiltered(pixels: NDArray[Any]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def packed(values: NDArray[Any], bits: int) -> Pixels:
    """(height, width) numbers of a few bits each, eight bits to a byte."""
    single = (values[..., None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(single.astype(np.uint8).reshape(len(values), -1), axis=1)


def interlaced(pixels: NDArray[Any]) -> bytes:
    """Adam7."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    return b"".join(unfiltered(pixels[top::down, left::across]) for left, top, across, down in passes)


def transparent(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def _pngs() -> dict[str, Picture]:
    rgb, wide = unfiltered(scene()), scene().astype(">u2") * 257
    rgba = np.dstack([scene(), alpha()])
    la = np.dstack([grey_scene(), alpha()]).astype(np.uint32) * 257
    palette = chunk(b"PLTE", bytes(sum(COLOURS, ())))
    whole = png_file(rgb, 2, 8)
    bad_sum = bytearray(whole)
    bad_sum[-13] ^= 0xFF  # of the last IDAT, whose content has a checksum of its own
    files = {
        "png_interlaced": (png_file(interlaced(scene()), 2, 8, interlace=1), scene()),
        "png_interlaced_16_bit": (png_file(interlaced(wide), 2, 16, interlace=1), scene()),
        "png_in_many_parts": (png_file(rgb, 2, 8, parts=400), scene()),
        "png_with_empty_part": (png_file(rgb, 2, 8, chunk(b"IDAT", b"")), scene()),
        "png_wrong_checksum_of_pixels": (bytes(bad_sum), scene()),
        "png_without_end": (whole[:-12], scene()),
        "png_trailing_garbage": (whole + b"PK\3\4" + bytes(999), scene()),
        "png_gamma_and_white_point": (png_file(rgb, 2, 8, chunk(b"gAMA", struct.pack(">I", 220_000))), scene()),
        "png_unknown_chunk": (png_file(rgb, 2, 8, chunk(b"juNk", b"whatever")), scene()),
        "png_xmp_junk": (
            png_file(rgb, 2, 8, chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:xmpmeta <<< \xff\xfe not XML")),
            scene(),
        ),
        "palette_1_bit": (
            png_file(unfiltered(packed(COLUMNS % 2, 1)), 3, 1, palette),
            columns(COLOURS[0], COLOURS[1], COLOURS[0], COLOURS[1]),
        ),
        "palette_2_bit": (png_file(unfiltered(packed(COLUMNS, 2)), 3, 2, palette), columns(*COLOURS)),
        "palette_4_bit_transparent": (
            png_file(unfiltered(packed(COLUMNS, 4)), 3, 4, palette, chunk(b"tRNS", b"\xff\0")),
            columns(COLOURS[0], WHITE, *COLOURS[2:]),
        ),
    }
    lossless = {name: Picture(data, expected) for name, (data, expected) in files.items()}
    return lossless | {
        "rgba_interlaced": Picture(png_file(interlaced(rgba), 6, 8, interlace=1), on_white(scene(), alpha()), 1),
        "la_16_bit": Picture(png_file(unfiltered(la.astype(">u2")), 4, 16), on_white(as_rgb(grey_scene()), alpha()), 1),
    }


def _transparent_colours() -> dict[str, Picture]:
    """PNGs that declare one colour transparent, at every depth."""
    wide = np.array([(200, 0, 0), *(np.array(colour) * 257 for colour in COLOURS[:3])])[COLUMNS]
    thin = np.array([10, 20, 30, 40])[COLUMNS].astype(np.uint8)
    files = {
        "grey_1_bit_key": (unfiltered(packed(COLUMNS % 2, 1)), 0, 1, (0,), greys(255, 255, 255, 255)),
        "grey_2_bit": (unfiltered(packed(COLUMNS, 2)), 0, 2, (), greys(0, 85, 170, 255)),
        "grey_2_bit_key": (unfiltered(packed(COLUMNS, 2)), 0, 2, (1,), greys(0, 255, 170, 255)),
        "grey_4_bit_key": (unfiltered(packed(COLUMNS * 4, 4)), 0, 4, (4,), greys(0, 255, 136, 204)),
        # a 4-bit key of 8 is a grey of 136; 8 itself is no grey that there is
        "grey_4_bit_key_middle": (unfiltered(packed(COLUMNS * 4, 4)), 0, 4, (8,), greys(0, 68, 255, 204)),
        # of a key's two bytes only the bits that a sample has count
        "grey_8_bit_key_with_more_bits": (unfiltered(thin), 0, 8, (0x0114,), greys(10, 255, 30, 40)),
        "rgb_key_with_more_bits": (
            unfiltered(columns(*COLOURS)),
            2,
            8,
            (0x12C8, 0, 0),
            columns(WHITE, *COLOURS[1:]),
        ),
        # 200 of 65535 is next to black, and not the 200 of 255 in the second column
        "rgb_16_bit_dark_key": (unfiltered(wide.astype(">u2")), 2, 16, (200, 0, 0), columns(WHITE, *COLOURS[:3])),
    }
    return {
        name: Picture(png_file(rows, colour, bits, *([transparent(*key)] if key else [])), expected)
        for name, (rows, colour, bits, key, expected) in files.items()
    }


def _pngs_with_texts() -> dict[str, Picture]:
    """PNGs with a text or a profile that is large when unpacked, which no pixel depends on; Pillow#8363."""
    rgb = unfiltered(scene())
    inflating = zlib.compress(bytes(3_000_000))
    texts = {
        "png_itxt_bomb": chunk(b"iTXt", b"Comment\0\1\0\0\0" + inflating),
        "png_iccp_bomb": chunk(b"iCCP", b"profile\0\0" + inflating),
        "png_ztxt_bomb": chunk(b"zTXt", b"Comment\0\0" + inflating),
    }
    found = {name: Picture(png_file(rgb, 2, 8, text), scene()) for name, text in texts.items()}
    found["png_ztxt_bomb_at_the_end"] = Picture(png_file(rgb, 2, 8, after=texts["png_ztxt_bomb"]), scene())
    # what is small is read beside what isn't: these say that the picture is upside down, as in Pillow's getexif
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b'<x tiff:Orientation="3"/>')
    turned = scene()[::-1, ::-1]
    found["png_iccp_bomb_turned"] = Picture(png_file(rgb, 2, 8, texts["png_iccp_bomb"] + xmp), turned)
    large = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + inflating)
    found["png_xmp_bomb"] = Picture(png_file(rgb, 2, 8, large), scene())
    return found


def _bad_pngs() -> dict[str, tuple[bytes, str]]:
    rgb = unfiltered(scene())
    wrong = bytearray(png_file(rgb, 2, 8))
    wrong[20] ^= 1  # the height, but not its checksum
    return {
        "png_wrong_header_checksum": (bytes(wrong), "^damaged PNG"),
        "png_without_pixels": (PNG_SIGNATURE + chunk(b"IEND", b""), "^damaged PNG"),
        "png_of_no_size": (png_file(rgb, 2, 8, size=(0, 0)), "^damaged PNG"),
        "png_of_unknown_depth": (png_file(rgb, 2, 7), "^damaged PNG"),
        "png_with_too_few_rows": (png_file(rgb[:999], 2, 8), "^(truncated|damaged) PNG"),
        "png_pixels_are_no_deflate": (
            PNG_SIGNATURE
            + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", b"nothing that inflates")
            + chunk(b"IEND", b""),
            "^damaged PNG",
        ),
    }


# ------------------------------------------------------------------------------------------- JPEG


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def behind_start(data: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments put in right behind its start."""
    return data[:2] + b"".join(segments) + data[2:]


def frame_of(data: bytes) -> int:
    """Where the header of a JPEG's frame begins."""
    return data.index(b"\xff\xc0\0\x11\x08")


def with_frame(data: bytes, **changes: int) -> bytes:
    """A JPEG whose frame says something else."""
    changed, start = bytearray(data), frame_of(data)
    places = {"marker": (1, "B"), "bits": (4, "B"), "height": (5, ">H"), "width": (7, ">H")}
    for name, value in changes.items():
        offset, kind = places[name]
        struct.pack_into(kind, changed, start + offset, value)
    return bytes(changed)


def exif_segment(entries: Iterable[tuple[int, int, int, bytes]], thumbnail: bytes = b"") -> bytes:
    """An EXIF block of entries (tag, type, count, four bytes of value), perhaps with a thumbnail."""
    first = list(entries)
    second = 8 + 2 + 12 * len(first) + 4
    directory = struct.pack("<H", len(first))
    directory += b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in first)
    block = b"II*\0\x08\0\0\0" + directory + struct.pack("<I", second if thumbnail else 0)
    if thumbnail:
        place = second + 2 + 2 * 12 + 4
        block += struct.pack("<HHHIIHHIII", 2, 0x201, 4, 1, place, 0x202, 4, 1, len(thumbnail), 0) + thumbnail
    return segment(0xE1, b"Exif\0\0" + block)


def _jpegs() -> dict[str, Picture]:
    plain = jpeg(scene())
    black = jpeg(np.zeros_like(scene()))
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><<<< \xff\0 tiff:Orientation not XML")
    files = {
        "jpeg_restart_markers": jpeg(scene(), restart_marker_blocks=2),
        "jpeg_adobe_rgb": jpeg(scene(), keep_rgb=True),
        "jpeg_garbage_after_end": plain + b"\xff\xd8\xff\xe0" + b"garbage" * 99,
        "jpeg_fill_bytes": behind_start(plain, b"\xff\xff\xff"),
        "jpeg_thumbnail_is_not_it": behind_start(plain, exif_segment([], black)),
        "jpeg_exif_orientation_0": behind_start(plain, exif_segment([(0x112, 3, 1, b"\0\0\0\0")])),
        "jpeg_exif_orientation_as_text": behind_start(plain, exif_segment([(0x112, 2, 4, b"six\0")])),
        "jpeg_exif_points_nowhere": behind_start(plain, exif_segment([(0x8769, 4, 1, b"\xff\xff\xff\x7f")])),
        "jpeg_exif_in_a_loop": behind_start(plain, exif_segment([(0x8769, 4, 1, b"\x08\0\0\0")])),
        "jpeg_exif_empty": behind_start(plain, segment(0xE1, b"Exif\0\0")),
        "jpeg_xmp_junk": behind_start(plain, xmp),
        "jpeg_icc_junk": behind_start(plain, segment(0xE2, b"ICC_PROFILE\0\1\1junk")),
        "jpeg_photoshop_junk": behind_start(plain, segment(0xED, b"Photoshop 3.0\0008BIM\x03\xed\0\0\xff\xff")),
        "jpeg_mpf_junk": behind_start(plain, segment(0xE2, b"MPF\0II*\0\xff\xff\xff\xff")),
        "jpeg_comment_in_any_bytes": behind_start(plain, segment(0xFE, bytes(range(256)))),
    }
    arithmetic = Picture(base64.b64decode(_ARITHMETIC), as_rgb(grey_scene()), 4)
    return {"jpeg_arithmetic": arithmetic} | {name: Picture(data, scene(), 4) for name, data in files.items()}


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG of 100 megapixels, whose last scan comes again and again."""
    data = bytearray(jpeg(scene(), progressive=True))
    struct.pack_into(">HH", data, data.index(b"\xff\xc2\0\x11\x08") + 5, 10_000, 10_000)
    last = data[data.rindex(b"\xff\xda") : -2]
    return bytes(data[:-2] + last * scans + data[-2:])


def _scans_of_one_colour(scans: int) -> bytes:
    """A plain JPEG of 100 megapixels, each scan of which has one colour."""
    data = with_frame(jpeg(scene()), width=10_000, height=10_000)
    start = data.index(b"\xff\xda")
    return data[:start] + b"\xff\xda\0\x08\1\1\0\0\x3f\0" * scans + b"\xff\xd9"


def _bad_jpegs() -> dict[str, tuple[bytes, str]]:
    plain = jpeg(scene())
    lines = segment(0xDC, struct.pack(">H", HEIGHT))  # DNL: the height, told behind the picture
    no_height = with_frame(plain, height=0)
    return {
        "jpeg_no_height": (no_height, "^damaged JPEG"),
        "jpeg_height_behind_the_picture": (no_height[:-2] + lines + b"\xff\xd9", "^damaged JPEG"),
        "jpeg_12_bit": (with_frame(plain, bits=12), "^a JPEG of 12 bits a colour, which Pillow doesn't read$"),
        "jpeg_lossless": (with_frame(plain, marker=0xC3), "^damaged JPEG"),
        "jpeg_only_a_thumbnail": (b"\xff\xd8" + exif_segment([], plain) + b"\xff\xd9", "^damaged JPEG"),
        "jpeg_two_starts": (plain[:2] + plain, "^damaged JPEG"),
        "jpeg_bomb": (with_frame(plain, width=65_500, height=65_500), "^4,290,250,000 pixels, more than the limit"),
        "jpeg_bomb_of_scans": (scan_bomb(50), "^more than 21 scans of 10,000 × 10,000 pixels, which no picture needs$"),
        "jpeg_bomb_of_plain_scans": (_scans_of_one_colour(40), "^more than 21 scans of 10,000 × 10,000 pixels"),
        "jpeg_segment_longer_than_file": (plain[:2] + b"\xff\xe1\xff\xff" + plain[2:300], "^(truncated|damaged) JPEG"),
        "jpeg_no_tables": (plain[:2] + plain[frame_of(plain) :], "^damaged JPEG"),
    }


# ------------------------------------------------------------------------------------------- TIFF

_BODY = 8  # where the pixels begin


def tiff_file(tags: dict[int, int | tuple[int, ...]], body: bytes, *, cyclic: bool = False) -> bytes:
    """A little-endian TIFF with the pixels in front of its directory."""
    start = _BODY + len(body)
    entries, behind = b"", b""
    room = start + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, tuple) else (value,)
        field = struct.pack(f"<{len(values)}I", *values)
        if len(values) > 1:
            field, behind = struct.pack("<I", room + len(behind)), behind + field
        entries += struct.pack("<HHI", tag, 4, len(values)) + field
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", start if cyclic else 0)
    return b"II*\0" + struct.pack("<I", start) + body + directory + behind


def _rgb_tags(**more: int | tuple[int, ...]) -> dict[int, int | tuple[int, ...]]:
    names = {
        "bits": 258,
        "compression": 259,
        "strips": 273,
        "strip_sizes": 279,
        "planes": 284,
        "tile_width": 322,
        "tile_height": 323,
        "tiles": 324,
        "tile_sizes": 325,
    }
    common: dict[int, int | tuple[int, ...]] = {256: WIDTH, 257: HEIGHT, 258: (8, 8, 8), 259: 1, 262: 2, 277: 3}
    return common | {names[name]: value for name, value in more.items()}


def _tiled(compress: bool, width: int = 32, height: int = 16) -> bytes:
    """The scene in tiles, of which those at the right stick out."""
    across, down = -(-WIDTH // width), -(-HEIGHT // height)
    canvas = np.zeros((down * height, across * width, 3), np.uint8)
    canvas[:HEIGHT, :WIDTH] = scene()
    tiles = [
        canvas[top : top + height, left : left + width].tobytes()
        for top in range(0, down * height, height)
        for left in range(0, across * width, width)
    ]
    tiles = [zlib.compress(tile) if compress else tile for tile in tiles]
    sizes = [len(tile) for tile in tiles]
    places = [_BODY + sum(sizes[:i]) for i in range(len(sizes))]
    tags = _rgb_tags(
        compression=8 if compress else 1,
        tile_width=width,
        tile_height=height,
        tiles=tuple(places) if len(places) > 1 else places[0],
        tile_sizes=tuple(sizes) if len(sizes) > 1 else sizes[0],
    )
    return tiff_file(tags, b"".join(tiles))


def _tiffs() -> dict[str, Picture]:
    rgb = Image.fromarray(scene())
    pixels = scene().tobytes()
    whole = _rgb_tags(strips=_BODY, strip_sizes=len(pixels))
    planes = b"".join(scene()[..., band].tobytes() for band in range(3))
    plane = len(planes) // 3
    separate = _rgb_tags(strips=tuple(_BODY + i * plane for i in range(3)), strip_sizes=(plane,) * 3, planes=2)
    deep = (scene().astype("<u2") * 257).tobytes()
    one_bit = Image.fromarray(grey_scene()).point(lambda value: 255 * (value > 128)).convert("1")
    files = {
        "tiff_tiled": _tiled(compress=False),
        "tiff_tiled_deflate": _tiled(compress=True),
        "tiff_tile_larger_than_picture": _tiled(compress=True, width=512, height=512),
        "tiff_planes": tiff_file(separate, planes),
        "tiff_16_bit_rgb": tiff_file(_rgb_tags(strips=_BODY, strip_sizes=len(deep), bits=(16, 16, 16)), deep),
        "tiff_pages_in_a_loop": tiff_file(whole, pixels, cyclic=True),
        "tiff_big": encoded(rgb, "TIFF", big_tiff=True),
        "tiff_deflate": encoded(rgb, "TIFF", compression="tiff_adobe_deflate"),
        "tiff_packbits": encoded(rgb, "TIFF", compression="packbits"),
        "tiff_zstd": encoded(rgb, "TIFF", compression="zstd"),
        "tiff_many_strips": encoded(rgb, "TIFF", compression="tiff_lzw", strip_size=WIDTH * 3),
        "tiff_trailing_garbage": encoded(rgb, "TIFF") + b"garbage" * 99,
        "tiff_16_bit_planes": tiff_file(
            separate | {258: (16,) * 3, 273: tuple(_BODY + 2 * i * plane for i in range(3)), 279: (2 * plane,) * 3},
            b"".join((scene()[..., band].astype("<u2") * 257).tobytes() for band in range(3)),
        ),
    }
    lossless = {name: Picture(data, scene()) for name, data in files.items()}
    floats = {256: WIDTH, 257: HEIGHT, 258: 32, 259: 1, 262: 1, 273: _BODY, 277: 1, 279: 4 * HEIGHT * WIDTH, 339: 3}
    # the first value is a NaN of the kind that even a conversion complains of
    values = b"\1\0\x80\x7f" + (grey_scene() / np.float32(255)).astype("<f4").tobytes()[4:]
    darkened = grey_scene().copy()
    darkened[0, 0] = 0
    return lossless | {
        # its white is 4294967295, which Pillow gives as -1
        "tiff_unsigned_32": Picture(_grey_tiff("<u4", 1, 0x01010101), as_rgb(grey_scene())),
        "tiff_16_bit_plane": Picture(_grey_tiff("<u2", 1, 257, {284: 2}), as_rgb(grey_scene())),
        "tiff_float_0_is_white": Picture(_grey_tiff("<f4", 3, more={262: 0}), as_rgb(255 - grey_scene())),
        "tiff_signalling_nan": Picture(tiff_file(floats, values), as_rgb(darkened)),
        "tiff_jpeg": Picture(encoded(rgb, "TIFF", compression="jpeg", quality=98), scene(), 6),
        "tiff_fax": Picture(
            encoded(one_bit, "TIFF", compression="group4"), as_rgb(((grey_scene() > 128) * 255).astype(np.uint8))
        ),
        "tiff_palette": Picture(encoded(pictures.palette(), "TIFF"), columns(*COLOURS)),
    }


def tile_bomb() -> bytes:
    """A picture of 48 × 32 pixels in one tile of 400 million."""
    tags = _rgb_tags(compression=8, tile_width=20_000, tile_height=20_000, tiles=_BODY, tile_sizes=16)
    return tiff_file(tags, zlib.compress(bytes(16)).ljust(16, b"\0"))


def _bad_tiffs() -> dict[str, tuple[bytes, str]]:
    pixels = scene().tobytes()
    whole = _rgb_tags(strips=_BODY, strip_sizes=len(pixels))
    short = zlib.compress(pixels)[:99]
    cut = _rgb_tags(strips=_BODY, strip_sizes=len(short), compression=8)
    return {
        "tiff_no_directory": (b"II*\0" + struct.pack("<I", 99_999), "^(truncated|damaged) TIFF"),
        "tiff_no_tags": (tiff_file({}, b""), "^damaged TIFF"),
        "tiff_tile_bomb": (tile_bomb(), "^tiles of 20,000 × 20,000 pixels, more than the limit of 178,956,970$"),
        "tiff_bomb": (tiff_file(whole | {256: 30_000, 257: 30_000}, pixels), "^900,000,000 pixels, more than the"),
        "tiff_unknown_compression": (tiff_file(whole | {259: 9999}, pixels), "^damaged TIFF"),
        "tiff_deflate_cut": (tiff_file(cut, short), "^damaged TIFF"),
        "tiff_transparency_plane": (
            tiff_file(whole | {258: (8, 8), 262: 1, 277: 2, 284: 2, 273: (_BODY, _BODY), 338: 2}, pixels),
            "^a TIFF whose transparency is a plane of its own, which Pillow doesn't read$",
        ),
    } | {
        name: (data, f"^a TIFF of {re.escape(layout)}, which Pillow doesn't read$")
        for name, (data, layout) in {
            "tiff_float_16": (_grey_tiff("<f2", 3), "1 channel of 16-bit floats (grey)"),
            "tiff_float_64": (_grey_tiff("<f8", 3), "1 channel of 64-bit floats (grey)"),
            "tiff_32_bit_0_is_white": (
                _grey_tiff("<u4", 1, more={262: 0}),
                "1 channel of 32-bit integers (grey, 0 is white)",
            ),
            "tiff_5_channels": (
                tiff_file(whole | {258: (8,) * 5, 277: 5}, pixels),
                "5 channels of 8-bit integers (RGB)",
            ),
            "tiff_9_channels": (
                tiff_file(whole | {258: (8,) * 9, 262: 1, 277: 9}, pixels),
                "9 channels of 8-bit integers (grey)",
            ),
            "tiff_32_bit_rgb": (tiff_file(whole | {258: (32,) * 3}, pixels), "3 channels of 32-bit integers (RGB)"),
            "tiff_colours_of_an_unknown_type": (
                tiff_file(whole | {262: 99}, pixels),
                "3 channels of 8-bit integers (colours of type 99)",
            ),
        }.items()
    }


def _grey_tiff(
    kind: str, sample: int, scale: float = 1 / 255, more: Mapping[int, int | tuple[int, ...]] | None = None
) -> bytes:
    """A grey TIFF of other numbers than bytes; Pillow#1108, #3011."""
    data = (grey_scene().astype(np.float64) * scale).astype(kind).tobytes()
    tags = {256: WIDTH, 257: HEIGHT, 258: 8 * np.dtype(kind).itemsize, 259: 1, 262: 1, 273: _BODY, 277: 1}
    return tiff_file(tags | {278: HEIGHT, 279: len(data), 339: sample} | dict(more or {}), data)


# ------------------------------------------------------------------------------------------- GIF, BMP, ICO


def gif_file(size: tuple[int, int], blocks: bytes) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + blocks


def gif_frame(size: tuple[int, int]) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x02\x02\x4c\x01\0"


def bmp_file(bits: int, compression: int, body: bytes, palette: bytes = b"", height: int = HEIGHT) -> bytes:
    start = 14 + 40 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, WIDTH, height, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + header + palette + body


def _bitmaps() -> dict[str, Picture]:
    bgr = scene()[..., ::-1]
    palette = b"".join(bytes((blue, green, red, 0)) for red, green, blue in COLOURS)
    row = b"".join(bytes((12, colour)) for colour in range(4)) + b"\0\0"
    nibbles = b"".join(bytes((12, colour * 0x11)) for colour in range(4)) + b"\0\0"
    thin = scene() >> 3
    short = thin[..., 0].astype("<u2") << 10 | thin[..., 1].astype("<u2") << 5 | thin[..., 2]
    widened = np.round(thin * (255 / 31)).astype(np.uint8)
    os2 = b"BM" + struct.pack("<IHHI", 26 + bgr.size, 0, 0, 26) + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24)
    return {
        "bmp_top_down": Picture(bmp_file(24, 0, bgr.tobytes(), height=-HEIGHT), scene()),
        "bmp_rle8": Picture(bmp_file(8, 1, row * HEIGHT + b"\0\1", palette), columns(*COLOURS)),
        "bmp_rle4": Picture(bmp_file(4, 2, nibbles * HEIGHT + b"\0\1", palette), columns(*COLOURS)),
        "bmp_16_bit": Picture(bmp_file(16, 0, short[::-1].tobytes()), widened, 4),
        "bmp_os2": Picture(os2 + bgr[::-1].tobytes(), scene()),
    }


def icon(*images: bytes, kind: int = 1, side: int = 0) -> bytes:
    """An icon that says of each picture it holds that it is of this size; 0 stands for 256."""
    start = 6 + 16 * len(images)
    entries, body = b"", b""
    for data in images:
        entries += struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(data), start + len(body))
        body += data
    return struct.pack("<HHH", 0, kind, len(images)) + entries + body


def _square() -> Image.Image:
    return Image.fromarray(scene()).resize((48, 48))


def _icons() -> dict[str, Picture]:
    square, large = _square(), Image.fromarray(scene()).resize((128, 128))
    black = Image.new("RGB", (16, 16))
    inner = encoded(large, "PNG")
    icns = b"ic07" + struct.pack(">I", 8 + len(inner)) + inner
    middle = Image.fromarray(scene()).resize((64, 64))
    bitmaps = encoded(middle, "ICO", sizes=[(64, 64)], bitmap_format="bmp")
    cursor = bytearray(bitmaps)
    cursor[2] = 2
    several = encoded(square, "ICO", sizes=[(16, 16), (48, 48)], append_images=[black])
    lying = icon(encoded(Image.fromarray(scene()), "PNG"), side=16)
    return {
        "ico_bitmap": Picture(bitmaps, np.array(middle)),
        "ico_several": Picture(several, np.array(square)),
        "ico_larger_than_it_says": Picture(lying, scene()),
        "cur": Picture(bytes(cursor), np.array(middle)),
        "icns": Picture(b"icns" + struct.pack(">I", 8 + len(icns)) + icns, np.array(large)),
    }


def bomb_png(side: int = 30_000) -> bytes:
    return pictures.raw_png(np.zeros((1, 1, 3)), 2, 8, size=(side, side))


def _bad_bitmaps() -> dict[str, tuple[bytes, str]]:
    return {
        "gif_no_frames": (gif_file((8, 8), b";"), "^(truncated|damaged) GIF"),
        "gif_frame_of_no_size": (gif_file((0, 0), gif_frame((0, 0)) + b";"), "^damaged GIF"),
        "gif_bomb": (gif_file((65_535, 65_535), gif_frame((65_535, 65_535)) + b";"), "pixels, more than the limit"),
        "gif_bomb_frame_beyond_screen": (gif_file((8, 8), gif_frame((65_535, 65_535))), "pixels, more than the limit"),
        "bmp_bomb": (bmp_file(24, 0, bytes(99), height=60_000_000), "^2,880,000,000 pixels, more than the limit"),
        "bmp_rle_cut": (bmp_file(8, 1, b"\x0c\0\x0c\1", bytes(1024)), "^(truncated|damaged) BMP"),
        "ico_bomb": (icon(bomb_png()), "^30,000 × 30,000 pixels, more than the limit of 178,956,970$"),
        "ico_of_nothing": (icon(), "^damaged ICO"),
        "ico_points_nowhere": (struct.pack("<HHHBBBBHHII", 0, 1, 1, 0, 0, 0, 0, 1, 32, 99, 2**31), "ICO"),
        "icns_bomb": (
            b"icns" + struct.pack(">I", 16 + len(bomb_png())) + b"ic07" + struct.pack(">I", 8 + len(bomb_png()))
            + bomb_png(),
            "^900,000,000 pixels, more than the limit",
        ),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- other formats


def _rare() -> dict[str, Picture]:
    rgb, pixels = Image.fromarray(scene()), scene()
    planes = b"".join(pixels[..., band].tobytes() for band in range(3))
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3) + bytes(12) + b"\0\0" + planes
    qoi = b"qoif" + struct.pack(">IIBB", WIDTH, HEIGHT, 3, 0)
    qoi += b"".join(b"\xfe" + bytes(pixel) for pixel in pixels.reshape(-1, 3).tolist()) + bytes(7) + b"\1"
    sun = struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, pixels.size, 1, 0, 0) + pixels[..., ::-1].tobytes()
    cards = ["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {WIDTH}", f"NAXIS2  = {HEIGHT}", "END"]
    fits = "".join(card.ljust(80) for card in cards).ljust(2880).encode() + grey_scene()[::-1].tobytes()
    letters = "".join("abcd"[column] for column in COLUMNS[0])
    lines = [f"{WIDTH} {HEIGHT} 4 1", *(f"{'abcd'[i]} c #{r:02X}{g:02X}{b:02X}" for i, (r, g, b) in enumerate(COLOURS))]
    xpm = (
        "/* XPM */\nstatic char *x[] = {\n" + ",\n".join(f'"{line}"' for line in lines + [letters] * HEIGHT) + "\n};\n"
    )
    one_bit = Image.fromarray((COLUMNS % 2 * 255).astype(np.uint8)).convert("1")
    files = {
        "psd": psd,
        "qoi": qoi,
        "sun": sun,
        "ppm_in_text": f"P3 {WIDTH} {HEIGHT} 255\n{' '.join(map(str, pixels.ravel().tolist()))}\n".encode(),
        "tga_rle": encoded(rgb, "TGA", compression="tga_rle"),
        "j2k": encoded(rgb, "JPEG2000", no_jp2=True),
        **{name: encoded(rgb, name.upper()) for name in ("pcx", "sgi", "dds", "dib")},
    }
    lossless = {name: Picture(data, scene()) for name, data in files.items()}
    rgba = Image.fromarray(np.dstack([scene(), alpha()]))
    return lossless | {
        "fits": Picture(fits, as_rgb(grey_scene())),
        "xpm": Picture(xpm.encode(), columns(*COLOURS)),
        "xbm": Picture(encoded(one_bit, "XBM"), greys(0, 255, 0, 255)),
        "rgba_jpeg2000": Picture(encoded(rgba, "JPEG2000"), on_white(scene(), alpha()), 1),
        "rgba_tga": Picture(encoded(rgba, "TGA"), on_white(scene(), alpha()), 1),
        "webp_lossy": Picture(encoded(rgb, "WEBP", quality=100), scene(), 12),
        "rgba_webp_lossy": Picture(encoded(rgba, "WEBP", quality=100, exact=True), on_white(scene(), alpha()), 12),
        "one_pixel": Picture(pictures.png(np.full((1, 1, 3), 77, np.uint8)), np.full((1, 1, 3), 77, np.uint8)),
        "very_long": Picture(pictures.png(np.full((1, 5000, 3), 77, np.uint8)), np.full((1, 5000, 3), 77, np.uint8)),
        "very_tall": Picture(jpeg(np.full((5000, 1, 3), 77, np.uint8)), np.full((5000, 1, 3), 77, np.uint8), 2),
    }


AVIF_OPTIONS = {"quality": 100, "subsampling": "4:4:4"}


def avifs() -> dict[str, Picture]:
    """AVIF files; their own turns and flips stand for EXIF's orientation."""
    rgb, grey = Image.fromarray(scene()), Image.fromarray(grey_scene())
    rgba = Image.fromarray(np.dstack([scene(), alpha()]))
    black = Image.new("RGB", rgb.size)
    turned = {
        f"avif_orientation_{orientation}": Picture(pictures.with_orientation(orientation, "AVIF"), scene(), 8)
        for orientation in range(1, 9)
    }
    animated = encoded(rgb, "AVIF", save_all=True, append_images=[black], **AVIF_OPTIONS)
    return turned | {
        "avif_grey": Picture(encoded(grey, "AVIF", quality=100), as_rgb(grey_scene()), 8),
        "avif_alpha": Picture(encoded(rgba, "AVIF", **AVIF_OPTIONS), on_white(scene(), alpha()), 8),
        "avif_animated": Picture(animated, scene(), 8),
        # what EXIF says doesn't count where the file itself turns nothing
        "avif_exif_orientation_is_a_note": Picture(_with_lying_exif(), scene(), 8),
    }


def _with_lying_exif() -> bytes:
    """An AVIF whose EXIF says 6, while the container turns nothing: EXIF's 1 overwritten in the file."""
    exif = Image.Exif()
    exif[0x010E] = "note"
    exif[pictures.ORIENTATION + 1] = 1  # taken for the next tag by Pillow's writer, which keeps it in EXIF
    data = bytearray(encoded(Image.fromarray(scene()), "AVIF", exif=exif, **AVIF_OPTIONS))
    entry = data.index(struct.pack(">HHIH", pictures.ORIENTATION + 1, 3, 1, 1))
    struct.pack_into(">HHIH", data, entry, pictures.ORIENTATION, 3, 1, 6)
    return bytes(data)


def heic(image: Image.Image, more: Iterable[Image.Image] = (), **options: Any) -> bytes:
    """A HEIC file, as good as lossless."""
    import pillow_heif

    file = pillow_heif.from_pillow(image)
    for other in more:
        file.add_from_pillow(other)
    buffer = io.BytesIO()
    file.save(buffer, **({"quality": -1, "chroma": 444} | options))
    return buffer.getvalue()


@cache
def heics() -> dict[str, Picture]:
    """HEIC files, to be called only with pillow-heif there."""
    rgb, grey = Image.fromarray(scene()), Image.fromarray(grey_scene())
    rgba = Image.fromarray(np.dstack([scene(), alpha()]))
    black = Image.new("RGB", rgb.size)
    plain = heic(rgb)
    lying = bytearray(heic_turned(1))
    entry = struct.pack(">HHIH", pictures.ORIENTATION, 3, 1, 1)
    lying[lying.index(entry) + len(entry) - 1] = 6
    shared = plain.replace(b"ftypheic", b"ftypmif1", 1)
    return {
        **{f"heic_orientation_{turn}": Picture(heic_turned(turn), scene(), 6) for turn in range(1, 9)},
        "heic_grey": Picture(heic(grey), as_rgb(grey_scene()), 6),
        "heic_alpha": Picture(heic(rgba), on_white(scene(), alpha()), 6),
        "heic_named_mif1": Picture(shared, scene(), 6),
        "heic_exif_orientation_is_a_note": Picture(bytes(lying), scene(), 6),
        "heic_second_is_primary": Picture(heic(black, [rgb], primary_index=1), scene(), 6),
        "heic_first_is_primary": Picture(heic(rgb, [black]), scene(), 6),
    }


def heic_turned(orientation: int) -> bytes:
    """The scene stored so that the file's own turns and flips make it upright; its EXIF says the same."""
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    image = Image.fromarray(scene())
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = orientation
    stored = image if undo is None else image.transpose(Image.Transpose(undo))
    return heic(stored, exif=exif.tobytes())


def _other_bad_files() -> dict[str, tuple[bytes, str]]:
    rgb = Image.fromarray(scene())
    unknown = "^not an image in a format Pillow reads$"
    jp2 = bytearray(encoded(rgb, "JPEG2000"))
    struct.pack_into(">II", jp2, jp2.index(b"ihdr") + 4, 30_000, 30_000)
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 30_000, 30_000, 8, 3) + bytes(14)
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9"/></svg>'
    video = struct.pack(">I4s4sI", 24, b"ftyp", b"isom", 512) + b"isommp42" + bytes(99)
    whole = {
        "AVIF": encoded(rgb, "AVIF"),
        "JPEG2000": encoded(rgb, "JPEG2000"),
        "ICO": encoded(_square(), "ICO", sizes=[(48, 48)]),
        "TGA": encoded(rgb, "TGA"),
        "PPM": encoded(rgb, "PPM"),
        "PSD": _rare()["psd"].data,
        "QOI": _rare()["qoi"].data,
        "SGI": encoded(rgb, "SGI"),
        "PCX": encoded(rgb, "PCX"),
    }
    cut = {
        f"{kind.lower()}_cut": (data[: len(data) * 6 // 10], f"^(truncated|damaged) {kind}")
        for kind, data in whole.items()
    }
    return cut | {
        "svg": (svg, unknown),
        "pdf": (b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n%%EOF", unknown),
        "eps_in_windows_binary": (b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, 9) + bytes(18) + b"%!PS-Adob", unknown),
        "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\3" + bytes(50), unknown),
        "zip": (b"PK\3\4" + bytes(50), unknown),
        "program": (b"\x7fELF\2\1\1" + bytes(57), unknown),
        "video": (video, unknown),
        "jpeg2000_bomb": (bytes(jp2), "^900,000,000 pixels, more than the limit"),
        "psd_bomb": (psd, "^900,000,000 pixels, more than the limit"),
        "riff_only": (b"RIFF\0\0\0\0WEBP", "^(truncated|damaged) WEBP"),
        "webp_lying_length": (b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f" + bytes(30), "^(truncated|damaged) WEBP"),
    }


# ------------------------------------------------------------------------------------------- all of them


@cache
def good_pictures() -> dict[str, Picture]:
    """By name: more pictures that can be read; see `pictures.good_pictures` for the usual ones."""
    found = _pngs() | _pngs_with_texts() | _transparent_colours() | _jpegs() | _tiffs() | _bitmaps() | _icons()
    return found | _rare() | avifs()


@cache
def bad_files() -> dict[str, tuple[bytes, str]]:
    """By name: more files that can't be read, and a pattern for what the error says."""
    return _bad_pngs() | _bad_jpegs() | _bad_tiffs() | _bad_bitmaps() | _other_bad_files()


@dataclass(frozen=True)
class Case:
    """A name in the corpus, and what must come of it: the pixels that it shows, or what its error says."""

    name: str
    picture: Picture | None = None
    error: str = ""


def write_corpus(folder: Path) -> list[Case]:
    """Make every kind of file, link and special file in a folder; of one kind each, sorted by name."""
    good = pictures.good_pictures() | good_pictures()
    bad = pictures.bad_files() | bad_files()
    cases = [Case(f"{name}.jpg", picture) for name, picture in good.items()]
    cases += [Case(f"{name}.jpg", None, error) for name, (_, error) in bad.items()]
    for case in cases:
        stem = case.name.removesuffix(".jpg")
        data = case.picture.data if case.picture else bad[stem][0]
        (folder / case.name).write_bytes(data)
    if find_spec("pillow_heif"):
        cases += [Case(f"{name}.HEIC", picture) for name, picture in heics().items()]
        for name, picture in heics().items():
            (folder / f"{name}.HEIC").write_bytes(picture.data)
    return sorted([*cases, *_odd_names(folder), *_special(folder)], key=lambda case: case.name)


ODD_NAMES = [
    "with space.png", " leading space.png", "new\nline.png", "tab\tand \\ backslash.png", "qu'o\"te.png", "-dash.png",
    "--labels.png", "😀.png", "e\u0301 combined.png", os.fsdecode(b"\xff\xfe latin \xe9.png"), "%s {} $HOME `id`.png",
    "star*[1]?.png", "UPPER.PNG", "a.b.c.png", "\x1b[31mred.png", "\u202egnp.png",
]  # fmt: skip


def _odd_names(folder: Path) -> list[Case]:
    picture = Picture(pictures.png(scene()), scene())
    for name in ODD_NAMES:
        (folder / name).write_bytes(picture.data)
    return [Case(name, picture) for name in ODD_NAMES]


def _special(folder: Path) -> list[Case]:
    """Links and what is no regular file."""
    (folder / "link.jpg").symlink_to("png.jpg")
    (folder / "link_to_link.jpg").symlink_to("link.jpg")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "loop_of_two.jpg").symlink_to("loop_of_two_back.jpg")
    (folder / "loop_of_two_back.jpg").symlink_to("loop_of_two.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.jpg")
    linked = Picture(b"", scene())
    loop = "too many levels of symbolic links"
    return [
        Case("link.jpg", linked),
        Case("link_to_link.jpg", linked),
        Case("dangling.jpg", None, "no such file or directory"),
        Case("loop.jpg", None, loop),
        Case("loop_of_two.jpg", None, loop),
        Case("loop_of_two_back.jpg", None, loop),
        Case("device.jpg", None, "^not a regular file: device$"),
        Case("fifo.jpg", None, "^not a regular file: FIFO$"),
    ]
