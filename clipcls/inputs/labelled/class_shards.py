"""Read tar shards of pictures with their classes, laid out as CLIP_benchmark's data sets are.

    DATA/classnames.txt                            the classes' names, one a line
    DATA/zeroshot_classification_templates.txt     prompts, with {c} for the name
    DATA/dataset_type.txt                          `multilabel`, or not there
    DATA/test/nshards.txt                          how many shards there are: 0.tar, 1.tar …
    DATA/test/0.tar                                NAME.jpg (.webp, .png …) beside NAME.cls, the class's number from 0;
                                                   or NAME.npy, with several labels an image, a 0 or 1 for each class

Source: clip_benchmark.webdataset_builder, https://github.com/LAION-AI/CLIP_benchmark
"""

import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from clipcls.errors import UsageError, first_line, listed
from clipcls.inputs.discover import EXTENSIONS
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.labelled.shard_files import TYPE, Beside, named_shards
from clipcls.inputs.shards import DAMAGE, members, read_pictures
from clipcls.inputs.stores import in_store
from clipcls.labels.label_files import label_key
from clipcls.records import ImageRef

_CLASSNAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"
_CLASS, _FLAGS = ".cls", ".npy"
# the picture that CLIP_benchmark takes of a sample with several
_PREFERRED = {extension: place for place, extension in enumerate((".webp", ".png", ".jpg", ".jpeg"))}
_LONGEST_CLASS = 2**20  # bytes of a member with a class


