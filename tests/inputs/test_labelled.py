"""Labelled pictures read from folders, tables and shards, with labels or captions, and their classes among labels."""

import gzip
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clipcls.embed.cache.store import Cache
from clipcls.errors import UsageError
from clipcls.evaluate.match_labels import label_indices, repeated_paths
from clipcls.inputs.contents import open_content
from clipcls.inputs.labelled.caption_shards import read_samples
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.labelled.read import read_captioned, read_for_retrieval, read_truth
from clipcls.inputs.stores import open_named
from clipcls.inputs.tables import read_embedded
from clipcls.labels.label_files import make_label
from clipcls.records import Address, ImageRef, Stored
from conftest import FakeEncoder, embed_images
from labelled import NAMES, PICTURE, write_shards, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders; nothing in them is opened."""
    for name in ("cat/1.jpg", "cat/more/2.png", "hot_dog/3.jpg", "cat/notes.txt", ".hidden/4.jpg"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "data"


@pytest.fixture
def store() -> Iterator[str]:
    """An empty store in memory."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield "memory://"
    MemoryFileSystem.store.clear()


def found(truth: Truth, root: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(str(Path(example.image.path).relative_to(root)), example.labels) for example in truth.examples]


def table(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------- folders


def test_read_truth_takes_class_folders_as_labels(folder: Path) -> None:
    truth = read_truth([str(folder)])
    assert found(truth, folder) == [
        ("cat/1.jpg", ("cat",)),
        ("cat/more/2.png", ("cat",)),
        ("hot_dog/3.jpg", ("hot_dog",)),
    ]
    assert truth.classnames == ("cat", "hot_dog")
    assert not truth.problems and not truth.multi_label


def test_class_folders_tell_of_empty_classes_and_of_pictures_in_none(folder: Path) -> None:
    (folder / "bird").mkdir()
    for name in ("lost.png", "README.txt"):
        (folder / name).touch()
    truth = read_truth([str(folder)])
    assert truth.classnames == ("bird", "cat", "hot_dog")
    assert [problem.removeprefix(f"{folder}/") for problem in truth.problems] == [
        "lost.png: lies beside the class folders, so it is in no class",
        "bird: a class without pictures",
    ]
    (folder / "lost.tar").touch()
    captioned = read_captioned(str(folder))
    assert [example.captions for example in captioned.examples] == [("cat",), ("cat",), ("hot dog",)]
    assert [example.image for example in captioned.examples] == [example.image for example in truth.examples]
    assert [problem for problem in captioned.problems if "lost.tar" not in problem] == list(truth.problems)


def test_class_folders_in_a_store_are_read_as_those_on_disk(store: str, folder: Path) -> None:
    fsspec.filesystem("memory").put(str(folder), "/pictures", recursive=True)
    truth, stored = read_truth([str(folder)]), read_truth([f"{store}pictures/"])
    names = [example.image.path.replace(f"{store}pictures", str(folder)) for example in stored.examples]
    assert names == [example.image.path for example in truth.examples]
    assert [example.labels for example in stored.examples] == [example.labels for example in truth.examples]
    assert all(isinstance(example.image.content, Stored) for example in stored.examples)
    with pytest.raises(UsageError, match=r"memory://nothing: the folder can't be read: no such file"):
        read_truth([f"{store}nothing"])


@pytest.mark.parametrize("names", [[], ["1.jpg", "2.jpg"], ["cat/notes.txt"]])
def test_read_truth_refuses_a_folder_without_classes(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"no class folder with pictures.*cat/1\.jpg"):
        read_truth([str(tmp_path)])


def test_folders_without_a_name_in_words_are_refused(tmp_path: Path) -> None:
    for name in ("_", "cat"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    with pytest.raises(UsageError, match=r"/_: Empty label: '_' has nothing but spaces and underscores. Rename"):
        read_truth([str(tmp_path)])


def test_folders_of_programs_are_no_classes(tmp_path: Path) -> None:
    """photoprism#1543"""
    for name in ("@eaDir", "__pycache__", "cat", "cat/@eaDir"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").touch()
    truth = read_truth([str(tmp_path)])
    assert truth.classnames == ("cat",)
    assert len(truth.examples) == 1


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "set.parquet"
    folder.mkdir()
    for number, label in enumerate(("dog", "cat")):
        table = arrow.table({"path": [f"{number}.jpg"], "label": [label]})
        parquet.write_table(table, folder / f"part-{number}.parquet")
    truth = read_truth([str(folder)])
    assert [example.labels for example in truth.examples] == [("dog",), ("cat",)]
    assert truth.classnames == ("cat", "dog")
    (tmp_path / "empty.parquet").mkdir()
    with pytest.raises(UsageError, match=r"a folder without a \.parquet file"):
        read_truth([str(tmp_path / "empty.parquet")])


def test_read_truth_refuses_the_parts_of_a_data_set(folder: Path, tmp_path: Path) -> None:
    for part in ("train", "Test"):
        (tmp_path / "set" / part / "cat").mkdir(parents=True)
        (tmp_path / "set" / part / "cat" / "1.jpg").touch()
    with pytest.raises(UsageError, match="parts of a data set"):
        read_truth([str(tmp_path / "set")])
    assert read_truth([str(tmp_path / "set" / "train")]).classnames == ("cat",)


def test_read_truth_refuses_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()
    with pytest.raises(UsageError, match="no such file"):
        read_truth([str(tmp_path / "nothing")])
    with pytest.raises(UsageError, match="neither a folder"):
        read_truth([str(tmp_path / "data.txt")])


# ------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label,more\nx/1.jpg,cat,9\n/abs/2.jpg, dog ,9\n"),
        ("a.csv", "\ufefflabel,image\r\ncat,x/1.jpg\r\n\r\ndog,/abs/2.jpg\r\n"),
        ("a.tsv", "filepath\tclass\tkey\nx/1.jpg\tcat\t1\n/abs/2.jpg\tdog\t2\n"),
        ("a.jsonl", '\ufeff{"url": "", "path": "x/1.jpg", "label": "cat"}\n\n{"label": "dog", "path": "/abs/2.jpg"}\n'),
    ],
)
def test_tables_serve_those_who_want_labels_and_those_who_want_captions(tmp_path: Path, name: str, text: str) -> None:
    path = str(table(tmp_path / name, text))
    images = [ImageRef(str(tmp_path / "x/1.jpg")), ImageRef("/abs/2.jpg")]
    truth = read_truth([path])
    assert truth.examples == (Example(images[0], ("cat",)), Example(images[1], ("dog",)))
    assert truth.classnames == ("cat", "dog")
    captioned = [Example(images[0], ("cat",), ("cat",)), Example(images[1], ("dog",), ("dog",))]
    assert list(read_captioned(path).examples) == captioned


def test_tables_call_pictures_beside_them_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(tmp_path / "a.csv", "path,label\n./x//1.jpg,cat\n")
    monkeypatch.chdir(tmp_path)
    assert read_truth(["a.csv"]).examples[0].image.path == "./x//1.jpg"
    assert read_captioned("a.csv").examples[0].image.path == "x/1.jpg"  # one picture has one name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'path,labels\n1,cat;dog\n2,\n3,"[""a;b"", ""dog""]"\n4, dog ; dog \n'),
        ("a.tsv", 'path\tlabels\n1\tcat;dog\n2\t[]\n3\t["a;b", "dog"]\n4\tdog\n'),
        (
            "a.jsonl",
            "".join(
                json.dumps({"path": str(number), "labels": labels}) + "\n"
                for number, labels in enumerate([["cat", "dog"], [], ["a;b", "dog"], ["dog", "dog"]], 1)
            ),
        ),
    ],
)
def test_tables_hold_several_labels(tmp_path: Path, name: str, text: str) -> None:
    truth = read_truth([str(table(tmp_path / name, text))])
    assert truth.multi_label
    assert [example.labels for example in truth.examples] == [("cat", "dog"), (), ("a;b", "dog"), ("dog",)]
    assert truth.classnames == ("a;b", "cat", "dog")


