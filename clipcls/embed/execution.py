"""The settings of how a run is carried out."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from clipcls.embed.cache.store import DEFAULT_LIMIT, Cache
from clipcls.embed.cores import available_cores
from clipcls.errors import UsageError
from clipcls.images.limits import MAX_PIXELS
from clipcls.inputs.open_file import MAX_BYTES
from clipcls.inputs.web import Web
from clipcls.records import Decode

_MAX_WORKERS = 32


@dataclass(frozen=True, slots=True)
class Execution:
    """How a run is carried out; only `decode` and the limits change what is predicted.

    Attributes:
        batch_size: images a forward pass; None for 16 on a CPU, 256 on a GPU. It is halved when memory runs out.
        workers: the number of threads that decode; None for one a core, at most 32.
        max_pixels: an image with more is an error; one whose features are cached isn't decoded, and so isn't checked.
        max_bytes: a file with more is an error, and isn't read.
        web: fetches pictures from addresses; None to refuse them.
        cache_dir: None for no cache.
        cache_size: the greatest size of the cache's file, in bytes.
        strict_prompts: a prompt over the context length is an error, not a warning.
    """

    decode: Decode = "fast"
    batch_size: int | None = None
    workers: int | None = None
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    web: Web | None = None
    cache_dir: Path | None = None
    cache_size: int = DEFAULT_LIMIT
    strict_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "workers", "max_pixels", "max_bytes", "cache_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1.")
        if self.decode not in get_args(Decode):
            raise UsageError(f"Unknown decode mode {self.decode!r}. Use one of: {', '.join(get_args(Decode))}.")

    def batch_size_on(self, device: str) -> int:
        """Return the number of images a forward pass on a device such as `cpu` or `cuda:1`."""
        return self.batch_size or (16 if device == "cpu" else 256)

    def threads(self) -> int:
        """Return the number of threads that decode."""
        return self.workers or min(available_cores(), _MAX_WORKERS)

    def open_cache(self) -> Cache:
        """Open the cache, which the caller closes."""
        return Cache(self.cache_dir, self.cache_size)