def read_shards(data: Sequence[str], labels: Sequence[str] | None) -> Truth:
    """Read shards; a picture without a class is left out, and named among the problems.

    Args:
        data: paths, patterns, and names with braces.
        labels: the class names, by number, unless a `classnames.txt` lies beside the shards or one folder above.

    Raises:
        UsageError: no such names, a number without a name, a shard that is compressed, or no picture with a class.
    """
    shards = named_shards(data)
    beside = Beside(shards, _CLASSNAMES)
    written = beside.lines(_CLASSNAMES) or list(labels or ())
    names = _distinct(written)
    if not names:
        raise UsageError(
            f"{beside.folder}: no {_CLASSNAMES} tells what the shards' numbers stand for. Give --labels in their order."
        )
    same = {name: text for name, text in zip(names, written, strict=True) if name != text}
    problems: list[str] = []
    if same:
        problems.append(
            f"{beside.path_of(_CLASSNAMES) or '--labels'}: equal names stay classes of their own, as for "
            f"CLIP_benchmark, but every answer goes to the first of them, never to {listed(map(repr, same))}"
        )
    is_several = beside.lines(TYPE)[:1] == ["multilabel"]
    examples: list[Example] = []
    further: list[str] = []
    for shard in shards:
        for image, found in _classes(shard, names, _FLAGS if is_several else _CLASS, further):
            if found is None and image.error is None:
                problems.append(f"{image.path}: no class")
            else:
                examples.append(Example(image, found or ()))
    if further:
        problems.append(f"{len(further):,} further pictures beside those with a class: {listed(further, 3)}")
    if not any(example.labels for example in examples):
        first = next((example.image for example in examples), None)
        reason = "" if first is None else f" The first: {first.path}: {first.error}."
        raise UsageError(
            f"{', '.join(data)}: no picture with a class beside it, in a member that ends in .cls.{reason}"
        )
    return Truth(
        tuple(examples),
        tuple(names),
        is_several,
        tuple(problems),
        beside.path_of(_CLASSNAMES),
        beside.path_of(_TEMPLATES),
        same,
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of which no two are the same: an equal one has its class's number behind it.

    They stay classes of their own, as for CLIP_benchmark: ImageNet's list holds some names twice.
    """
    keys = Counter(map(label_key, names))
    seen: set[str] = set()
    found = []
    for number, name in enumerate(names):
        key = label_key(name)
        found.append(f"{name} [{number}]" if keys[key] > 1 and key in seen else name)
        seen.add(key)
    return found


def _classes(
    shard: str, names: Sequence[str], ending: str, further: list[str]
) -> Iterator[tuple[ImageRef, tuple[str, ...] | None]]:
    """Yield a shard's pictures, one a sample, each with its classes, or None if no member gives them.

    Args:
        further: receives the paths of other pictures of the samples.
    """
    if in_store(shard):
        raise UsageError(f"{shard}: in a store; copy it here first, for its pictures are read more than once.")
    images = list(read_pictures(shard, EXTENSIONS))
    if any(isinstance(image.content, bytes) for image in images):
        raise UsageError(f"{shard}: compressed; decompress it first, for its pictures are read more than once.")
    classes: dict[str, dict[str, bytes]] = {}
    for path, data in _members(shard, ending):
        classes.setdefault(_key(path), {})[path.removesuffix(ending)] = data
    pictures: dict[str, list[ImageRef]] = {}
    for image in images:
        pictures.setdefault(_key(image.path), []).append(image)
    samples = {key: _sample(of_key, classes.get(key, {})) for key, of_key in pictures.items()}
    for image in images:
        found = samples[_key(image.path)]
        if image in found:
            given = found[image]
            yield image, None if given is None else _decoded(given, names, ending, image.path)
        else:
            further.append(image.path)


def _sample(images: Sequence[ImageRef], classes: Mapping[str, bytes]) -> dict[ImageRef, bytes | None]:
    """Return the pictures that have a class, or lack one, of those that share a key.

    A class belongs to the picture of its own name; where that has several kinds, to the one that CLIP_benchmark takes.
    The class of a key with one picture is that picture's. Others, such as masks, aren't what is to be classified.

    Args:
        classes: the content of each member with a class, by its path without its ending.
    """
    own: dict[str, ImageRef] = {}
    for image in sorted(images, key=lambda image: _PREFERRED.get(_extension(image), len(_PREFERRED))):
        own.setdefault(os.path.splitext(image.path)[0], image)  # noqa: PTH122, the name stays as given
    found: dict[ImageRef, bytes | None] = {own[stem]: data for stem, data in classes.items() if stem in own}
    if not found and len(images) == len(classes) == 1:
        return {images[0]: next(iter(classes.values()))}
    if len(found) == len(classes) == 1:
        return found
    return dict.fromkeys(own.values()) | found


def _extension(image: ImageRef) -> str:
    return os.path.splitext(image.path)[1].lower()  # noqa: PTH122


def _members(shard: str, ending: str) -> Iterator[tuple[str, bytes]]:
    """Yield the paths of members with classes, and their content."""
    # read_pictures has reported damage already
    with suppress(*DAMAGE), open(shard, "rb") as file:  # noqa: PTH123, the name stays as given
        for member in members(file):
            header = member.header
            if header.isreg() and header.name.endswith(ending) and header.size <= _LONGEST_CLASS:
                yield f"{shard}/{header.name}", member.read()


def _key(path: str) -> str:
    """Return a sample's key as webdataset does: the path up to the first dot of its last part."""
    folder, name = os.path.split(path)
    return f"{folder}/{name.partition('.')[0]}"


def _decoded(data: bytes, names: Sequence[str], ending: str, path: str) -> tuple[str, ...]:
    if ending == _FLAGS:
        return _flagged(data, names, path)
    try:
        number = int(data)
    except ValueError as exc:
        raise UsageError(f"{path}: its class isn't a number: {data[:20]!r}") from exc
    if not 0 <= number < len(names):
        raise UsageError(f"{path}: class {number}, but there are {len(names)} names, from 0 to {len(names) - 1}.")
    return (names[number],)


def _flagged(data: bytes, names: Sequence[str], path: str) -> tuple[str, ...]:
    import numpy as np

    try:
        flags = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as exc:
        raise UsageError(f"{path}: its classes can't be read: {first_line(exc)}") from exc
    if flags.shape != (len(names),):
        raise UsageError(f"{path}: {flags.size} classes, but there are {len(names)} names.")
    return tuple(name for name, flag in zip(names, flags, strict=True) if flag)