def test_tables_keep_numbers_that_are_labels(tmp_path: Path) -> None:
    truth = read_truth([str(table(tmp_path / "a.jsonl", '{"path": "1", "label": 7}\n'))])
    assert truth.examples[0].labels == ("7",)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "caption2,image,label,caption\na pet,a.png,cat,a cat\n,sub/b.png,dog,a dog\n"),
        ("a.tsv", "image\tcaption2\tcaption3\na.png\ta pet\ta cat\nsub/b.png\ta dog\t\n"),
        (
            "a.jsonl",
            '{"image": "a.png", "text": "x", "caption": "a pet", "captions": ["a cat", 7]}\n'
            '{"image": "sub/b.png", "captions": ["a dog"]}\n',
        ),
    ],
)
def test_captions_stand_in_columns_and_lists(tmp_path: Path, name: str, text: str) -> None:
    truth = read_captioned(str(table(tmp_path / name, text)))
    assert [example.captions for example in truth.examples] == [("a pet", "a cat"), ("a dog",)]
    assert [example.image.path for example in truth.examples] == [str(tmp_path / "a.png"), str(tmp_path / "sub/b.png")]


@pytest.mark.parametrize("column", ["text", "title"])
def test_captions_stand_under_the_names_of_other_tools(tmp_path: Path, column: str) -> None:
    path = table(tmp_path / "a.csv", f"filepath,{column},label\na.png,a cat,cat\n")
    assert read_captioned(str(path)).examples[0].captions == ("a cat",)


LINES = [
    '{"path": "1", "label": "cat"}',
    "not json",
    "[1]",
    '{"label": "cat"}',
    '{"path": "2", "label": null}',
    '{"path": "3", "label": true}',
    '{"path": " ", "label": "cat"}',
    '{"path": "\\ud800", "label": "cat"}',
    '{"path": "4", "label": "\\ud800"}',
    "[" * 200_000,
]
PROBLEMS = [
    "2: not JSON",
    "3: not a JSON object",
    "4: nothing in the column path",
    "5: no label",
    "6: no label",
    "7: nothing in the column path",
    "8: no possible file name in the column path",
    "9: a label isn't valid Unicode",
    "10: not JSON",
]


