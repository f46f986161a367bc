"""Features in files: every format gives back what was written, and says what is wrong with a file."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipcls.errors import UsageError
from clipcls.outputs.vectors import FILE_FORMATS, read_vectors
from clipcls.outputs.vectors.origin import FeatureOrigin
from clipcls.outputs.vectors.vector_format import VectorRows
from clipcls.outputs.vectors.write import VectorDestination, open_vectors

ORIGIN = FeatureOrigin(
    of="images",
    model="tiny",
    fingerprint="ab" * 32,
    weights="cd" * 32,
    embed_dim=3,
    precision="fp32",
    runtime="torch",
    logit_scale=4.6,
    logit_bias=None,
    preprocess={"size": [8, 8]},
    decode="fast",
)
ODD = os.fsdecode(b"odd\xff name\n.png")
ROWS = VectorRows(
    ("a.png", "broken.png", ODD, "a.png"),
    np.array([[1, 0, 0], [0, 1, 0], [0, 0.6, 0.8]], dtype=np.float32),
    (None, "not a picture", None, None),
)
MORE = VectorRows(("b.png",), np.array([[0, 0, 1]], dtype=np.float32), (None,))
GOOD = ["a.png", ODD, "a.png", "b.png"]
PLACES = ["out.parquet", "out.npy", "out.npz", "parts", "retrieval"]


def destination(place: Path, **more: Any) -> VectorDestination:
    if place.suffix:
        return VectorDestination(output=place, **more)
    return VectorDestination(folder=place, format_name="npy" if place.name == "retrieval" else None, **more)


def write(place: Path, *rows: VectorRows, origin: FeatureOrigin = ORIGIN, settings: Any = None, **more: Any) -> None:
    with open_vectors(destination(place, **more), origin, lambda: settings or {}) as output:
        for part in rows:
            output.sink.write(part)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", PLACES)
def test_reading_gives_what_was_written(name: str, dtype: Any, tmp_path: Path) -> None:
    write(tmp_path / name, ROWS, MORE, dtype=dtype)
    stored = read_vectors(tmp_path / name)
    assert stored.keys == GOOD
    assert stored.origin == ORIGIN
    assert stored.failed == 1
    features = np.concatenate(stored.blocks)
    assert features.dtype == dtype
    assert np.array_equal(features, np.concatenate([ROWS.features, MORE.features]).astype(dtype))


@pytest.mark.parametrize("name", PLACES[:3])
def test_nothing_is_left_beside_a_file(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, ROWS)
    write(tmp_path / name, MORE)  # replaces it
    assert read_vectors(tmp_path / name).keys == ["b.png"]
    beside = {"out.json", "out.paths.jsonl"} if name == "out.npy" else set()
    assert {path.name for path in tmp_path.iterdir()} == {name} | beside


@pytest.mark.parametrize("name", PLACES[:3])
def test_texts_are_written_too(name: str, tmp_path: Path) -> None:
    origin = replace(ORIGIN, of="texts", preprocess={}, decode="", templates=("a {}",))
    write(tmp_path / name, VectorRows(("猫", "a dog"), ROWS.features[:2], (None, None)), origin=origin)
    stored = read_vectors(tmp_path / name)
    assert stored.keys == ["猫", "a dog"]
    assert stored.origin == origin


def test_parquet_has_a_null_for_a_row_without_features(tmp_path: Path) -> None:
    write(tmp_path / "out.parquet", ROWS)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 3)
    assert table.column("embedding").to_pylist()[1] is None
    assert table.column("error").to_pylist() == [None, "not a picture", None, None]


def test_npy_and_npz_keep_a_row_of_nan_so_that_nothing_shifts(tmp_path: Path) -> None:
    write(tmp_path / "out.npy", ROWS)
    write(tmp_path / "out.npz", ROWS)
    array = np.load(tmp_path / "out.npy")
    archive = np.load(tmp_path / "out.npz")
    assert np.isnan(array).all(axis=1).tolist() == [False, True, False, False]
    assert np.array_equal(array, archive["embeddings"], equal_nan=True)
    assert archive["paths"].tolist() == list(ROWS.keys)
    assert archive["errors"].tolist() == ["", "not a picture", "", ""]
    lines = [json.loads(line) for line in (tmp_path / "out.paths.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == list(ROWS.keys)


def test_clip_retrievals_folder_leaves_failures_out(tmp_path: Path) -> None:
    write(tmp_path / "retrieval", ROWS)
    assert np.load(tmp_path / "retrieval/img_emb/img_emb_0.npy").shape == (3, 3)
    names = pq.read_table(tmp_path / "retrieval/metadata/metadata_0.parquet").column("image_path").to_pylist()
    assert names == ["a.png", "odd\ufffd name\n.png", "a.png"]
    assert json.loads((tmp_path / "retrieval/failed/failed_0.jsonl").read_text())["path"] == "broken.png"


@pytest.mark.parametrize("name", PLACES[3:])
def test_resume_knows_what_is_there(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, ROWS, settings={"--model": "a"})
    with pytest.raises(UsageError, match="--resume"):
        write(tmp_path / name, MORE)
    with pytest.raises(UsageError, match="other settings: --model"):
        write(tmp_path / name, MORE, settings={"--model": "b"}, resume=True)
    again = destination(tmp_path / name, resume=True)
    with open_vectors(again, ORIGIN, lambda: {"--model": "a"}) as output:
        assert (output.done.count, output.done.failed) == (4, 1)
        output.sink.write(MORE)
    stored = read_vectors(tmp_path / name)
    assert stored.keys == GOOD
    assert len(stored.blocks) == 2


def test_a_folder_has_one_format(tmp_path: Path) -> None:
    write(tmp_path / "parts", ROWS)
    other = open_vectors(VectorDestination(folder=tmp_path / "parts", format_name="npy"), ORIGIN, dict)
    with pytest.raises(UsageError, match="in the format parquet"), other:
        pass


def test_failures_of_a_part_that_was_never_finished_are_forgotten(tmp_path: Path) -> None:
    write(tmp_path / "retrieval", ROWS)
    (tmp_path / "retrieval/metadata/metadata_0.parquet").unlink()  # the last file of a part
    with open_vectors(destination(tmp_path / "retrieval", resume=True), ORIGIN, dict) as output:
        assert output.done.count == 0
        output.sink.write(MORE)
    stored = read_vectors(tmp_path / "retrieval")
    assert (stored.keys, stored.failed) == (["b.png"], 0)


@pytest.mark.parametrize("name", PLACES)
def test_empty_outputs_are_read(name: str, tmp_path: Path) -> None:
    failed = VectorRows(("broken.png",), np.empty((0, 3), dtype=np.float32), ("not a picture",))
    write(tmp_path / name, failed)
    stored = read_vectors(tmp_path / name)
    assert (list(stored.keys), stored.failed, sum(map(len, stored.blocks))) == ([], 1, 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("name", PLACES[:3])
def test_truncated_files_are_refused(name: str, share: float, tmp_path: Path) -> None:
    write(tmp_path / name, ROWS, MORE)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UsageError, match=name):
        read_vectors(tmp_path / name)


def test_files_of_different_runs_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "out.npy", ROWS)
    lines = (tmp_path / "out.paths.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out.paths.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(UsageError, match=r"4 rows, and 3 in out\.paths\.jsonl"):
        read_vectors(tmp_path / "out.npy")
    write(tmp_path / "parts", ROWS)
    write(tmp_path / "other", MORE, origin=replace(ORIGIN, fingerprint="ef" * 32))
    (tmp_path / "other" / "part-000000.parquet").rename(tmp_path / "parts" / "part-000001.parquet")
    with pytest.raises(UsageError, match="different models"):
        read_vectors(tmp_path / "parts")


@pytest.mark.parametrize(
    ("write_other", "message"),
    [
        (lambda path: np.save(path, np.zeros(3)), r"an array of 3 float64"),
        (lambda path: np.save(path, np.array([object()]), allow_pickle=True), "not an array of features"),
        (lambda path: path.write_text("hello"), "not an array of features"),
        (lambda path: path.mkdir(), "no features in it"),
    ],
)
def test_other_arrays_are_refused(write_other: Any, message: str, tmp_path: Path) -> None:
    write_other(tmp_path / "other.npy")
    with pytest.raises(UsageError, match=message):
        read_vectors(tmp_path / "other.npy")


def test_other_tables_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": ["a.png"], "label": ["cat"]}), tmp_path / "predictions.parquet")
    with pytest.raises(UsageError, match="embedding"):
        read_vectors(tmp_path / "predictions.parquet")


def test_an_origin_of_a_later_version_is_read(tmp_path: Path) -> None:
    later = json.loads(ORIGIN.to_json()) | {"something": "new"}
    assert FeatureOrigin.from_json(json.dumps(later), "file") == ORIGIN
    with pytest.raises(UsageError, match="what made these features"):
        FeatureOrigin.from_json("[]", "file")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of them"),
        ({"output": Path("a.npz"), "folder": Path("b")}, "one of them"),
        ({"folder": Path("b"), "format_name": "npz"}, "parquet or npy"),
        ({"output": Path("a.jpg")}, "its extension"),
        ({"output": Path("a.npy"), "format_name": "parquet"}, r"name it …\.parquet"),
        ({"output": Path("a.npy"), "format_name": "txt"}, ", ".join(FILE_FORMATS)),
        ({"output": Path("a.npy"), "resume": True}, "--output-dir"),
    ],
)
def test_impossible_destinations_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VectorDestination(**settings)
