"""Read labels from options, from built-in sets, and from text, CSV, JSON and YAML files."""

import io
import json
import logging
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipcls.errors import NOTICE, UsageError, shortened
from clipcls.labels.foreign_labels import lines_of, list_within, name_column, refuse_other_separators
from clipcls.labels.label_sets import builtin_names, load_label_set, unknown_name
from clipcls.records import Label
from clipcls.text_files import CsvError, csv_rows, read_text

logger = logging.getLogger(__name__)

# what separates a list in other scripts and programs
_OTHER_COMMAS = ";\uff0c\u3001\u060c\uff1b\u061b\uff64\ufe50\ufe51"
_EXTENSIONS = (".txt", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".names")
# zero-width spaces, byte order marks and soft hyphens anywhere; joiners and marks of direction at the ends
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]|^[\u200c-\u200f]+|[\u200c-\u200f]+$")


def parse_labels(
    comma_separated: str | Sequence[str] = (),
    single: Sequence[str] = (),
    file: str | Path | None = None,
    allow_equal: bool = False,
) -> tuple[Label, ...]:
    """Collect the labels of all sources, in the order: comma-separated, single ones, file.

    Args:
        comma_separated: `cat,dog,truck`, or several such texts.
        single: labels that are never split, such as `crane, bird`.
        file: what `read_labels` reads.
        allow_equal: take labels that mean the same.

    Returns:
        At least one label.

    Raises:
        UsageError: no label, an empty one, two that mean the same, an unreadable file.
    """
    lists = [comma_separated] if isinstance(comma_separated, str) else comma_separated
    labels = [make_label(name) for name in [*split_labels(lists), *single]]
    if file is not None:
        labels += read_labels(file)
    if not labels:
        raise UsageError(
            "No labels. Give --labels cat,dog,truck or --labels-file FILE; `clipcls labels list` names built-in sets."
        )
    if not allow_equal:
        refuse_duplicates(labels)
    return tuple(labels)


def split_labels(comma_separated: Sequence[str], option: str = "--labels") -> list[str]:
    """Split texts such as `cat,dog,truck` at their commas.

    Args:
        option: that gave them, for messages.

    Raises:
        UsageError: one has an empty part, other separators, or is a file's name.
    """
    found = []
    for text in comma_separated:
        names = split_at_commas(text, option)
        if len(names) == 1 and Path(text).suffix.lower() in _EXTENSIONS and os.path.isfile(text):  # noqa: PTH113
            raise UsageError(f"{option} {text}: a file. Did you mean --labels-file {text}?")
        found += names
    return found


def split_at_commas(text: str, option: str) -> list[str]:
    """Split a text such as `cat,dog,truck` at its commas; no file is looked for.

    Raises:
        UsageError: it has an empty part or other separators.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"{option} {shortened(text)}: an empty label; look for a doubled or trailing comma.")
    sign = next((sign for sign in _OTHER_COMMAS if sign in text), None)
    if sign is not None:
        meant = ",".join(filter(None, (part.strip() for part in re.split(f"[,{_OTHER_COMMAS}]", text))))
        raise UsageError(
            f"{option} are separated by commas (,), not by {sign}. Did you mean {option} {meant!r}? A label with "
            "that sign is given by --label."
        )
    return names


def make_label(name: str, synonyms: Sequence[str] = (), prompts: Sequence[str] = ()) -> Label:
    """Make a label whose prompted text is its name in plain words: `hot dog` for `hot_dog`.

    Raises:
        UsageError: the name, a synonym or a prompt is empty or isn't valid Unicode.
    """
    for text in (name, *synonyms, *prompts):
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise UsageError(f"Label {text!r} isn't valid UTF-8.")
    texts = tuple(dict.fromkeys(_plain(text) for text in (name, *synonyms)))
    if not texts[0]:
        raise UsageError(f"Empty label: {name!r} has nothing but spaces and underscores.")
    if not all(texts) or not all(prompt.strip() for prompt in prompts):
        raise UsageError(f"Label {name!r} has an empty synonym or prompt.")
    return Label(name=_visible(name).strip(), texts=texts, prompts=tuple(prompts))


def label_key(text: str) -> str:
    """Return what the names of one label have in common: case, form (NFKC), underscores and spacing don't count."""
    return _plain(unicodedata.normalize("NFKC", text)).casefold()