@pytest.mark.parametrize("kind", ["label", "caption"])
def test_tables_tell_of_rows_that_they_leave_out(tmp_path: Path, kind: str) -> None:
    path = str(table(tmp_path / "a.jsonl", "\n".join(LINES).replace("label", kind)))
    truth = read_truth([path]) if kind == "label" else read_captioned(path)
    assert len(truth.examples) == 1
    for problem, expected in zip(truth.problems, PROBLEMS, strict=True):
        assert problem.startswith(f"{path}, line {expected.replace('label', kind)}")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_tables_in_another_encoding_are_refused(tmp_path: Path, name: str) -> None:
    record = '{"path": "1", "caption": "café", "label": "café"}\n'
    text = record if name == "a.jsonl" else "path,caption,label\n1,café,café\n"
    for encoding, message in (("utf-16-le", "it is in UTF-16; save it as UTF-8"), ("latin-1", "not UTF-8; save the")):
        mark = "\ufeff" if encoding == "utf-16-le" else ""
        (tmp_path / name).write_bytes((mark + text).encode(encoding))
        for read in (lambda path: read_truth([path]), read_captioned):
            with pytest.raises(UsageError, match=rf"{name}.*: {message}"):
                read(str(tmp_path / name))


NO_LABELS = r"no column of labels \(labels, label, class, caption\)"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,text\n1,cat\n", NO_LABELS + r"; there are: image, text\."),
        ("a.csv", "file,more\n1,2\n", r"no column of pictures \(path, image, .* and no of labels"),
        ("a.csv", "path;label\n1;cat\n", r"there are: path;label\. Columns end in a comma in \.csv"),
        ("a.csv", "path\tlabel\n1\tcat\n", r"Columns end in a comma in \.csv"),
        ("a.csv", "path,image,label\n1,2,cat\n", "path and image may both be the column of the pictures"),
        ("a.csv", "path,label,label\n1,cat,dog\n", "several columns label"),
        ("a.csv", "", "no usable row$"),
        ("a.csv", "path,label\n", "no usable row$"),
        ("a.csv", "path,label\n1,\n", r"no usable row; the first problem: .*a\.csv, line 2: no label"),
        ("a.jsonl", '{"path": "1"}\n', NO_LABELS),
        ("a.jsonl", "{\n", r"no usable row; the first problem: .*a\.jsonl, line 1: not JSON"),
    ],
)
def test_tables_without_labels_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = str(table(tmp_path / name, text))
    with pytest.raises(UsageError, match=message):
        read_truth([path])
    if "label" not in message:  # what is wrong for one is wrong for the other
        with pytest.raises(UsageError, match=message):
            read_captioned(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("image,caption,captions", r"a column captions, .*; name it caption if .* caption2"),
        ("image,captions", "a column captions"),
        ("image,tags", r"no column of captions \(caption, text, title\) or of labels \(.*there are: image, tags"),
    ],
)
def test_tables_without_captions_are_refused(tmp_path: Path, columns: str, message: str) -> None:
    with pytest.raises(UsageError, match=rf"a\.csv: {message}"):
        read_captioned(str(table(tmp_path / "a.csv", f"{columns}\na.png,x,y\n")))


def test_addresses_in_tables_are_fetched_where_that_is_allowed(tmp_path: Path) -> None:
    url = "https://x.org/1.jpg"
    path = str(table(tmp_path / "a.csv", f"path,label\n{url},cat\nhttp://x.org/2.tar,cat\n2.jpg,cat\n"))
    assert read_truth([path], allow_urls=True).examples[0].image == ImageRef(url, content=Address(url))
    errors = [example.image.error for example in read_truth([path]).examples]
    assert errors[0] == "an address; --allow-urls has it fetched"
    assert errors[1] == "a shard on the web, which has to be downloaded first" and errors[2] is None
    captioned = read_captioned(path)
    assert [example.image.path for example in captioned.examples] == [str(tmp_path / "2.jpg")]
    assert captioned.problems[0].startswith(f"{url}: an address on the web; pictures to train on have to be files")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_in_a_store_name_what_lies_beside_them(store: str, tmp_path: Path, suffix: str) -> None:
    rows = {"image": ["a/1.jpg", "/abs.jpg", "memory://b/2.jpg", "ftp://host/3.jpg"], "label": ["cat"] * 4}
    write_rows(tmp_path / f"t.{suffix}", rows)
    fsspec.filesystem("memory").put(str(tmp_path / f"t.{suffix}"), f"/data/t.{suffix}")
    images = [example.image for example in read_truth([f"{store}data/t.{suffix}"]).examples]
    assert [image.path for image in images] == [f"{store}data/a/1.jpg", "/abs.jpg", *rows["image"][2:]]
    assert [image.content for image in images] == [Stored(), None, Stored(), None]
    assert str(images[3].error).startswith("a ftp:// address in a list or a table")
    assert len(read_captioned(f"{store}data/t.{suffix}").problems) == 1


