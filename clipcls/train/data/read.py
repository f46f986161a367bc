"""Whatever a run trains on, read by what it is."""

import os
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.train.data.class_folders import read_class_folders
from clipcls.train.data.corpus import Corpus
from clipcls.train.data.shards import are_shards, read_shards
from clipcls.train.data.table import Table, read_table


def read_data(name: str | Path, samples: int = 0) -> Corpus:
    """Read shards, a table, or a folder of class folders.

    Args:
        name: a path, or what else stands for shards; see `are_shards`.
        samples: rows in an epoch of shards; 0 for as many as there are.

    Raises:
        UsageError: see `read_shards` and `read_pairs`; or `samples` is given for what isn't shards.
    """
    name = os.fspath(name)
    if are_shards(name):
        return read_shards(name, samples)
    if samples:
        raise UsageError(f"samples: only for shards; {name} has as many rows as it holds")
    return read_pairs(Path(name))


def read_pairs(path: Path) -> Table:
    """Read a table, or a folder of class folders.

    Raises:
        UsageError: see `read_table` and `read_class_folders`.
    """
    return read_class_folders(path) if path.is_dir() else read_table(path)


def require_table(corpus: Corpus, setting: str) -> Table:
    """A corpus whose rows are all known.

    Raises:
        UsageError: it isn't one; the message names the setting that needs it.
    """
    if not isinstance(corpus, Table):
        raise UsageError(f"{setting}: needs a table or class folders, whose captions are known beforehand")
    return corpus
