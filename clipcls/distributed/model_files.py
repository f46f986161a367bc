"""Send a model's files, once each, to the nodes that don't see them, through Ray's object store."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcls.distributed.node import own_folder
from clipcls.errors import StoppedError
from clipcls.outputs.atomic import Draft, lock
from clipcls.records import FileStamp

if TYPE_CHECKING:
    from clipcls.models.locate import ModelFiles

# bytes in a chunk of a file; an object has to fit into a node's shared memory beside others
_CHUNK = 2**27


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file on the machine that started the run.

    Attributes:
        stamp: tells on another node whether the file at this path is the same.
        chunks: references to its content; empty where no node needs a copy.
    """

    path: Path
    stamp: FileStamp
    chunks: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class SentModel:
    """A model and its files, as workers receive them."""

    files: "ModelFiles"
    sent: tuple[SentFile, ...]

    def here(self, fetch: Callable[[Any], bytes]) -> "ModelFiles":
        """Return the model on this node: the files themselves if it sees them, else copies that its workers share.

        Args:
            fetch: returns the content that a reference stands for.

        Raises:
            StoppedError: the copies can't be written.
        """
        if all(FileStamp.at(file.path) == file.stamp for file in self.sent):
            return self.files
        described = json.dumps([[str(file.path), str(file.stamp)] for file in self.sent])
        folder = own_folder() / hashlib.sha256(described.encode()).hexdigest()[:16]
        try:
            with _locked(folder):
                for file in self.sent:
                    _copy(file, _place(folder, file.path), fetch)
        except OSError as exc:
            raise StoppedError(f"{folder}: the model can't be put there: {exc.strerror}.") from exc
        return _moved(self.files, {file.path: _place(folder, file.path) for file in self.sent})


def send(files: "ModelFiles", put: Callable[[bytes], Any] | None) -> SentModel:
    """Put a model's files where all nodes can get them.

    Args:
        put: stores content and returns a reference to it; None where every worker sees the files themselves.

    Raises:
        StoppedError: a file can't be read.
    """
    # one file may be listed twice
    paths = list(dict.fromkeys(path.absolute() for path in files.all()))
    try:
        sent = [_sent(path, put) for path in paths]
    except OSError as exc:
        raise StoppedError(f"{exc.filename}: can't be read: {exc.strerror}.") from exc
    return SentModel(_moved(files, {path: path for path in paths}), tuple(sent))


def _sent(path: Path, put: Callable[[bytes], Any] | None) -> SentFile:
    return SentFile(path, FileStamp.of(path.stat()), tuple(map(put, _chunks(path))) if put else ())


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _copy(file: SentFile, target: Path, fetch: Callable[[Any], bytes]) -> None:
    """Copy a file to `target`, whole or not at all, unless another worker already has.

    Raises:
        StoppedError: its content wasn't sent, or not all of it.
    """
    if target.exists() and target.stat().st_size == file.stamp.size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with Draft(target) as draft:
        for chunk in file.chunks:
            draft.file.write(fetch(chunk))
        if draft.file.tell() != file.stamp.size:
            raise StoppedError(
                f"{file.path} isn't seen, and hasn't been sent: the node came after the run had begun, or the file "
                "changed meanwhile. --resume goes on with the cluster as it is."
            )
        draft.publish()


def _moved(files: "ModelFiles", places: dict[Path, Path]) -> "ModelFiles":
    """Return the model with its files' paths replaced."""

    def folder(path: Path) -> Path:
        """Return the folder that now holds the files of `path`."""
        return next((new.parent for old, new in places.items() if old.parent == path.absolute()), path)

    config = deepcopy(files.config)
    text_model = config["text_cfg"].get("hf_model_name")
    if text_model:
        config["text_cfg"]["hf_model_name"] = str(folder(Path(text_model)))
    return replace(
        files,
        config=config,
        weights=places[files.weights.absolute()],
        settings=tuple(places[path.absolute()] for path in files.settings),
        tokenizer=files.tokenizer and folder(files.tokenizer),
    )


def _place(folder: Path, path: Path) -> Path:
    """Return where to copy a file; files of one folder stay together, which a tokenizer needs."""
    return folder / hashlib.sha256(os.fsencode(path.parent)).hexdigest()[:8] / path.name


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, so that the node's workers write into it one after the other."""
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        lock(file, wait=True)
        yield
