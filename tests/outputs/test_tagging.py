"""Keywords beside pictures and in them: what exiv2 reads, what stays as it was, and what an undo restores."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from clipcls.errors import ImageError, UsageError
from clipcls.outputs.tag import in_file, sidecar, tag
from clipcls.outputs.tag.keywords import Keyword, keywords_of
from clipcls.outputs.tag.log import Change, read_changes
from clipcls.outputs.tag.tag import Tagger, open_log, undo
from clipcls.records import Answer, Prediction, ScoredLabel

exiv2: Any = pytest.importorskip("exiv2")

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
CAT, ODD = Keyword("cat", "animal|cat"), Keyword("Bär & <Hund>", "animal|Bär & <Hund>")
FOREIGN = b"""<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x='adobe:ns:meta/' x:xmptk="XMP Core > 4.4"><!-- by hand -->
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:d="http://purl.org/dc/elements/1.1/" xmlns:darktable="http://darktable.sf.net/"
    darktable:history_end="4">
   <d:subject><rdf:Bag><rdf:li>holiday</rdf:li><rdf:li>cat</rdf:li></rdf:Bag></d:subject>
   <darktable:history><rdf:Seq/></darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def read(content: bytes) -> dict[str, Any]:
    """All metadata, as exiv2 reads them."""
    picture = exiv2.ImageFactory.open(content)
    picture.readMetadata()
    found: dict[str, Any] = {}
    for data in (picture.exifData(), picture.iptcData(), picture.xmpData()):
        for datum in data:
            is_list = isinstance(datum.value(), exiv2.XmpArrayValue)
            value = [str(each) for each in datum.value()] if is_list else str(datum.value())
            found[datum.key()] = found[datum.key()] + ", " + value if datum.key() in found and not is_list else value
    return found


def read_sidecar(content: bytes) -> dict[str, Any]:
    return {key: value for key, value in read(content).items() if isinstance(value, list)}


