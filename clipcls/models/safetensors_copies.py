"""Safetensors copies of weights that are slow to open, kept in the cache.

Opening the weights of ViT-B/32 (605 MB, in the page cache, 2 cores) took:

    safetensors                                         0.001 s
    PyTorch's zip format, memory-mapped                 0.02 s
    a training checkpoint with its optimizer's state    0.23 s, 1200 tensors to unpickle instead of 300
    the format before PyTorch 1.6                       0.31 s, all of it read, whichever tower is needed

So the first two are used as they are, and the others are copied. A copy is named for the SHA-256 of its source; its
modification time says when it was last used. Safetensors checks that header and size agree, and a copy says whose it
is. Its content isn't checked any more than that of a model's own weights: a checksum of 605 MB took 0.4 s, more than
the copy saves. Copies are as large as their sources, so few are kept: a training writes a checkpoint each epoch.
"""

import contextlib
import logging
import os
import re
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
from clipcls.records import FileStamp

logger = logging.getLogger(__name__)

# those most recently used
_MOST_KEPT = 3
# a user may have chosen the folder, and keep weights of their own there
_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")


@dataclass(frozen=True, slots=True)
class Source:
    """A weights file as it was when it was identified.

    Attributes:
        digest: SHA-256 of its content, in hexadecimal digits.
        stamp: of before the content was read.
    """

    path: Path
    digest: str
    stamp: FileStamp

    def is_unchanged(self) -> bool:
        """Whether what has been read since then is the content of that digest."""
        return FileStamp.at(self.path) == self.stamp


@dataclass(frozen=True, slots=True)
class Copies:
    """The folder of copies; where it can't be used, runs go on without it.

    Attributes:
        folder: created when the first copy is made.
        sha256: of a file's content; one that remembers (`Cache.file_sha256`) spares half a second a start.
    """

    folder: Path
    sha256: Callable[[Path], bytes]

    def identify(self, path: Path) -> Source:
        """What a copy of a weights file is known by; to be asked before the file is loaded."""
        stamp = FileStamp.of(path.stat())
        return Source(path, self.sha256(path).hex(), stamp)

    def open(self, source: Source) -> Any:
        """The copy of a weights file, opened as `safe_open` does; None where there is no sound one."""
        path = self._path(source)
        try:
            copy: Any = safe_open(path, framework="pt")
        except (OSError, SafetensorError) as exc:
            if path.exists():
                logger.info("%s is damaged and will be replaced: %s", path, first_line(exc))
            return None
        if (copy.metadata() or {}).get("source") != source.digest:
            logger.info("%s isn't a copy of %s and will be replaced", path, source.path)
            return None
        # a folder that can't be written can be read
        with contextlib.suppress(OSError):
            os.utime(path)
        return copy

    def save(self, source: Source, state: dict[str, Tensor]) -> None:
        """Keep a copy, whole or not at all, and few others; a failure is a warning.

        Nothing is kept of a file that has changed since it was identified: `state` may be of either content.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(source, _separate(state))
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as exc:
            logger.warning("no safetensors copy of %s in %s: %s", source.path, self.folder, first_line(exc))

    def _path(self, source: Source) -> Path:
        return self.folder / f"{source.digest}.safetensors"

    def _remove_others(self, newest: Path) -> None:
        """Remove all copies but the `newest` and the most recently used."""
        # another process may be removing them, or have them open where that can't be done
        with contextlib.suppress(OSError):
            others = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path != newest]
            others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
            for path in others[_MOST_KEPT - 1 :]:
                path.unlink(missing_ok=True)

    def _write(self, source: Source, state: dict[str, Tensor]) -> None:
        # several processes may be at it, each with a draft of its own; all write the same
        draft = self.folder / f".{secrets.token_hex(32)}.safetensors.part"
        try:
            save_file(state, draft, metadata={"source": source.digest})
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            # only now, since tensors that are memory-mapped are read while they are saved
            if source.is_unchanged():
                draft.replace(self._path(source))
                self._remove_others(self._path(source))
            else:
                logger.info("%s has changed while it was read, so it isn't copied", source.path)
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