# ------------------------------------------------------------------------------------------- Parquet


def write_rows(path: Path, rows: dict[str, Any], metadata: dict[str, str] | None = None) -> str:
    """A table of columns, as CSV or Parquet."""
    if path.suffix == ".csv":
        lines = [",".join(rows), *(",".join(map(str, row)) for row in zip(*rows.values(), strict=True))]
        path.write_text("\n".join(lines))
        return str(path)
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table(rows).replace_schema_metadata(metadata), path, row_group_size=2)
    return str(path)


@pytest.mark.parametrize("kind", ["binary", "struct"])
def test_parquet_gives_its_own_pictures_when_they_are_opened(tmp_path: Path, kind: str) -> None:
    data = [b"0", b"1", None, b"3", b"4"]
    column = data if kind == "binary" else [item and {"bytes": item, "path": "x.jpg"} for item in data]
    path = write_rows(tmp_path / "a.parquet", {"image": column, "label": ["cat", "dog", "cat", None, "dog"]})
    truth = read_truth([path])
    assert [example.labels for example in truth.examples] == [("cat",), ("dog",), ("cat",), ("dog",)]
    assert truth.problems == (f"{path}, row 3: no label",)
    images = [example.image for example in truth.examples]
    assert [image.path for image in images] == [f"{path}/{row}" for row in (0, 1, 2, 4)]
    beside = ImageRef("b.jpg")
    opened = list(read_embedded([images[0], images[3], beside, images[1], images[1], images[2], images[0]]))
    assert [image.content for image in opened] == [b"0", b"4", None, b"1", b"1", images[2].content and None, b"0"]
    assert opened[5].error == "nothing in the column image"
    with open_content(images[3]) as content:
        assert content.file.read() == b"4"
    os.truncate(path, 10)
    assert next(read_embedded(images)).error


def test_parquet_pictures_are_embedded_as_those_of_files_are(colours: Path) -> None:
    files = [colours / f"{name}.png" for name in FakeEncoder.COLOURS]
    data = [{"bytes": path.read_bytes(), "path": None} for path in files]
    path = write_rows(colours / "a.parquet", {"image": data, "label": list(FakeEncoder.COLOURS)})
    images = [example.image for example in read_truth([path]).examples]
    (batch,) = embed_images(images, FakeEncoder(), Cache(None))
    (expected,) = embed_images([ImageRef(str(path)) for path in files], FakeEncoder(), Cache(None))
    assert batch.errors == (None,) * 3 and [image.path for image in batch.images] == [image.path for image in images]
    np.testing.assert_array_equal(batch.features, expected.features)


@pytest.mark.parametrize("kind", ["text", "struct", "typed"])
def test_parquet_names_files(tmp_path: Path, kind: str) -> None:
    paths = ["a.png", "/b.png", ""]
    pa = pytest.importorskip("pyarrow")
    column: Any = paths if kind == "text" else [{"bytes": None, "path": path} for path in paths]
    if kind == "typed":
        column = pa.array(column, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    path = write_rows(tmp_path / "a.parquet", {"image": column, "captions": [["a cat", "a pet"], ["a dog"], ["x"]]})
    truth = read_captioned(path)
    assert [example.image.path for example in truth.examples] == [str(tmp_path / "a.png"), "/b.png"]
    assert [example.captions for example in truth.examples] == [("a cat", "a pet"), ("a dog",)]
    assert truth.problems == (f"{path}, row 2: nothing in the column image",)


@pytest.mark.parametrize("several", [False, True])
def test_parquet_numbers_stand_for_the_names_in_its_metadata(tmp_path: Path, several: bool) -> None:
    feature: dict[str, Any] = {"names": ["cat", "hot dog"], "_type": "ClassLabel"}
    features = {"labels": {"feature": feature, "_type": "List"}} if several else {"label": feature}
    values = [[1], [0, 1], []] if several else [1, 0, -1]
    rows = {"image": ["a", "b", "c"], "labels" if several else "label": values}
    path = write_rows(tmp_path / "a.parquet", rows, {"huggingface": json.dumps({"info": {"features": features}})})
    truth = read_truth([path])
    expected = [("hot dog",), ("cat", "hot dog"), ()] if several else [("hot dog",), ("cat",)]
    assert [example.labels for example in truth.examples] == expected
    assert truth.multi_label == several


def test_parquet_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError, match=r"a\.parquet: the table can't be read: "):
        read_truth([str(tmp_path / "a.parquet")])
    path = write_rows(tmp_path / "b.parquet", {"image": [1, 2], "label": ["cat", "dog"]})
    with pytest.raises(UsageError, match="the column image holds int64; needed are paths"):
        read_captioned(path)