def picture(name: str) -> bytes:
    """A picture with metadata of its own."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010F], exif[0x013B] = "Camera", "Photographer"
    content = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name, name.upper())
    Image.fromarray(pixels).save(content, kind, exif=exif, icc_profile=SRGB)
    image = exiv2.ImageFactory.open(content.getvalue())
    image.readMetadata()
    image.xmpData()["Xmp.dc.subject"] = exiv2.XmpArrayValue(["holiday"], exiv2.TypeId.xmpBag)
    image.xmpData()["Xmp.dc.creator"] = exiv2.XmpArrayValue(["Me"], exiv2.TypeId.xmpSeq)
    image.writeMetadata()
    file = image.io()
    file.open()
    return bytes(file.mmap())


def pixels_of(content: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(content)))


@pytest.mark.parametrize("name", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("write", ["xmp", "exif"])
def test_pixels_and_foreign_metadata_stay(name: str, write: in_file.Write) -> None:
    before = picture(name)
    after = in_file.with_keywords(before, [CAT, ODD], write, f".{name}")
    assert np.array_equal(pixels_of(before), pixels_of(after))
    old, new = read(before), read(after)
    added = {key: new[key] for key in new if new[key] != old.get(key) and "Offset" not in key}
    if write == "exif":
        raw = bytes(map(int, added.pop("Exif.Image.XPKeywords").split()))
        assert raw.decode("utf-16-le") == "cat;Bär & <Hund>\0"
    else:
        assert added.pop("Xmp.dc.subject") == ["holiday", "cat", "Bär & <Hund>"]
        assert added.pop("Xmp.lr.hierarchicalSubject") == ["animal|cat", "animal|Bär & <Hund>"]
        if name == "jpg":
            assert added.pop("Iptc.Application2.Keywords") == "cat, Bär & <Hund>"
            assert added.pop("Iptc.Envelope.CharacterSet") == "\x1b%G"
    assert {
        key for key in added if not key.startswith(("Exif.Image.Strip", "Exif.Image.ExifTag", "Exif.Image.XMLPacket"))
    } == set()
    assert old.keys() <= new.keys() and new["Exif.Image.Artist"] == "Photographer"
    assert in_file.with_keywords(after, [ODD, CAT], write, f".{name}") == after


def test_name_that_does_not_fit_the_content_and_what_is_no_picture() -> None:
    with pytest.raises(ImageError, match="it is image/png, and its name says image/jpeg"):
        in_file.with_keywords(picture("png"), [CAT], "xmp", ".jpg")
    with pytest.raises(ImageError, match="its metadata can't be written"):
        in_file.with_keywords(b"no picture", [CAT], "xmp", ".jpg")


def test_new_sidecar() -> None:
    content = sidecar.with_keywords(None, [CAT, ODD])
    assert read_sidecar(content) == {
        "Xmp.dc.subject": ["cat", "Bär & <Hund>"],
        "Xmp.lr.hierarchicalSubject": ["animal|cat", "animal|Bär & <Hund>"],
    }
    assert sidecar.with_keywords(content, [ODD]) == content


def test_sidecar_of_another_program_is_edited() -> None:
    content = sidecar.with_keywords(FOREIGN, [CAT, ODD])
    assert read_sidecar(content)["Xmp.dc.subject"] == ["holiday", "cat", "Bär & <Hund>"]
    assert read_sidecar(content)["Xmp.lr.hierarchicalSubject"] == ["animal|cat", "animal|Bär & <Hund>"]
    rest = re.sub(b"<lr:hierarchicalSubject .*</lr:hierarchicalSubject>|<rdf:li [^>]*>B.*?</rdf:li>", b"", content)
    assert rest == FOREIGN
    attribute = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="%s"/></x:xmpmeta>' % sidecar._RDF.encode()
    assert read_sidecar(sidecar.with_keywords(attribute, [CAT]))["Xmp.dc.subject"] == ["cat"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<a/>", "XML, but no XMP"),
        (b"", "not XMP that can be read"),
        (b"\xff\xfe<\0a\0", "not XMP in UTF-8"),
        (FOREIGN.replace(b"<rdf:Bag>", b"").replace(b"</rdf:Bag>", b""), "aren't in a list"),
    ],
)
def test_sidecar_that_cannot_be_edited(content: bytes, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        sidecar.with_keywords(content, [ODD])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of all sorts, one with a sidecar."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("jpg", "png", "webp", "tif"):
        (folder / f"a.{name}").write_bytes(picture(name))
    for name in ("a.heic", "a.nef"):
        (folder / name).write_bytes(b"not looked at")
    (folder / "a.nef.xmp").write_bytes(FOREIGN)
    return folder


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    # of a file that is there; new ones show by their names
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize("write", ["sidecar", "xmp", "exif"])
def test_undo_restores_every_byte(photos: Path, tmp_path: Path, write: in_file.Write) -> None:
    before, tagger = contents(photos), Tagger(write)
    log = tmp_path / "log.jsonl"
    for words in ((CAT,), (CAT, ODD)):  # two runs, the second of which adds
        with open_log(log) as file:
            pictures = [path for path in sorted(photos.iterdir()) if path.suffix != ".xmp"]
            assert all(tagger.tag(str(path), words, file) for path in pictures)
    after = contents(photos)
    beside = {"a.heic.xmp", "a.nef.xmp"}
    assert set(after) == {*before, *beside} if write != "sidecar" else {"a.jpg.xmp", *beside} < set(after)
    for name in ("a.heic", "a.nef", *(("a.jpg",) if write == "sidecar" else ())):
        assert after[name] == before[name]
    assert [why for _, why in undo(log)] == [None] * 12
    assert contents(photos) == before
    assert not log.exists()


def test_killed_run_is_undone_and_what_changed_since_stays(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, log = contents(photos), tmp_path / "log.jsonl"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), open_log(log) as file:
        Tagger().tag(str(photos / "a.jpg"), (CAT,), file)

        def killed(*_: object) -> None:
            (photos / ".a.nef.xmp.part").write_bytes(b"half")
            raise KeyboardInterrupt

        patched.setattr(tag, "write_atomically", killed)
        Tagger().tag(str(photos / "a.nef"), (ODD,), file)
    with log.open("ab") as torn:
        torn.write(b'{"clipcls_tag": 1, "pa')
    assert len(read_changes(log)) == 2
    with open_log(log) as file:
        Tagger().tag(str(photos / "a.png"), (CAT,), file)
    (photos / "a.png.xmp").write_bytes(b"edited")
    assert [(path.name, why) for path, why in undo(log)] == [
        ("a.png.xmp", "it has been changed since"),
        ("a.nef.xmp", None),
        ("a.jpg.xmp", None),
    ]
    assert contents(photos).keys() == {*before, "a.png.xmp"}
    assert [change.path.name for change in read_changes(log)] == ["a.png.xmp"]
    with pytest.raises(UsageError, match="no such file"):
        list(undo(tmp_path / "nowhere"))
    log.write_text("{}\n")
    with pytest.raises(UsageError, match="line 1: not the record of `clipcls tag`"):
        list(undo(log))


@pytest.mark.parametrize(
    ("old", "new"), [(b"", b"abc"), (b"aaa", b"aaaa"), (b"abcabc", b"abc"), (b"RIFF1xyz", b"RIFF2xyz--"), (b"a", b"a")]
)
def test_change_holds_what_it_takes_to_go_back(tmp_path: Path, old: bytes, new: bytes) -> None:
    (tmp_path / "a").write_bytes(old)
    change = Change.of(tmp_path / "a", old, new)
    (tmp_path / "log").write_bytes(change.line())
    assert read_changes(tmp_path / "log") == [change]
    assert change.restored(new) == old
    with pytest.raises(ImageError, match="changed since"):
        change.restored(new + b"!")


def test_keywords_are_what_was_answered() -> None:
    top = (ScoredLabel("cat", 0.9, 0.3), ScoredLabel("dog", 0.8, 0.3))
    row = Prediction("a.jpg", "cat", 0.9, 0.3, top)
    assert keywords_of(row, None) == (Keyword("cat", "cat"),)
    both = keywords_of(row, {"--multi-label": True}, "AI")
    assert both == (Keyword("cat", "AI|cat"), Keyword("dog", "AI|dog"))
    assert keywords_of(Prediction("a.jpg", None, 0.1, 0.3, top), None) == ()
    answers = (("animal", Answer("cat", 0.9, 0.3, top[:1])), ("all", Answer("cat", 0.9, 0.3, top)), ("no", None))
    asked = Prediction("a.jpg", None, None, None, answers=answers)
    questions = [["animal", [], [], [], "softmax", False, None, None], ["all", [], [], [], "sigmoid", True, None, None]]
    found = keywords_of(asked, json.loads(json.dumps({"--questions": questions})))
    assert [word.path for word in found] == ["animal|cat", "all|cat", "all|dog"]


def test_sidecars_are_named_as_asked(tmp_path: Path) -> None:
    assert sidecar.sidecar_of(tmp_path / "a.b.jpg", "full").name == "a.b.jpg.xmp"
    assert sidecar.sidecar_of(tmp_path / "a.b.jpg", "stem").name == "a.b.xmp"
