"""Features as the readers of other programs find them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcls.outputs.vectors import read_vectors
from clipcls.outputs.vectors.clip_retrieval import ClipRetrievalFolder
from clipcls.outputs.vectors.origin import FeatureOrigin
from clipcls.outputs.vectors.vector_format import DType, VectorRows
from clipcls.outputs.vectors.write import VectorDestination, open_vectors

DIM = 16
ORIGIN = FeatureOrigin("images", "tiny", "00", "", DIM, "fp32", "torch", 4.6, None)


def read(folder: Path, metadata: bool) -> tuple[NDArray[np.float32], Any]:
    """The rows of a folder as embedding-reader, and with it autofaiss and clip-retrieval, give them."""
    from embedding_reader import EmbeddingReader

    named = {"metadata_folder": str(folder / "metadata"), "meta_columns": ["image_path"]} if metadata else {}
    reader = EmbeddingReader(
        embeddings_folder=str(folder / "img_emb"), file_format="parquet_npy" if metadata else "npy", **named
    )
    found = [(rows.copy(), meta) for rows, meta in reader(batch_size=7, show_progress=False)]
    return np.concatenate([rows for rows, _ in found]), [meta for _, meta in found]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_embedding_reader_gives_each_path_its_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: DType
) -> None:
    monkeypatch.setattr("clipcls.outputs.vectors.write.PART_ROWS", 5)
    features = np.random.default_rng(0).standard_normal((90, DIM)).astype(np.float32)
    # the third part has no features at all; parts from the eleventh on come before the third by their names
    has_failed = [10 <= number < 15 or number % 7 == 3 for number in range(90)]
    with open_vectors(VectorDestination(folder=tmp_path, format_name="npy", dtype=dtype), ORIGIN, dict) as output:
        for start in range(0, 90, 5):
            part = slice(start, start + 5)
            errors = tuple("truncated" if failed else None for failed in has_failed[part])
            good = [number for number in range(90)[part] if not has_failed[number]]
            output.sink.write(
                VectorRows(tuple(f"é {number}.png" for number in range(90)[part]), features[good], errors)
            )
    assert len(list((tmp_path / "img_emb").iterdir())) == len(list((tmp_path / "metadata").iterdir())) == 17
    expected = {f"é {number}.png": features[number] for number in range(90) if not has_failed[number]}
    rows, meta = read(tmp_path, metadata=True)
    paths = [path for batch in meta for path in batch["image_path"]]
    assert sorted(paths) == sorted(expected)
    np.testing.assert_array_equal(rows, np.stack([expected[path] for path in paths]).astype(dtype).astype(np.float32))
    np.testing.assert_array_equal(read(tmp_path, metadata=False)[0], rows)
    stored = read_vectors(tmp_path)
    assert list(stored.keys) == list(expected)
    assert stored.failed == sum(has_failed)
    with open_vectors(
        VectorDestination(folder=tmp_path, format_name="npy", dtype=dtype, resume=True), ORIGIN, dict
    ) as output:
        assert (output.done.count, output.done.failed) == (90, sum(has_failed))


def test_folder_of_clip_retrieval_may_pad_numbers(tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    features = np.eye(DIM, dtype=np.float32)
    for kind in ("img_emb", "metadata"):
        (tmp_path / kind).mkdir()
    for number, part in enumerate((slice(0, 6), slice(6, DIM))):
        np.save(tmp_path / "img_emb" / f"img_emb_{number:02d}.npy", features[part])
        names = [f"{i}.jpg" for i in range(DIM)][part]
        table = arrow.table({"image_path": names, "caption": ["a"] * len(names)})
        parquet.write_table(table, tmp_path / "metadata" / f"metadata_{number:02d}.parquet")
    stored = read_vectors(tmp_path)
    assert list(stored.keys) == [f"{i}.jpg" for i in range(DIM)]
    np.testing.assert_array_equal(np.concatenate(stored.blocks), features)
    assert stored.origin is None


@pytest.mark.parametrize("left", [("img_emb_0.npy",), ("img_emb_0.npy", "failed_0.jsonl")])
def test_what_a_killed_run_left_of_a_part_is_written_anew(tmp_path: Path, left: tuple[str, ...]) -> None:
    format = ClipRetrievalFolder()
    rows = VectorRows(("a.png", "b.png"), np.ones((1, DIM), dtype=np.float32), ("truncated", None))
    format.write_part(tmp_path, 0, rows, ORIGIN, "float32")
    for kind in ("img_emb", "failed", "metadata"):
        for path in (tmp_path / kind).iterdir():
            if path.name not in left:
                path.unlink()
    assert format.parts_in(tmp_path) == {}
    format.write_part(tmp_path, 0, VectorRows(("a.png",), np.empty((0, DIM)), ("gone",)), ORIGIN, "float32")
    (part,) = format.parts_in(tmp_path).values()
    assert list(format.rows_of(part)) == [("a.png", "gone", None)]
    assert list((tmp_path / "img_emb").iterdir()) == []
