"""Writes keywords into pictures, with exiv2 (the extra `tag`); pixels aren't decoded, and stay as they are."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

from clipcls.errors import ImageError, UsageError, first_line
from clipcls.outputs.tag.keywords import Keyword

Write = Literal["sidecar", "xmp", "exif"]

#: What exiv2 can write, and is no raw picture, which cameras' programs want to find as the camera wrote it.
EXTENSIONS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "image/jpeg"),
    **dict.fromkeys((".tif", ".tiff"), "image/tiff"),
    ".png": "image/png",
    ".webp": "image/webp",
}
_IPTC_BYTES = 64  # in a keyword, by IPTC's standard
_UTF8 = "\x1b%G"
_CHARSET, _IPTC = "Iptc.Envelope.CharacterSet", "Iptc.Application2.Keywords"
_WINDOWS = "Exif.Image.XPKeywords"


def require_exiv2() -> ModuleType:
    """Import exiv2.

    Raises:
        UsageError: it isn't installed.
    """
    try:
        import exiv2
    except ImportError as exc:
        raise UsageError(f"--write xmp and exif need the package exiv2 ({exc}): pip install 'clipcls[tag]'") from exc
    found: ModuleType = exiv2
    return found


def with_keywords(content: bytes, keywords: Sequence[Keyword], write: Write, extension: str) -> bytes:
    """Return a picture's bytes with keywords added that it hasn't: the same bytes if there is none.

    Args:
        write: `xmp` for `dc:subject` and `lr:hierarchicalSubject`, in a JPEG also IPTC's keywords; `exif` for the
            keywords that Windows shows.
        extension: the file's, one of EXTENSIONS.

    Raises:
        ImageError: exiv2 can't read or write it.
    """
    exiv2 = require_exiv2()
    exiv2.LogMsg.setLevel(exiv2.LogMsg.Level.mute)
    try:
        picture = exiv2.ImageFactory.open(content)
        picture.readMetadata()
        if picture.mimeType() != EXTENSIONS[extension]:
            raise ImageError(f"it is {picture.mimeType()}, and its name says {EXTENSIONS[extension]}")
        if write == "exif":
            changed = _add_to_exif(exiv2, picture.exifData(), keywords)
        else:
            changed = _add_to_xmp(exiv2, picture.xmpData(), "Xmp.dc.subject", [each.name for each in keywords])
            paths = [each.path for each in keywords]
            changed = _add_to_xmp(exiv2, picture.xmpData(), "Xmp.lr.hierarchicalSubject", paths) or changed
            if picture.mimeType() == "image/jpeg":
                changed = _add_to_iptc(exiv2, picture.iptcData(), keywords) or changed
        if not changed:
            return content
        picture.writeMetadata()
        file = picture.io()
        file.open()
        try:
            return bytes(file.mmap())
        finally:
            file.munmap()
            file.close()
    except exiv2.Exiv2Error as exc:
        raise ImageError(f"its metadata can't be written: {first_line(exc)}") from exc


def _add_to_xmp(exiv2: ModuleType, data: Any, key: str, words: Sequence[str]) -> bool:
    there = [str(word) for word in data[key].value()] if key in data else []
    new = [word for word in dict.fromkeys(words) if word not in there]
    if new:
        data[key] = exiv2.XmpArrayValue([*there, *new], exiv2.TypeId.xmpBag)
    return bool(new)


def _add_to_iptc(exiv2: ModuleType, data: Any, keywords: Sequence[Keyword]) -> bool:
    there = {str(datum.value()) for datum in data if datum.key() == _IPTC}
    is_utf8 = data.empty() or (_CHARSET in data and str(data[_CHARSET].value()) == _UTF8)
    # in a list of another encoding they would be read wrongly, and XMP has them all
    fitting = [word.name for word in keywords if len(word.name.encode()) <= _IPTC_BYTES]
    new = [word for word in dict.fromkeys(fitting) if word not in there and (is_utf8 or word.isascii())]
    if new and data.empty():
        data[_CHARSET] = _UTF8
    for word in new:
        data.add(exiv2.IptcKey(_IPTC), exiv2.StringValue(word))
    return bool(new)


def _add_to_exif(exiv2: ModuleType, data: Any, keywords: Sequence[Keyword]) -> bool:
    there: list[str] = []
    if _WINDOWS in data:
        raw = bytes(map(int, str(data[_WINDOWS].value()).split()))
        there = [word for word in raw.decode("utf-16-le", "replace").rstrip("\0").split(";") if word]
    new = [word.name for word in keywords if word.name not in there]
    if new:
        raw = ";".join([*there, *dict.fromkeys(new)]).encode("utf-16-le", "replace") + b"\0\0"
        data[_WINDOWS] = exiv2.DataValue(raw, exiv2.ByteOrder.invalidByteOrder, exiv2.TypeId.unsignedByte)
    return bool(new)
