"""Labelled pictures read from folders, tables and shards, and their classes found among labels."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest

from clipcls.errors import UsageError
from clipcls.evaluate.match_labels import label_indices, repeated_paths
from clipcls.inputs.contents import open_content
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.inputs.labelled.read import read_truth
from clipcls.labels.label_files import make_label
from clipcls.records import ImageRef
from labelled import NAMES, PICTURE, write_shards, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders; nothing in them is opened."""
    for name in ("cat/1.jpg", "cat/more/2.png", "hot_dog/3.jpg", "cat/notes.txt", ".hidden/4.jpg"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "data"


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


def test_read_truth_tells_of_empty_classes_and_of_pictures_without_one(folder: Path) -> None:
    (folder / "bird").mkdir()
    (folder / "lost.png").touch()
    (folder / "README.txt").touch()
    truth = read_truth([str(folder)])
    assert truth.classnames == ("bird", "cat", "hot_dog")
    assert len(truth.problems) == 2
    assert "lost.png" in truth.problems[0] and "no label" in truth.problems[0]
    assert "bird" in truth.problems[1] and "without pictures" in truth.problems[1]


@pytest.mark.parametrize("names", [[], ["1.jpg", "2.jpg"], ["cat/notes.txt"]])
def test_read_truth_refuses_a_folder_without_classes(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"no class folder with pictures.*cat/1\.jpg"):
        read_truth([str(tmp_path)])


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
        ("a.csv", "\ufefflabel,path\r\ncat,x/1.jpg\r\n\r\ndog,/abs/2.jpg\r\n"),
        ("a.tsv", "path\tlabel\nx/1.jpg\tcat\n/abs/2.jpg\tdog\n"),
        ("a.jsonl", '{"path": "x/1.jpg", "label": "cat"}\n\n{"label": "dog", "path": "/abs/2.jpg", "score": 1}\n'),
    ],
)
def test_read_truth_takes_tables_of_paths_and_labels(tmp_path: Path, name: str, text: str) -> None:
    truth = read_truth([str(table(tmp_path / name, text))])
    assert truth.examples == (
        Example(ImageRef(str(tmp_path / "x/1.jpg")), ("cat",)),
        Example(ImageRef("/abs/2.jpg"), ("dog",)),
    )
    assert truth.classnames == ("cat", "dog")


def test_read_truth_calls_pictures_beside_a_table_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table(tmp_path / "a.csv", "path,label\nx/1.jpg,cat\n")
    monkeypatch.chdir(tmp_path)
    assert read_truth(["a.csv"]).examples[0].image.path == "x/1.jpg"


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
def test_read_truth_takes_tables_with_several_labels(tmp_path: Path, name: str, text: str) -> None:
    truth = read_truth([str(table(tmp_path / name, text))])
    assert truth.multi_label
    assert [example.labels for example in truth.examples] == [("cat", "dog"), (), ("a;b", "dog"), ("dog",)]
    assert truth.classnames == ("a;b", "cat", "dog")


def test_read_truth_keeps_numbers_that_are_labels(tmp_path: Path) -> None:
    truth = read_truth([str(table(tmp_path / "a.jsonl", '{"path": "1", "label": 7}\n'))])
    assert truth.examples[0].labels == ("7",)


def test_read_truth_tells_of_rows_that_it_leaves_out(tmp_path: Path) -> None:
    lines = [
        '{"path": "1", "label": "cat"}',
        "not json",
        "[1]",
        '{"label": "cat"}',
        '{"path": "2", "label": null}',
        '{"path": "3", "label": true}',
        '{"path": " ", "label": "cat"}',
        '{"path": "\\ud800", "label": "cat"}',
    ]
    truth = read_truth([str(table(tmp_path / "a.jsonl", "\n".join(lines)))])
    assert len(truth.examples) == 1
    told = [problem.partition(", line ")[2][:8] for problem in truth.problems]
    assert told == ["2: not J", "3: not a", "4: no pa", "5: no la", "6: no la", "7: no pa", "8: no po"]


def test_read_truth_takes_addresses_as_images_that_cannot_be_read(tmp_path: Path) -> None:
    truth = read_truth([str(table(tmp_path / "a.csv", "path,label\nhttps://x.org/1.jpg,cat\n"))])
    assert truth.examples[0].image.error is not None and "address" in truth.examples[0].image.error


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "image,caption\n1,cat\n", "columns path and label.*there are: image, caption"),
        ("a.csv", "", "there are: none"),
        ("a.csv", "path;label\n1;cat\n", r"there are: path;label\. Columns end in a comma in \.csv"),
        ("a.csv", "path\tlabel\n1\tcat\n", r"Columns end in a comma in \.csv"),
        ("a.csv", "path,label\n", "no row with a path and a label"),
        ("a.jsonl", '{"path": "1"}\n', "first problem: .*line 1: no label"),
    ],
)
def test_read_truth_refuses_tables_without_truth(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read_truth([str(table(tmp_path / name, text))])


@pytest.mark.parametrize(("name", "text"), [("a.csv", "path,label\n1,cat\n"), ("a.jsonl", '{"path": "1"}\n')])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_read_truth_names_the_encoding_that_it_refuses(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(("\ufeff" + text).encode(encoding))
    with pytest.raises(UsageError, match=f"{name}: it is in UTF-16; save it in UTF-8"):
        read_truth([str(tmp_path / name)])


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
