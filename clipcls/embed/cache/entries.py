"""What is cached, under which keys, and how a row shows that it is whole."""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcls.records import FileStamp


@dataclass(frozen=True, slots=True)
class CachedText:
    """The averaged embedding of one label's prompts.

    Attributes:
        features: (embed_dim,) float32, L2-normalised.
        truncated: those of its prompts that the model saw only the beginning of.
    """

    features: NDArray[np.float32]
    truncated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CachedImage:
    """The embedding of one image file.

    Attributes:
        path: as given; it is known by its absolute form. Surrogates stand for bytes that aren't UTF-8.
        stamp: of the file before it was read. None: the path isn't remembered, only the content.
        content: SHA-256 of the file's bytes.
        features: (embed_dim,) float32, L2-normalised. None: those of its content are kept already, only the path is
            remembered.
        seen: when `stamp` was taken, in Unix seconds; None: now.
    """

    path: str
    stamp: FileStamp | None
    content: bytes
    features: NDArray[np.float32] | None
    seen: float | None = None


def text_key(model_fingerprint: bytes, precision: str, prompts: Sequence[str]) -> bytes:
    """SHA-256 over all that the averaged embedding of `prompts` depends on."""
    digest = hashlib.sha256(model_fingerprint + precision.encode())
    for prompt in prompts:
        data = prompt.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.digest()


def path_key(path: str) -> bytes:
    """The bytes of a path's absolute form."""
    # links aren't resolved: that takes longer than the query, and the inode tells files apart
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100


def seal(*parts: bytes) -> int:
    """CRC-32 of a row's key and content."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def is_whole(crc: object, *parts: Any) -> bool:
    """Whether a row is as it was written; damage may change the types of its values too."""
    try:
        return crc == seal(*parts)
    except TypeError:
        return False


def pack_features(features: NDArray[np.float32]) -> bytes:
    """The bytes of one embedding."""
    return np.ascontiguousarray(features, dtype=np.float32).tobytes()


def unpack_features(data: bytes) -> NDArray[np.float32]:
    """The embedding of a row that is whole; it can't be written to."""
    return np.frombuffer(data, dtype=np.float32)


def pack_prompts(prompts: Sequence[str]) -> bytes:
    """Prompts one per line."""
    return "\n".join(" ".join(prompt.split()) for prompt in prompts).encode("utf-8", "surrogatepass")


def unpack_prompts(data: bytes) -> tuple[str, ...]:
    """What `pack_prompts` packed."""
    return tuple(data.decode("utf-8", "surrogatepass").split("\n")) if data else ()