# ------------------------------------------------------------------------------------------- classes and labels


def test_label_indices_finds_names_however_they_are_written() -> None:
    labels = [make_label("Cat"), make_label("hot dog"), make_label("couch", ["sofa"])]
    names = ["cat", "hot_dog", "Sofa", "HOT  DOG", "bird"]
    assert label_indices(names, labels) == {"cat": 0, "hot_dog": 1, "Sofa": 2, "HOT  DOG": 1}


def test_label_indices_prefers_the_exact_name() -> None:
    labels = [make_label("couch", ["Sofa bed"]), make_label("sofa")]
    assert label_indices(["sofa", "sofa_bed"], labels) == {"sofa": 1, "sofa_bed": 0}


def test_repeated_paths_tells_whether_labels_differ(tmp_path: Path) -> None:
    rows = [("a", "cat"), ("b", "cat"), (str(Path.cwd() / "a"), "cat"), ("./b", "dog"), ("c", "cat")]
    messages = repeated_paths([Example(ImageRef(path), (label,)) for path, label in rows])
    assert [message.rpartition("/")[2] for message in messages] == ["a: 2 times", "b: 2 times, with different labels"]


# ------------------------------------------------------------------------------------------- shards


def asked(folder: Path, *names: str) -> list[str]:
    return [str(folder / name) for name in names]


@pytest.mark.parametrize("names", [[""], ["test"], ["test/{0..1}.tar"], ["test/*.tar"], ["test/0.tar", "test/1.tar"]])
def test_read_truth_takes_shards_of_clip_benchmark(tmp_path: Path, names: list[str]) -> None:
    folder = write_shards(tmp_path / "data")
    truth = read_truth(asked(folder, *names))
    assert [example.labels for example in truth.examples] == [(NAMES[number % 3],) for number in range(12)]
    assert truth.examples[7].image.path == str(folder / "test/1.tar/s0000007.jpg")
    assert truth.classnames == tuple(NAMES)
    assert truth.templates_file == str(folder / "zeroshot_classification_templates.txt")
    assert truth.classnames_file == str(folder / "classnames.txt")
    with open_content(truth.examples[7].image) as content:
        assert content.file.read() == PICTURE


def test_read_truth_takes_shards_that_nothing_counts_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (2, 10, 1):
        write_tar(tmp_path / f"{number}.tar", {"a.png": PICTURE, "a.cls": b"0"})
    truth = read_truth([str(tmp_path)], ["cat"])
    assert [Path(example.image.path).parent.name for example in truth.examples] == ["1.tar", "2.tar", "10.tar"]


