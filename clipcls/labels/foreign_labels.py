"""Recognise the lists of class names that other programs write, in the forms that can't mean anything else.

{"names": […]}, {"classes": […]}         YOLO's data.yaml and others, whatever keys are beside it
{"id2label": {"0": "cat"}}, {"cat": 0}   Hugging Face's config.json, and its maps by themselves
{"0": ["n02123045", "cat"]}              Keras' imagenet_class_index.json
{"categories": [{"id": 1, "name": …}]}   COCO
"cat",                                   lines of a list in code
0 cat                                    lines that are numbered
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clipcls.errors import NOTICE, UsageError, quoted

logger = logging.getLogger(__name__)

#: Names of a column or a key with a label.
LABEL_NAMES = ("label", "name", "class", "classname", "class_name", "category")
# keys of a whole list, the surest first
_LISTS = ("id2label", "label2id", "names", "classes", "classnames", "categories")
_WORDNET = re.compile(r"n\d{8}")
_QUOTED = re.compile(r"""\s*(["'])(?P<text>.*)\1\s*,?\s*""")
_NUMBERED = re.compile(r"\s*(?P<number>\d+)(?:\s*[:.),;]\s*|\s+)(?P<text>\S.*)")


def list_within(data: Any) -> Any:
    """Return the list or map of names that other programs' JSON or YAML holds, in the form of clipcls's own.

    Args:
        data: what the file holds, with numbers as text.

    Returns:
        A list of names, or of `{label, synonyms}`; data of another form unchanged.
    """
    if isinstance(data, dict):
        for key in _LISTS:
            found = _names_in(data.get(key))
            if found is not None:
                _say(found, f"the key {key!r}")
                return found
    found = _names_in(data)
    if found is not None:
        _say(found, "a list of numbers and names")
        return found
    return data


def _names_in(data: Any) -> list[Any] | None:
    """Return names, by number where they have some; None if it is no list of another program."""
    match data:
        case [str(), *_] if all(isinstance(name, str) for name in data):
            return None if not data else list(data)
        case [dict(), *_] if all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in data):
            return [entry["name"] for entry in data]
        case dict() if len(data) > 1 and _are_numbers(data.keys()) and all(map(_is_named, data.values())):
            return [_named(data[number]) for number in sorted(data, key=int)]
        case dict() if len(data) > 1 and _are_numbers(data.values()):
            return sorted(data, key=lambda name: int(data[name]))
        case _:
            return None


def _are_numbers(values: Any) -> bool:
    """Tell whether values are different whole numbers, as text."""
    found = list(values)
    return all(isinstance(value, str) and value.isdecimal() for value in found) and len(set(found)) == len(found)


def _is_named(value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    return bool(texts) and all(isinstance(text, str) for text in texts)


def _named(value: str | list[str]) -> Any:
    """Return a numbered name; of several, without WordNet's identifier, the others are synonyms."""
    if isinstance(value, str):
        return value
    texts = [text for text in value if not _WORDNET.fullmatch(text)] or value
    return {"label": texts[0], "synonyms": texts[1:]}


def lines_of(text: str) -> list[str]:
    """Return the labels in lines of text: without comments, quotes, and numbers that only count the lines.

    Raises:
        UsageError: there is a single line with commas.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    labels = [line for line in lines if not line.startswith("# ")]
    if len(labels) < len(lines):
        _say(labels, f"the lines that don't begin with #, {len(lines) - len(labels)} do")
    if len(labels) == 1 and "," in labels[0]:
        raise UsageError("one line with commas; write one label a line, or give such a label by --label.")
    if labels and all(found := [_QUOTED.fullmatch(label) for label in labels]):
        labels = [match["text"] for match in found if match]
        _say(labels, "lines in quotes")
    elif len(labels) > 2 and all(label.endswith(",") for label in labels[:-1]):
        labels = [label.removesuffix(",").rstrip() for label in labels]
        _say(labels, "lines that end in a comma")
    return _without_numbers(labels)


def _without_numbers(labels: list[str]) -> list[str]:
    found = [match for match in map(_NUMBERED.fullmatch, labels) if match]
    numbers = [int(match["number"]) for match in found]
    if len(found) < len(labels) or len(labels) < 2 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return labels
    names = [match["text"] for match in found]
    if numbers[0] in (0, 1) and len(labels) > 2 and len(set(names)) == len(names):
        _say(names, "numbered lines")
        return names
    logger.warning(
        "labels: %s begin with numbers, which are part of them; remove these if they count lines", quoted(labels)
    )
    return labels


def name_column(header: Sequence[str]) -> str | None:
    """Return the column of labels by its name; None if no name is known."""
    return next((name for name in LABEL_NAMES if name in header), None)


def refuse_other_separators(rows: Sequence[Sequence[str]], separator: str, described: Mapping[str, str]) -> None:
    """Refuse a table of one column all of whose rows hold the same other separator.

    Args:
        described: other separators, by their signs.

    Raises:
        UsageError: they do.
    """
    for sign, name in described.items():
        if sign != separator and len(rows) > 1 and all(len(row) == 1 and sign in row[0] for row in rows):
            raise UsageError(f"every line holds a {name}; columns end in commas in .csv, in tabs in .tsv.")


def _say(labels: Sequence[Any], what: str) -> None:
    logger.log(NOTICE, "labels: %d names from %s", len(labels), what)
