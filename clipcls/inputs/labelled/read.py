"""From what a user names to labelled pictures."""

import os
from collections.abc import Sequence
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.inputs.labelled.class_folders import read_class_folders
from clipcls.inputs.labelled.examples import Truth
from clipcls.inputs.labelled.shards import read_shards, read_shards_of_folder, shards_in
from clipcls.inputs.labelled.tables import TABLES, read_table
from clipcls.inputs.shards import is_shard


def read_truth(data: Sequence[str], labels: Sequence[str] | None = None) -> Truth:
    """Read labelled pictures: a folder of class folders, a table, or tar shards.

    Shards are named by their paths, by patterns with braces, or by the folder that holds them or their `test` folder.

    Args:
        labels: the names that numbers in shards stand for, where no file beside the shards tells.

    Raises:
        UsageError: it is none of these, or can't be read.
    """
    if all(is_shard(name) and not os.path.isdir(name) for name in data):  # noqa: PTH112, it may be a pattern
        return read_shards(data, labels)
    if len(data) != 1:
        raise UsageError("Give one folder, one table, or shards only.")
    path = Path(data[0])
    if path.is_dir():
        return read_shards_of_folder(path, labels) if shards_in(path) else read_class_folders(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder.")
    if path.suffix.lower() not in TABLES:
        raise UsageError(f"{path}: neither a folder, nor a table ({', '.join(TABLES)}), nor a shard (.tar).")
    return read_table(path)