def test_read_truth_takes_numbers_for_the_labels_where_no_file_names_them(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    (folder / "classnames.txt").unlink()
    truth = read_truth([str(folder)], ["a", "b", "c"])
    assert [example.labels for example in truth.examples[:3]] == [("a",), ("b",), ("c",)]
    with pytest.raises(UsageError, match=r"no classnames\.txt.*Give --labels"):
        read_truth([str(folder)])
    with pytest.raises(UsageError, match="class 2, but there are 2 names"):
        read_truth([str(folder)], ["a", "b"])


def test_read_truth_takes_shards_with_several_labels(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for number, flags in enumerate([[1, 0, 1], [0, 0, 0]]):
        buffer = io.BytesIO()
        np.save(buffer, np.array(flags))
        members |= {f"{number}.npy": buffer.getvalue(), f"{number}.webp": PICTURE}
    folder = write_shards(tmp_path, ())
    write_tar(folder / "test/0.tar", members)
    (folder / "dataset_type.txt").write_text("multilabel\n")
    truth = read_truth([str(folder)])
    assert truth.multi_label
    assert [example.labels for example in truth.examples] == [("cat", "truck"), ()]


def test_read_truth_tells_of_broken_and_missing_shards_and_of_pictures_without_a_class(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    (folder / "test/nshards.txt").write_text("3")
    whole = (folder / "test/1.tar").read_bytes()
    (folder / "test/1.tar").write_bytes(whole[: whole.index(b"s0000008.jpg") + 700])
    write_tar(folder / "test/0.tar", {"a.jpg": PICTURE, "b.cls": b"1", "b.jpg": PICTURE, "c/b.jpg": PICTURE})
    truth = read_truth([str(folder)])
    good = [example for example in truth.examples if example.image.error is None]
    assert [Path(example.image.path).name for example in good] == ["b.jpg", "s0000006.jpg", "s0000007.jpg"]
    assert [problem.partition(": ")[2] for problem in truth.problems] == ["no class", "no class"]
    bad = {Path(example.image.path).name: example for example in truth.examples if example.image.error is not None}
    assert bad.keys() == {"1.tar", "2.tar"}
    assert all(not example.labels for example in bad.values())


@pytest.mark.parametrize(
    ("members", "found"),
    [
        # names with dots, which webdataset cuts at the first: webdataset#237
        (["a.1.jpg", "a.1.cls=0", "a.2.jpg", "a.2.cls=1"], {"a.1.jpg": "cat", "a.2.jpg": "hot dog"}),
        # masks, webdataset#288
        (["a.mask.png", "a.jpg", "a.cls=1", "b.jpg", "b.seg.png", "b.cls=0"], {"a.jpg": "hot dog", "b.jpg": "cat"}),
        (["a.left.jpg", "a.cls=1"], {"a.left.jpg": "hot dog"}),
        (["a.jpg", "a.webp", "a.cls=1"], {"a.webp": "hot dog"}),
        (["a.1.jpg", "a.2.jpg", "a.cls=1", "b.jpg", "b.cls=0"], {"b.jpg": "cat"}),
        (["a.1.jpg", "a.2.jpg", "a.2.cls=1"], {"a.2.jpg": "hot dog"}),
    ],
)
def test_a_class_belongs_to_the_picture_of_its_name(tmp_path: Path, members: list[str], found: dict[str, str]) -> None:
    pairs = (member.partition("=")[::2] for member in members)
    write_tar(tmp_path / "0.tar", {name: data.encode() if data else PICTURE for name, data in pairs})
    truth = read_truth([str(tmp_path / "0.tar")], NAMES)
    assert {Path(example.image.path).name: example.labels[0] for example in truth.examples} == found
    pictures = sum("=" not in member for member in members)
    assert (len(found) < pictures) == bool(truth.problems)


def test_equal_class_names_keep_their_numbers(tmp_path: Path) -> None:
    folder = write_shards(tmp_path)
    (folder / "classnames.txt").write_text("missile\nMissile\ntruck\n")
    truth = read_truth([str(folder)])
    assert truth.classnames == ("missile", "Missile [1]", "truck")
    assert [label.texts for label in truth.labels] == [("missile",), ("Missile",), ("truck",)]
    assert [example.labels for example in truth.examples[:3]] == [("missile",), ("Missile [1]",), ("truck",)]
    assert "every answer goes to the first of them, never to 'Missile [1]'" in truth.problems[0]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": PICTURE, "a.txt": b"a cat"}, "no picture with a class"),
        ({"a.jpg": PICTURE, "a.cls": b"cat"}, "isn't a number: b'cat'"),
        ({}, "no picture with a class"),
    ],
)
def test_read_truth_refuses_shards_without_classes(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_truth([str(write_tar(tmp_path / "a.tar", members))], ["cat"])


def test_read_truth_refuses_compressed_shards(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "a.tar", {"a.jpg": PICTURE, "a.cls": b"0"})
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UsageError, match="decompress it first"):
        read_truth([str(tmp_path / "a.tar.gz")], ["cat"])


# ------------------------------------------------------------------------------------------- samples


def samples_of(path: Path) -> tuple[list[Example], list[str]]:
    """The samples of a shard, and what is wrong with others."""
    problems: list[str] = []
    return list(read_samples(str(path), open_named, "r:", lambda *told: problems.append(": ".join(told)))), problems


def test_samples_take_captions_from_text_and_json(tmp_path: Path) -> None:
    record = {"caption": "a cat", "caption2": " a pet ", "captions": ["meow", None], "width": 3, "caption_en": "x"}
    members = {
        "./a/1.JPG": b"1",
        "./a/1.txt": "\ufeff a cat \n".encode(),
        "./a/1.json": json.dumps(record).encode(),
        "./a/1.cls": b"7",
        "2.json": b'{"caption": null, "captions": ["\xe7\x8c\xab"]}',
        "2.webp": b"2",
        "2.seg.png": b"no picture of its own",
        "3.txt": b"two\nlines",
        "3.json": b"[1, 2]",
        "3.avif": b"3",
    }
    path = write_tar(tmp_path / "a.tar", members)
    assert samples_of(path) == (
        [
            Example(ImageRef(f"{path}/./a/1.jpg", content=b"1"), captions=("a cat", "a pet", "meow")),
            Example(ImageRef(f"{path}/2.webp", content=b"2"), captions=("猫",)),
            Example(ImageRef(f"{path}/3.avif", content=b"3"), captions=("two\nlines",)),
        ],
        [],
    )


def test_samples_leave_out_what_is_none(tmp_path: Path) -> None:
    members = [
        *[("good.png", b"x"), ("good.txt", b"good")],
        *[("bare.png", b"x"), ("blank.png", b"x"), ("blank.txt", b" \n")],
        *[("text.txt", b"no picture"), ("latin.jpg", b"x"), ("latin.txt", b"caf\xe9")],
        *[("half.jpg", b"x"), ("half.json", b'{"caption": '), ("list.jpg", b"x"), ("list.json", b'{"captions": "x"}')],
        *[("twice.jpg", b"1"), ("twice.jpg", b"2"), ("twice.txt", b"twice")],
        *[("good.png", b"other"), ("good.txt", b"other")],
        *[("__meta__/x.json", b"{}"), ("README", b"no sample")],
    ]
    path = write_tar(tmp_path / "a.tar", members)
    rows, problems = samples_of(path)
    assert {(row.concept, row.image.content) for row in rows} == {("good", b"x"), ("twice", b"1")}
    expected = [
        "bare: no caption",
        "blank: no caption",
        "text: no picture",
        "latin: the caption can't be read: 'utf-8' codec",
        "half: the caption can't be read: Expecting value",
        "list: captions isn't a list",
        "twice.jpg: comes twice; the first is used",
        "good: other files of this sample lie further up in the shard",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(f"{path}/{start}")


def test_samples_are_never_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "unpickled"),)

    trap = dict.fromkeys(("1.pyd", "1.pkl", "1.pickle", "1.pth"), pickle.dumps(Trap()))
    rows, _ = samples_of(write_tar(tmp_path / "a.tar", {"1.jpg": b"1", "1.txt": b"one"} | trap))
    assert [row.captions for row in rows] == [("one",)]
    assert not (tmp_path / "unpickled").exists()