def spelling_key(text: str) -> str:
    """Return what names have in common that may be one label's: punctuation and spaces don't count, either."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).casefold()


def refuse_duplicates(labels: Iterable[Label]) -> None:
    """Refuse equal labels, which would share the probability that one of them should have.

    Raises:
        UsageError: two labels have the same name or synonym after normalisation.
    """
    seen: dict[str, str] = {}
    for label in labels:
        for text in label.texts:
            key = label_key(text)
            if key in seen:
                raise UsageError(
                    f"Labels {seen[key]!r} and {label.name!r} are the same after normalisation and would "
                    "split the score between them. Remove one; where numbers count the lines of this list, as those of "
                    "a data set's classnames.txt, in a copy."
                )
        for text in label.texts:
            seen[label_key(text)] = label.name


def read_labels(name_or_file: str | Path) -> list[Label]:
    """Read a built-in set by name, or a label file in the format that its extension names.

    Args:
        name_or_file: a text may be a set's name; a `Path` is a file.

    Raises:
        UsageError: there is no such set or file, or the file can't be read, or isn't what its extension says.
    """
    file = Path(name_or_file)
    if isinstance(name_or_file, str):
        if name_or_file in builtin_names():
            if file.is_file():
                logger.warning("labels: %s is the built-in set; the file of that name is ./%s", file, file)
            return [make_label(name) for name in load_label_set(name_or_file).labels]
        if not file.suffix and not os.path.exists(file):  # noqa: PTH110, long names
            raise UsageError(unknown_name(name_or_file))
    text = read_text(file)
    try:
        labels = _read(text, file.suffix.lower())
    except (json.JSONDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise UsageError(f"{file}: not valid {file.suffix[1:].upper()}: {exc}") from exc
    except CsvError as exc:
        raise UsageError(f"{file}, {exc}.") from exc
    except UsageError as exc:
        raise UsageError(f"{file}: {exc}") from exc
    if not labels:
        raise UsageError(f"{file}: holds no labels.")
    return labels


def _read(text: str, extension: str) -> list[Label]:
    match extension:
        case ".csv" | ".tsv":
            return _from_csv(text, "\t" if extension == ".tsv" else ",")
        case ".json":
            return labels_from_data(_json(text))
        case ".jsonl" | ".ndjson":
            return labels_from_data([_json(line) for line in text.split("\n") if line.strip()])
        case ".yaml" | ".yml":
            return labels_from_data(yaml.load(text, Loader=LabelLoader))
        case "" | ".txt" | ".names" | ".list" | ".lst":
            return [make_label(line) for line in lines_of(text)]
        case _:
            raise UsageError(f"labels come from .txt, .csv, .tsv, .json, .jsonl or .yaml files, not from {extension}.")


def _json(text: str) -> Any:
    # numbers as they are written
    return json.loads(text, object_pairs_hook=_unique, parse_int=str, parse_float=str)


class LabelLoader(yaml.SafeLoader):
    """Loads numbers and dates as text (012, 1:30), and refuses duplicate keys."""


LabelLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("bool", "null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: LabelLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    return _unique(
        [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
    )


LabelLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        key = str(name) if isinstance(name, list | dict) else name
        if key in found:
            raise UsageError(f"{name!r} is there twice; put its synonyms into one list.")
        found[key] = value
    return found


def _plain(text: str) -> str:
    return re.sub(r"[\s_]+", " ", _visible(text)).strip()


def _visible(text: str) -> str:
    """Return a text without the signs that nothing shows; joiners, which shape letters and emoji, stay inside it."""
    return _INVISIBLE.sub("", text)


def _from_csv(text: str, delimiter: str) -> list[Label]:
    """Read the column `label` (`synonyms` and `prompts` are split at `|`), or the only column if there is no header."""
    rows = _rows(text, delimiter)
    first = rows[0] if rows else []
    if delimiter == "," and len(first) == 1 and ";" in first[0] and name_column(_folded(first[0].split(";"))):
        delimiter = ";"  # as spreadsheets write it where the comma is the decimal sign
        rows = _rows(text, delimiter)
    refuse_other_separators(rows, delimiter, {";": "semicolon", "\t": "tab"})
    header = _folded(rows[0]) if rows else []
    column = name_column(header)
    if column is None and any(len(row) > 1 for row in rows):
        raise UsageError("several columns and none is named `label`. Name one so in the first line.")
    if column is None:
        return [make_label(row[0]) for row in rows]
    if column != "label" or delimiter == ";":
        logger.log(NOTICE, "labels: %d names from the column %r", len(rows) - 1, column)

    def cells(row: list[str], name: str) -> list[str]:
        if name not in header or header.index(name) >= len(row):
            return []
        return [part for part in row[header.index(name)].split("|") if part.strip()]

    where = header.index(column)
    too_long = next((row for row in rows if any(row[len(header) :])), None)
    if too_long is not None:
        raise UsageError(
            f"{too_long[0]!r}: a row with more cells than the first line; put a cell with commas in quotes."
        )
    return [
        make_label(row[where] if where < len(row) else "", cells(row, "synonyms"), cells(row, "prompts"))
        for row in rows[1:]
    ]


def _rows(text: str, delimiter: str) -> list[list[str]]:
    lines = io.StringIO(text, newline="")
    return [row for _, row in csv_rows(lines, delimiter) if any(cell.strip() for cell in row)]


def _folded(names: Iterable[str]) -> list[str]:
    return [name.strip().casefold() for name in names]


def labels_from_data(data: Any) -> list[Label]:
    """Return the labels of a list or a mapping.

    A list is of names or of `{label, synonyms, prompts}`; a mapping is from labels to their synonyms or details.
    Either may stand under the key `labels`, beside a `description` and a `source`.

    Raises:
        UsageError: it is neither.
    """
    match data:
        case {"labels": list() | dict() as inner} if data.keys() <= {"labels", "description", "source"}:
            return labels_from_data(inner)
        case list() if all(isinstance(item, str) or (isinstance(item, dict) and "label" in item) for item in data):
            return [_from_item(item) for item in data]
        case _:
            data = list_within(data)
    match data:
        case dict():
            return [_from_entry(name, details) for name, details in data.items()]
        case list():
            return [_from_item(item) for item in data]
        case _:
            raise UsageError(
                'expected a list of labels, as in ["cat", "dog"], or a mapping from label to synonyms, as in '
                '{"cat": ["kitty"], "dog": []}.'
            )


def _from_item(item: Any) -> Label:
    if isinstance(item, dict):
        return _from_entry(item.get("label"), {k: v for k, v in item.items() if k != "label"})
    return _from_entry(item, None)


def _from_entry(name: Any, details: Any) -> Label:
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        # YAML reads an unquoted yes, no, on, off as a truth value
        raise UsageError(f"{name!r} is not a label. Put it in quotes if it is meant as text.")
    match details:
        case None:
            return make_label(str(name))
        case str():
            return make_label(str(name), [details])
        case list():
            return make_label(str(name), _texts(name, details))
        case dict() if details.keys() <= {"synonyms", "prompts"}:
            synonyms = _texts(name, details.get("synonyms") or [])
            return make_label(str(name), synonyms, _texts(name, details.get("prompts") or []))
        case _:
            raise UsageError(f"label {name!r}: expected synonyms, or a mapping with `synonyms` and `prompts`.")


def _texts(name: Any, values: Any) -> list[str]:
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"label {name!r}: synonyms and prompts must be text.")
    return values
