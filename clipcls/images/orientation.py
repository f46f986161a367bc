"""The EXIF orientation, read and applied."""

from PIL import Image

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 where there is none that can be read."""
    if image.format == "HEIF":
        return 1  # a HEIC file has its own, which libheif applies; what its EXIF says is no more than a note
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # noqa: BLE001
        # A damaged EXIF block raises as many kinds of errors as a damaged picture; the pixels are still good.
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as it was meant to be seen."""
    return image.transpose(_TRANSPOSITIONS[orientation]) if orientation in _TRANSPOSITIONS else image