# ----------------------------------------------------------------------------------------- retrieval


def captions_of(truth: Truth) -> list[tuple[str, tuple[str, ...]]]:
    return [(Path(example.image.path).name, example.captions) for example in truth.examples]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,label,caption,caption2\n./1.jpg,x,a cat,\n2.jpg,,a dog,two dogs\n3.jpg,x,,\n"),
        ("a.jsonl", '{"image": "1.jpg", "text": "a cat"}\n{"image": "2.jpg", "text": "a dog"}\n{"image": "3.jpg"}\n'),
        (
            "a.jsonl",
            '{"path": "1.jpg", "captions": ["a cat"]}\n{"path": "2.jpg", "captions": ["a dog"]}\n{"path": "3"}',
        ),
    ],
)
def test_tables_give_captions_for_retrieval(tmp_path: Path, name: str, text: str) -> None:
    truth = read_for_retrieval([str(table(tmp_path / name, text))])
    assert [(path, captions[0]) for path, captions in captions_of(truth)] == [("1.jpg", "a cat"), ("2.jpg", "a dog")]
    assert truth.examples[0].image.path == str(tmp_path / "1.jpg")
    assert len(truth.problems) == 1 and truth.problems[0].endswith(" no caption")


def test_retrieval_fetches_addresses_where_that_is_allowed(tmp_path: Path) -> None:
    path = str(table(tmp_path / "a.csv", "path,caption\nhttps://x.org/1.jpg,cat\n2.jpg,dog\n"))
    assert read_for_retrieval([path], allow_urls=True).examples[0].image.content == Address("https://x.org/1.jpg")
    first, second = (example.image for example in read_for_retrieval([path]).examples)
    assert first == ImageRef("https://x.org/1.jpg", "an address; --allow-urls has it fetched") and second.error is None


@pytest.mark.parametrize("lines", [False, True])
def test_retrieval_reads_pictures_of_shards_where_they_lie(tmp_path: Path, lines: bool) -> None:
    members = {
        "1.jpg": b"one",
        "1.txt": b"a cat\n\na pet\na pet\n",
        "2.txt": b"a",
        "3.json": b'{"caption": "x"}',
        "3.png": b"3",
    }
    write_tar(tmp_path / "data" / "test" / "0.tar", members)
    (tmp_path / "data" / "test" / "nshards.txt").write_text("2")
    if lines:
        (tmp_path / "data" / "dataset_type.txt").write_text("retrieval\n")
    truth = read_for_retrieval([str(tmp_path / "data")])
    first = ("a cat", "a pet", "a pet") if lines else ("a cat\n\na pet\na pet",)
    assert captions_of(truth) == [("1.jpg", first), ("3.png", ("x",)), ("1.tar", ())]
    for example, content in zip(truth.examples, (b"one", b"3"), strict=False):
        with open_content(example.image, 100, None) as opened:
            assert opened.file.read() == content
    assert len(truth.problems) == 1 and truth.problems[0].endswith("/2: no picture")
    assert str(truth.examples[-1].image.error).startswith("can't be read to its end: ")
    shard = str(tmp_path / "data" / "test" / "0.tar")
    assert read_for_retrieval([shard]).examples == truth.examples[:2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("labels.csv", "labels, but no captions, which have columns caption, .*Leave --retrieval out"),
        ("data", "data: no captions. They are in tables .* and in shards"),
        ("data/cat/1.jpg", "no captions"),
        ("gone.csv", "no such file"),
        ("gone", "no such file"),
        ("memory://a.tar", "in a store; copy it here first"),
        (
            "classes.tar",
            "no picture with a caption in a .txt or .json beside it; the first problem: .*no caption",
        ),
    ],
)
def test_retrieval_refuses_what_has_no_captions(folder: Path, tmp_path: Path, name: str, message: str) -> None:
    table(tmp_path / "labels.csv", "path,label\n1.jpg,cat\n")
    write_tar(tmp_path / "classes.tar", {"1.jpg": b"1", "1.cls": b"0"})
    with pytest.raises(UsageError, match=message):
        read_for_retrieval([name if "://" in name else str(tmp_path / name)])


