"""Choose which picture of a group of duplicates to keep, and say why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clipcls.embed.image_reader import Features
from clipcls.predict.looks import Look, Reader
from clipcls.records import Duplicate, ImageRef, Likeness

# what is less sharp than the sharpest by no more than this counts as equally sharp
_AS_SHARP = 0.98
_KINDS: tuple[Likeness, ...] = ("bytes", "picture", "scene")


@dataclass(frozen=True, slots=True)
class File:
    """A picture's file.

    Attributes:
        size: in bytes; None where only reading tells.
        changed: when its content last changed, in nanoseconds since 1970; None where nothing tells.
    """

    image: ImageRef
    size: int | None = None
    changed: int | None = None


@dataclass(frozen=True, slots=True)
class GroupMember:
    """A file in a group: which it is, which of the different contents it has, and which picture that is a copy of."""

    file: int
    content: int
    picture: int


def pixels(look: Look | None) -> int:
    """Return how many pixels a picture has; 0 where it can't be read any more."""
    return 0 if look is None else look.size[0] * look.size[1]


def rows_of(
    groups: Iterable[Sequence[GroupMember]],
    files: Sequence[File],
    reader: Reader,
    looks: dict[int, Look],
    features: "dict[int, Features] | None",
) -> list[Duplicate]:
    """Return the rows of the groups of more than one file."""
    rows: list[Duplicate] = []
    several = [sorted(group, key=lambda member: member.file) for group in groups if len(group) > 1]
    for number, group in enumerate(sorted(several, key=lambda group: group[0].file), 1):
        keep, why = _choose(group, files, reader, looks)
        others = [member for member in group if member is not keep]
        kinds = [_kind(keep, member) for member in others]
        found = []
        for member, kind in zip([keep, *others], [max(kinds, key=_KINDS.index), *kinds], strict=True):
            file, same = files[member.file], features is None or member.content == keep.content
            cosine = 1.0 if same or features is None else float(features[keep.content] @ features[member.content])
            is_kept = member is keep
            found.append(Duplicate(number, kind, file.image.path, is_kept, why if is_kept else "", cosine, file.size))
        rows += found
    return rows


def _kind(keep: GroupMember, other: GroupMember) -> Likeness:
    if other.content == keep.content:
        return "bytes"
    return "picture" if other.picture == keep.picture else "scene"


def _choose(
    group: Sequence[GroupMember], files: Sequence[File], reader: Reader, looks: dict[int, Look]
) -> tuple[GroupMember, str]:
    """Return the member to keep, and what each step that left some out went by."""
    left, why = list(group), []

    def narrow(best: Sequence[GroupMember], reason: str) -> None:
        nonlocal left
        if len(best) < len(left):
            left = list(best)
            why.append(reason)

    if len({member.content for member in left}) > 1:
        most = max(pixels(looks.get(member.content)) for member in left)
        largest = [member for member in left if pixels(looks.get(member.content)) == most]
        width, height = looks[largest[0].content].size
        narrow(largest, f"largest: {width} × {height}")
    contents = list(dict.fromkeys(member.content for member in left))
    if len(contents) > 1:
        sharp = {content: reader.sharpness(content) for content in contents}
        narrow([m for m in left if sharp[m.content] >= _AS_SHARP * max(sharp.values())], "sharpest")
    times = [files[member.file].changed for member in left]
    known = [time for time in times if time is not None]
    if len(known) == len(left):
        narrow([member for member in left if files[member.file].changed == min(known)], "oldest")
    narrow(left[:1], "first")
    return left[0], ", ".join(why)
