"""Read captions from records, and caption examples by their labels."""

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipcls.errors import UsageError
from clipcls.inputs.labelled.examples import Example
from clipcls.labels.label_files import make_label
from clipcls.records import Address, ImageRef

#: Columns, or keys of a JSON record, with one caption each; `captions` is a list of them.
CAPTION = re.compile(r"caption\d*")
LIST = "captions"

_SURROGATE = re.compile("[\ud800-\udfff]")


def listed_captions(record: Mapping[str, Any]) -> tuple[str, ...] | str:
    """Return the captions of a record, in `caption`, `caption2`, … and `captions`; or what is wrong with them."""
    listed = record.get(LIST) or []
    if not isinstance(listed, list):
        return "captions isn't a list"
    columns = [value for name, value in record.items() if CAPTION.fullmatch(name)]
    captions = tuple(text.strip() for text in [*columns, *listed] if isinstance(text, str) and text.strip())
    if not all(map(is_unicode, captions)):  # Hugging Face's tokenizers would fail
        return "a caption isn't valid Unicode"
    return captions


def is_unicode(text: str) -> bool:
    """Tell whether a text holds no lone surrogate."""
    return not _SURROGATE.search(text)


def caption_key(caption: str) -> str:
    """Return what captions that count as one have in common: most tokenizers don't tell case and spacing."""
    return " ".join(caption.casefold().split())


def captioned(example: Example) -> Example | str:
    """Return an example to train on, without captions captioned by its labels; or why it can't be trained on."""
    image = example.image
    if image.error is not None:
        return image.error
    if isinstance(image.content, Address):
        return "an address on the web; pictures to train on have to be files, or in a store"
    try:
        captions = example.captions or tuple(text for label in example.labels for text in make_label(label).texts)
    except UsageError as exc:
        return str(exc)
    return Example(normalised(image), example.labels, captions) if captions else "no caption"


def normalised(image: ImageRef) -> ImageRef:
    """Normalise a file's path, so that one picture under two spellings is decoded and counted once."""
    is_file = image.content is None and image.error is None
    return replace(image, path=os.fspath(Path(image.path))) if is_file else image
