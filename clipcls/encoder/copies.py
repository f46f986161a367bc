"""Safetensors copies of weights that are slow to open, kept in the cache.

Opening the weights of ViT-B/32 (605 MB, in the page cache, 2 cores) took:

    safetensors                                         0.001 s
    PyTorch's zip format, memory-mapped                 0.02 s
    a training checkpoint with its optimizer's state    0.23 s, 1200 tensors to unpickle instead of 300
    the format before PyTorch 1.6                       0.31 s, all of it read, whichever tower is needed

So the first two are used as they are, and the others are copied. A copy is named for the SHA-256 of its source; its
modification time says when it was last used. Safetensors checks that header and size agree, and a copy says whose it
is. Its content isn't checked any more than that of a model's own weights: a checksum of 605 MB took 0.4 s, more than
the copy saves.
"""

import contextlib
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipcls.errors import first_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Copies:
    """The folder of copies; where it can't be used, runs go on without it.

    Attributes:
        folder: created when the first copy is made.
        sha256: of a file's content; one that remembers (`Cache.file_sha256`) spares half a second a start.
    """

    folder: Path
    sha256: Callable[[Path], bytes]

    def open(self, source: Path) -> Any:
        """The copy of a weights file, opened as `safe_open` does; None where there is no sound one."""
        digest = self.sha256(source).hex()
        path = self._path(digest)
        try:
            copy: Any = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as exc:
            if path.exists():
                logger.info("%s is damaged and will be replaced: %s", path, first_line(exc))
            return None
        if (copy.metadata() or {}).get("source") != digest:
            logger.info("%s isn't a copy of %s and will be replaced", path, source)
            return None
        # a folder that can't be written can be read
        with contextlib.suppress(OSError):
            os.utime(path)
        return copy

    def save(self, source: Path, state: dict[str, Tensor]) -> None:
        """Keep a copy, whole or not at all; a failure is a warning."""
        digest = self.sha256(source).hex()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(self._path(digest), _separate(state), {"source": digest})
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as exc:
            logger.warning("no safetensors copy of %s in %s: %s", source, self.folder, first_line(exc))

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def _write(self, path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
        # several processes may be at it, each with a draft of its own; all write the same
        draft = self.folder / f".{secrets.token_hex(32)}.safetensors.part"
        try:
            save_file(state, draft, metadata=metadata)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values, each tensor in memory of its own and in order, as the format wants them."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in state.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes
        seen.add(storage.data_ptr())
        separate[key] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
    return separate
