"""Edits XMP in the file beside a picture; every byte of it that isn't a new keyword stays as it was."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from xml.parsers import expat
from xml.sax.saxutils import escape

from clipcls.errors import ImageError
from clipcls.outputs.tag.keywords import Keyword

Naming = Literal["full", "stem"]

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_SUBJECT = ("http://purl.org/dc/elements/1.1/", "dc", "subject")
_HIERARCHY = ("http://ns.adobe.com/lightroom/1.0/", "lr", "hierarchicalSubject")
_EMPTY = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
    f'<rdf:RDF xmlns:rdf="{_RDF}">\n'
    '<rdf:Description rdf:about=""/>\n'
    "</rdf:RDF>\n"
    "</x:xmpmeta>\n"
    '<?xpacket end="w"?>\n'
).encode()
# a start tag, in whose attributes a `>` may stand
_TAG = re.compile(rb"<([^\s/>]+)(?:\"[^\"]*\"|'[^']*'|[^\"'>])*>")


def sidecar_of(picture: Path, naming: Naming) -> Path:
    """Return the file beside a picture that holds its metadata.

    Args:
        naming: `full` for `photo.jpg.xmp`, as darktable and digiKam name it; `stem` for `photo.xmp`, as Adobe does.
    """
    return picture.with_suffix(".xmp") if naming == "stem" else picture.with_name(f"{picture.name}.xmp")


def with_keywords(content: bytes | None, keywords: Sequence[Keyword]) -> bytes:
    """Return a sidecar's content with keywords added that it hasn't.

    Args:
        content: None for a new file.

    Raises:
        ImageError: it isn't XMP in UTF-8, or holds keywords in a form that no program writes.
    """
    content = _EMPTY if content is None else content
    for (space, prefix, name), words in (
        (_SUBJECT, [keyword.name for keyword in keywords]),
        (_HIERARCHY, [keyword.path for keyword in keywords]),
    ):
        content = _with_words(content, (space, prefix, name), words)
    return content


@dataclass(slots=True)
class _Place:
    """An element, by the places of its tags in bytes."""

    start: int
    end: int = -1


@dataclass(slots=True)
class _Found:
    """What a sidecar holds of one list of keywords."""

    rdf: _Place | None = None
    description: _Place | None = None
    holder: _Place | None = None
    bag: _Place | None = None
    words: list[str] = field(default_factory=list)


def _with_words(content: bytes, property: tuple[str, str, str], words: Sequence[str]) -> bytes:
    found = _find(content, f"{property[0]} {property[2]}")
    new = [word for word in dict.fromkeys(words) if word not in found.words]
    if not new:
        return content
    items = "".join(f'<rdf:li xmlns:rdf="{_RDF}">{escape(_clean(word))}</rdf:li>' for word in new)
    if found.bag is not None:
        return _appended(content, found.bag, items)
    if found.holder is not None:
        raise ImageError("its keywords aren't in a list, which no program writes so")
    space, prefix, name = property
    added = f'<{prefix}:{name} xmlns:{prefix}="{space}"><rdf:Bag xmlns:rdf="{_RDF}">{items}</rdf:Bag></{prefix}:{name}>'
    if found.description is not None:
        return _appended(content, found.description, added)
    if found.rdf is None:
        raise ImageError("XML, but no XMP")
    return _appended(content, found.rdf, f'<rdf:Description xmlns:rdf="{_RDF}" rdf:about="">{added}</rdf:Description>')


def _find(content: bytes, property: str) -> _Found:
    try:
        content.decode()
    except UnicodeDecodeError:
        raise ImageError("not XMP in UTF-8") from None
    found, open_elements = _Found(), list[tuple[str, _Place]]()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    text: list[str] = []

    def start(name: str, _: object) -> None:
        place = _Place(parser.CurrentByteIndex)
        above = [element for element, _ in open_elements]
        if name == f"{_RDF} RDF":
            found.rdf = found.rdf or place
        elif above[-1:] == [f"{_RDF} RDF"] and name == f"{_RDF} Description":
            found.description = found.description or place
        elif above[-2:] == [f"{_RDF} RDF", f"{_RDF} Description"] and name == property:
            found.holder = found.holder or place
        elif above[-1:] == [property] and name in (f"{_RDF} Bag", f"{_RDF} Seq"):
            found.bag = found.bag or place
        open_elements.append((name, place))
        text.clear()

    def end(name: str) -> None:
        _, place = open_elements.pop()
        place.end = parser.CurrentByteIndex
        if name == f"{_RDF} li" and property in [element for element, _ in open_elements]:
            found.words.append("".join(text))

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    try:
        parser.Parse(content, True)
    except expat.ExpatError as exc:
        raise ImageError(f"not XMP that can be read: {exc}") from exc
    return found


def _appended(content: bytes, place: _Place, added: str) -> bytes:
    """Return the content with something added at the end of an element."""
    tag = _TAG.match(content, place.start)
    assert tag is not None  # since a parser has found one there
    if not tag[0].endswith(b"/>"):
        return content[: place.end] + added.encode() + content[place.end :]
    opened = tag[0].removesuffix(b"/>").rstrip() + b">"
    return b"".join([content[: place.start], opened, added.encode(), b"</", tag[1], b">", content[tag.end() :]])


def _clean(word: str) -> str:
    """Return a keyword without what XML can't hold."""
    return re.sub("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", word)
