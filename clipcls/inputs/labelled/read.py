"""Read labelled or captioned pictures in whatever form the user names."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.inputs.folders import walk
from clipcls.inputs.labelled.caption_shards import read_caption_shards
from clipcls.inputs.labelled.captions import captioned, normalised
from clipcls.inputs.labelled.class_folders import read_class_folders
from clipcls.inputs.labelled.class_shards import read_shards
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.labelled.shard_files import named_shards, shards_in, shards_of_folder
from clipcls.inputs.labelled.tables import Wanted, read_table
from clipcls.inputs.shards import is_shard
from clipcls.inputs.stores import in_store, local_path
from clipcls.inputs.tables import TABLES, is_parquet, is_part, is_table


def read_truth(
    data: Sequence[str],
    labels: Sequence[str] | None = None,
    allow_urls: bool = False,
    group_columns: Sequence[str] = (),
) -> Truth:
    """Read labelled pictures: a folder of class folders, a table, or tar shards.

    Shards are named by their paths, by patterns with braces, or by the folder that holds them or their `test` folder.

    Args:
        labels: the class names, by number, of shards without a file of them.
        allow_urls: whether the addresses in a table may be fetched.
        group_columns: columns of a table, whose cells are the pictures' groups.

    Raises:
        UsageError: it is none of these, or can't be read, or isn't a table though there are columns of groups.
    """
    shards = _shards(data)
    if shards is None:
        return _read_listed(local_path(data[0]), "labels", allow_urls, group_columns)
    _refuse_groups(data[0], group_columns)
    return read_shards(shards, labels)


def read_for_retrieval(data: Sequence[str], allow_urls: bool = False, group_columns: Sequence[str] = ()) -> Truth:
    """Read pictures with captions for retrieval, without opening a picture: from a table, or tar shards.

    Args:
        data: as for `read_truth`; labels aren't taken for captions.
        allow_urls: whether the addresses in a table may be fetched.
        group_columns: columns of a table, whose cells are the pictures' groups.

    Raises:
        UsageError: it is neither, or has no captions, or can't be read, or isn't a table though there are columns of
            groups.
    """
    shards = _shards(data)
    if shards is not None:
        _refuse_groups(data[0], group_columns)
        return read_caption_shards(named_shards(shards))
    name = local_path(data[0])
    is_folder = os.path.isdir(name)  # noqa: PTH112, it may be an address
    if (is_folder or os.path.exists(name)) and not (is_parquet(name) if is_folder else is_table(name)):  # noqa: PTH110
        raise UsageError(f"{name}: no captions. They are in tables ({', '.join(TABLES)}) and in shards (.tar).")
    truth = _read_listed(name, "captions", allow_urls, group_columns)
    if not any(example.captions for example in truth.examples):
        raise UsageError(
            f"{name}: labels, but no captions, which have columns caption, caption2, … or a list captions. "
            "Leave --retrieval out to measure labels."
        )
    examples = tuple(replace(example, image=normalised(example.image)) for example in truth.examples)
    return replace(truth, examples=examples)


def read_captioned(name: str) -> Truth:
    """Read pictures with captions from a table or class folders, without opening a picture.

    The name of a class folder, or a label in a table without captions, is the caption: `hot dog` for `hot_dog`.

    Returns:
        The examples that can be trained on; the problems say what is wrong with the others.

    Raises:
        UsageError: see `read_table` and `read_class_folders`.
    """
    truth = _read_listed(local_path(name), "captions", allow_urls=True)
    examples, problems = [], list(truth.problems)
    for example in truth.examples:
        found = captioned(example)
        if isinstance(found, Example):
            examples.append(found)
        else:
            problems.append(f"{example.image.path}: {found}")
    return replace(truth, examples=tuple(examples), problems=tuple(problems))


def _shards(data: Sequence[str]) -> Sequence[str] | None:
    """Return the names of shards that stand for the data, or lie in their folder; None for data of another form."""
    if all(is_shard(name) and not os.path.isdir(name) for name in data):  # noqa: PTH112, it may be a pattern
        return data
    if len(data) != 1:
        raise UsageError("Give one folder, one table, or shards only.")
    name = local_path(data[0])
    path = Path(name)
    return shards_of_folder(path) if not in_store(name) and path.is_dir() and shards_in(path) else None


def _refuse_groups(name: str, columns: Sequence[str]) -> None:
    """Refuse columns of groups for data without columns."""
    if columns:
        raise UsageError(
            f"{name}: groups are read from a column of a table ({', '.join(TABLES)}), and this is none. List the "
            "pictures in one, with a column of labels and one of groups."
        )


def _read_listed(name: str, wanted: Wanted, allow_urls: bool, group_columns: Sequence[str] = ()) -> Truth:
    """Read a table or class folders, on disk or in a store."""
    if is_table(name) and not os.path.isdir(name):  # noqa: PTH112, it may be an address
        if not in_store(name) and not os.path.lexists(name):
            raise UsageError(f"{name}: no such file or folder.")
        return read_table(name, wanted, allow_urls, group_columns)
    if is_parquet(name) and os.path.isdir(name):  # noqa: PTH112
        return _read_parts(name, wanted, allow_urls, group_columns)
    if in_store(name) or os.path.isdir(name):  # noqa: PTH112
        _refuse_groups(name, group_columns)
        return read_class_folders(name)
    if not os.path.exists(name):  # noqa: PTH110
        raise UsageError(f"{name}: no such file or folder.")
    raise UsageError(f"{name}: neither a folder, nor a table ({', '.join(TABLES)}), nor a shard (.tar).")


def _read_parts(folder: str, wanted: Wanted, allow_urls: bool, group_columns: Sequence[str]) -> Truth:
    """Read a folder of Parquet files as one table."""
    parts = [ref.path for ref, is_folder in walk(folder) if not is_folder and is_part(ref.path)]
    if not parts:
        raise UsageError(f"{folder}: a folder without a .parquet file.")
    tables = [read_table(part, wanted, allow_urls, group_columns) for part in parts]
    return Truth(
        tuple(example for table in tables for example in table.examples),
        tuple(sorted({name for table in tables for name in table.classnames})),
        any(table.multi_label for table in tables),
        tuple(problem for table in tables for problem in table.problems),
        group_columns=tuple(group_columns),
    )