def test_tables_of_captions_point_to_retrieval_where_labels_are_wanted(tmp_path: Path) -> None:
    rows = ["path,caption", "1.jpg,a cat on a roof", "2.jpg,two dogs in a car", "3.jpg,a cat on a roof"]
    (problem,) = read_truth([str(table(tmp_path / "a.csv", "\n".join(rows)))]).problems
    assert "taken for classes" in problem and "`clipcls eval --retrieval` measures captions" in problem
    names = "path,caption\n1.jpg,cat\n2.jpg,hot dog\n"
    assert not read_truth([str(table(tmp_path / "b.csv", names))]).problems
    with pytest.raises(UsageError, match=r"no column of labels .* Captions are measured by `clipcls eval --retrieval`"):
        read_truth([str(table(tmp_path / "c.csv", "path,caption2\n1.jpg,a cat\n"))])


# ------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("label", ["label", "caption"])
def test_groups_are_the_cells_of_further_columns(tmp_path: Path, suffix: str, label: str) -> None:
    cells: dict[str, list[Any]] = {"path": ["a.png", "b.png", "c.png", "d.png"], label: ["cat", "dog", "cat", "dog"]}
    cells |= {"style": ["flat", " ink ", None, ""], "caption style": ["1", "2", "3", "4"]}
    path = tmp_path / f"t.{suffix}"
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    if suffix == "parquet":
        write_rows(path, cells)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join([",".join(cells), *(",".join(v or "" for v in row.values()) for row in rows)]))
    columns = ("caption style", "style")
    for truth in (
        read_truth([str(path)], group_columns=columns),
        *([read_for_retrieval([str(path)], group_columns=columns)] if label == "caption" else []),
    ):
        assert truth.group_columns == columns
        groups = [("1", "flat"), ("2", "ink"), ("3", "(none)"), ("4", "(none)")]
        assert [example.groups for example in truth.examples] == groups
        assert {name for example in truth.examples for name in example.labels or example.captions} == {"cat", "dog"}
    assert [example.groups for example in read_truth([str(path)]).examples] == [()] * 4


def test_groups_may_be_the_labels_numbers_or_names_by_number(tmp_path: Path) -> None:
    path = table(tmp_path / "t.jsonl", '{"path": "a.png", "label": "cat", "year": 2020, "night": true}\n')
    (example,) = read_truth([str(path)], group_columns=("label", "year")).examples
    assert (example.labels, example.groups) == (("cat",), ("cat", "2020"))
    (example,) = read_truth([str(path)], group_columns=("night",)).examples
    assert example.groups == ("True",)
    features = {"place": {"names": ["in", "out"], "_type": "ClassLabel"}}
    rows = {"path": ["a.png", "b.png"], "label": ["cat", "dog"], "place": [1, 7]}
    path = write_rows(tmp_path / "t.parquet", rows, {"huggingface": json.dumps({"info": {"features": features}})})
    assert [e.groups for e in read_truth([str(path)], group_columns=("place",)).examples] == [("out",), ("7",)]


def test_a_folder_of_parquet_files_has_groups(tmp_path: Path) -> None:
    (tmp_path / "set.parquet").mkdir()
    for part in ("a", "b"):
        write_rows(tmp_path / "set.parquet" / f"{part}.parquet", {"path": [f"{part}.png"], "label": ["x"], "g": [part]})
    truth = read_truth([str(tmp_path / "set.parquet")], group_columns=("g",))
    assert [example.groups for example in truth.examples] == [("a",), ("b",)]
    assert truth.group_columns == ("g",)


def test_groups_that_cannot_be_read_are_refused(tmp_path: Path, folder: Path) -> None:
    path = table(tmp_path / "t.csv", "path,label,style,style\na.png,cat,flat,ink\n")
    for column, message in (("side", "no column side of groups"), ("path", "of its own"), ("style", "several columns")):
        with pytest.raises(UsageError, match=message):
            read_truth([str(path)], group_columns=(column,))
    write_shards(tmp_path / "shards")
    for data in (folder, tmp_path / "shards"):
        with pytest.raises(UsageError, match="groups are read from a column of a table"):
            read_truth([str(data)], group_columns=("style",))
    write_tar(tmp_path / "c.tar", {"1.jpg": PICTURE, "1.txt": b"a cat"})
    with pytest.raises(UsageError, match="groups are read from a column of a table"):
        read_for_retrieval([str(tmp_path / "c.tar")], group_columns=("style",))


def test_a_group_that_is_no_text_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b"path,label,style\na.png,cat,\xfc\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_truth([str(path)], group_columns=("style",))
    path = table(tmp_path / "t.jsonl", '{"path": "a", "label": "x", "g": "\\ud800"}\n{"path": "b", "label": "x"}\n')
    truth = read_truth([str(path)], group_columns=("g",))
    assert [example.groups for example in truth.examples] == [("(none)",)]
    assert "a group isn't valid Unicode" in truth.problems[0]
