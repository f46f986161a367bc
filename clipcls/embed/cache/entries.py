"""The cache's entries: their keys, and how their values are packed."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clipcls.records import FileStamp

# bytes of two hashes that suffice to find a row, in an index half as large
_CONTENT_BYTES = 16
_SPACE_BYTES = 8
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class CachedText:
    """The averaged embedding of one label's prompts.

    Attributes:
        features: (embed_dim,) float32, L2-normalised.
        truncated: the prompts of which the model saw only the beginning.
    """

    features: NDArray[np.float32]
    truncated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CachedImage:
    """The embedding of one image file.

    Attributes:
        path: as given; its absolute form is the key. Surrogates stand for bytes that aren't UTF-8.
        stamp: of the file before it was read; None to remember only the content, not the path.
        content: SHA-256 of the file's bytes.
        features: (embed_dim,) float32, L2-normalised; None if they are cached already, to remember only the path.
        seen: when `stamp` was taken, in Unix seconds; None for now.
    """

    path: str
    stamp: FileStamp | None
    content: bytes
    features: NDArray[np.float32] | None
    seen: float | None = None


def text_key(model_fingerprint: bytes, precision: str, prompts: Sequence[str]) -> bytes:
    """Return the key of the averaged embedding of `prompts`, the SHA-256 of all that it depends on."""
    digest = hashlib.sha256(model_fingerprint + precision.encode())
    for prompt in prompts:
        data = prompt.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def path_key(path: str) -> bytes:
    """Return the key of a path, the bytes of its absolute form; empty for a path that no file can have."""
    folder, slash, name = path.rpartition("/")
    try:
        # links aren't resolved: that takes longer than the query, and the inode tells files apart
        if os.sep != "/" or name in ("", ".", ".."):
            return os.fsencode(os.path.abspath(path))  # noqa: PTH100
        return _absolute_folder(folder + slash, "" if slash and path[0] == "/" else os.getcwd()) + os.fsencode(name)  # noqa: PTH109
    except (OSError, ValueError):  # such as a relative path in a working directory that is gone
        return b""


@lru_cache(maxsize=16)
def _absolute_folder(folder: str, here: str) -> bytes:
    """Return the absolute form of a folder, with a slash at its end; the pictures of a folder ask for it once.

    Args:
        here: the working directory, for a relative folder.
    """
    plain = os.path.normpath(os.path.join(here, folder))  # noqa: PTH118
    return os.fsencode(os.path.join(plain, ""))  # noqa: PTH118


def image_key(content: bytes, space: bytes) -> bytes:
    """Return the key of an image's features, from hashes of the file's content and of all else they depend on."""
    return content[:_CONTENT_BYTES] + space[:_SPACE_BYTES]


def pack_place(stamp: FileStamp, content: bytes) -> bytes:
    """Return the value kept for a path: the beginning of the content's hash, and the file's stamp."""
    return content[:_CONTENT_BYTES] + str(stamp).encode()


def unpack_place(value: bytes | None, stamp: FileStamp | None) -> bytes:
    """Return the beginning of the content's hash if the stamp is still the same, else empty bytes."""
    is_same = value is not None and stamp is not None and value[_CONTENT_BYTES:] == str(stamp).encode()
    return value[:_CONTENT_BYTES] if value is not None and is_same else b""


def pack_features(features: NDArray[np.float32]) -> bytes:
    """Return the bytes of one embedding."""
    return np.ascontiguousarray(features, dtype=np.float32).tobytes()


def unpack_features(value: bytes) -> NDArray[np.float32]:
    """Return one embedding, a read-only array."""
    return np.frombuffer(value, dtype=np.float32)


def pack_text(text: CachedText) -> bytes:
    """Return the bytes of a label's embedding and of its truncated prompts, one per line."""
    features = pack_features(text.features)
    prompts = "\n".join(" ".join(prompt.split()) for prompt in text.truncated).encode("utf-8", "surrogatepass")
    return len(features).to_bytes(_LENGTH_BYTES, "big") + features + prompts


def unpack_text(value: bytes) -> CachedText:
    """Return what `pack_text` packed."""
    end = _LENGTH_BYTES + int.from_bytes(value[:_LENGTH_BYTES], "big")
    prompts = value[end:].decode("utf-8", "surrogatepass")
    return CachedText(unpack_features(value[_LENGTH_BYTES:end]), tuple(prompts.split("\n")) if prompts else ())
