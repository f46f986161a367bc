"""`clipcls embed` and `clipcls search`, as they are typed."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_start_up import loaded_by

from clipcls.outputs.vectors import read_vectors
from conftest import ROOT, save_model, save_pictures
from tiny_models import RESNET_CONFIG

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
PHOTOS = ROOT / "examples" / "photos"
EVERYDAY = ("--model", "everyday", "--device", "cpu")


@pytest.fixture
def run(clipcls: Run, tiny_model: Path, tmp_path: Path) -> Run:
    """A command with the tiny model over twelve pictures, one of which is broken."""
    save_pictures(tmp_path / "pictures", 12)
    (tmp_path / "pictures" / "005.png").write_bytes(b"no picture")

    def tiny(command: str, *arguments: Any, **more: Any) -> "subprocess.CompletedProcess[bytes]":
        return clipcls(command, *arguments, "--model", tiny_model, "--device", "cpu", **more)

    return tiny


def lines(done: "subprocess.CompletedProcess[bytes]") -> list[str]:
    return done.stdout.decode().splitlines()


# ------------------------------------------------------------------------------------------- embed


def test_embed_writes_what_predict_reads(run: Run, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("pictures/001.png\npictures/000.png\nmissing.png\n")
    done = run("embed", "pictures/00*.png", "--files-from", "list.txt", "-o", "out.parquet")
    assert done.returncode == 1
    assert b"pictures/005.png: not an image" in done.stderr
    assert b"2 of 13 images could not be read" in done.stderr
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    names = [*(f"pictures/00{i}.png" for i in range(10)), "pictures/001.png", "pictures/000.png", "missing.png"]
    assert [row["path"] for row in rows] == names
    assert [i for i, row in enumerate(rows) if row["embedding"] is None] == [5, 12]
    assert rows[1]["embedding"] == rows[10]["embedding"]
    assert "no such file" in rows[12]["error"]


def test_embed_gives_the_models_own_features(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    assert run("embed", "pictures", "-o", "out.npz", "--precision", "fp32", "-q").returncode == 1
    assert run("embed", "--text", "a cat", "--text", "dogs", "-o", "texts.npy", "--precision", "fp32").returncode == 0
    assert run("predict", "pictures", "--labels", "cat", "--template", "a {}", "--format", "jsonl", "-o", "rows.jsonl",
               "--score", "cosine", "--precision", "fp32", "-q").returncode == 1  # fmt: skip
    pictures, texts = read_vectors(tmp_path / "out.npz"), read_vectors(tmp_path / "texts.npy")
    assert texts.keys == ["a cat", "dogs"]
    cosines = pictures.blocks[0] @ texts.blocks[0][0]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert np.allclose(cosines, [row["similarity"] for row in rows if not row["error"]], atol=1e-6)
    origin = pictures.origin
    assert origin is not None
    assert (origin.model, origin.embed_dim, origin.precision, origin.decode) == (str(tiny_model), 32, "fp32", "fast")
    assert len(origin.weights) == len(origin.fingerprint) == 64


def test_embed_fills_texts_of_a_file_into_templates(run: Run, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\n\n  a dog \n", encoding="utf-8-sig")
    assert run("embed", "--texts", "texts.txt", "--template", "see {}", "-o", "filled.npy").returncode == 0
    done = run("embed", "--texts", "-", "-o", "plain.npy", input=b"see a cat\nsee a dog\n")
    assert done.returncode == 0
    filled, plain = read_vectors(tmp_path / "filled.npy"), read_vectors(tmp_path / "plain.npy")
    assert filled.keys == ["a cat", "a dog"]
    assert filled.origin is not None
    assert filled.origin.templates == ("see {}",)
    assert np.allclose(filled.blocks[0], plain.blocks[0], atol=1e-6)


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_embed_goes_on_with_a_folder(run: Run, tmp_path: Path, format: str) -> None:
    arguments = ("embed", "pictures", "--output-dir", "out", "--format", format, "--batch-size", "2", "-q")
    assert run(*arguments, "--on-error", "stop").returncode == 4
    before = read_vectors(tmp_path / "out")
    done = run(*arguments, "--resume")
    assert done.returncode == 1
    after = read_vectors(tmp_path / "out")
    assert len(before.keys) < 11 == len(after.keys) == len(set(after.keys))
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pictures",), "give --output FILE or --output-dir DIR"),
        (("-o", "out.npy"), "No images."),
        (("pictures", "--text", "a cat", "-o", "out.npy"), "Give pictures, or --text and --texts"),
        (("pictures", "--template", "a {}", "-o", "out.npy"), "are for --text and --texts"),
        (("--text", "a", "--output-dir", "out"), "give --output FILE"),
        (("--texts", "empty.txt", "-o", "out.npy"), "No texts"),
        (("--texts", "nothing.txt", "-o", "out.npy"), "nothing.txt: can't be read"),
        (("nothing.png", "-o", "out.npy"), "No image that was named exists"),
        (("pictures", "-o", "out.jpg"), "its extension tells no format"),
    ],
)
def test_embed_says_what_is_wrong(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    done = run("embed", *arguments)
    assert (done.returncode, message in done.stderr.decode()) == (2, True), done.stderr
    assert not (tmp_path / "out.npy").exists()


# ------------------------------------------------------------------------------------------- search


def test_search_finds_photographs_by_words(clipcls: Run) -> None:
    done = clipcls("search", "coffee", PHOTOS, "--threshold", "0.5", *EVERYDAY)
    assert done.returncode == 0
    (line,) = lines(done)
    score, path = line.split("\t")
    assert Path(path).name == "coffee.jpg"
    assert float(score) > 0.9


def test_search_writes_every_format(clipcls: Run, tmp_path: Path) -> None:
    (tmp_path / "queries.txt").write_text("coffee\na cat\n")
    search = ("search", "--queries", "queries.txt", PHOTOS, "--top-k", "2", *EVERYDAY)
    tsv = [line.split("\t") for line in lines(clipcls(*search))]
    rows = [json.loads(line) for line in lines(clipcls(*search, "--format", "jsonl"))]
    assert [row["query"] for row in rows] == ["coffee", "coffee", "a cat", "a cat"]
    assert tsv == [[row["query"], f"{row['score']:.6f}", row["path"]] for row in rows]
    assert [Path(rows[i]["path"]).name for i in (0, 2)] == ["coffee.jpg", "cat.jpg"]
    assert clipcls(*search, "-0").stdout.decode().split("\0") == [*(row["path"] for row in rows), ""]
    table = lines(clipcls(*search, "--format", "table"))
    assert table[0] == "coffee"
    assert table[2] == f"{rows[0]['score']:7.4f} {rows[0]['similarity']:10.4f}  {rows[0]['path']}"


def test_search_takes_features_and_their_model(clipcls: Run, tmp_path: Path) -> None:
    assert clipcls("embed", PHOTOS, "-o", "out.parquet", *EVERYDAY).returncode == 0
    by_file = clipcls("search", PHOTOS / "cat.jpg", "--features", "out.parquet", "--device", "cpu")
    assert by_file.returncode == 0
    assert by_file.stdout == clipcls("search", PHOTOS / "cat.jpg", PHOTOS, *EVERYDAY).stdout
    other = clipcls("search", "a cat", "--features", "out.parquet", "--model", "pictogram", "--device", "cpu")
    assert other.returncode == 2
    assert b"was made by model everyday" in other.stderr


def test_search_keeps_odd_names(run: Run, tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/odd\xff\tname.png"
    odd = Path(os.fsdecode(raw))
    (tmp_path / "pictures" / "000.png").rename(odd)
    done = run("search", odd, odd, "pictures", "--top-k", "1", "-q")
    assert done.stdout == b"1.000000\t" + raw.replace(b"\t", b"\\t") + b"\n"
    assert run("search", odd, odd, "--top-k", "1", "-0").stdout == raw + b"\0"


def test_search_says_which_pictures_failed(run: Run) -> None:
    done = run("search", "a cat", "pictures", "--top-k", "100")
    assert done.returncode == 1
    assert len(lines(done)) == 11
    assert b"1 of 12 images could not be read" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "No query"),
        (("cat",), "No images."),
        (("pictures",), "'pictures' is a folder; the query comes first"),
        (("", "pictures"), "The query is empty"),
        (("nothing.png", "pictures"), "nothing.png: no such file"),
        (("pictures/005.png", "pictures"), "The query's picture pictures/005.png can't be read"),
        (("cat", "empty"), "No images found"),
        (("cat", "nothing"), "No image that was named exists"),
        (("cat", "--features", "nothing.npy"), "nothing.npy: no such file"),
        (("cat", "--features", "texts.npy"), "features of texts"),
        (("cat", "pictures", "--features", "texts.npy"), "Give inputs or --features"),
        (("cat", "pictures", "-0", "--format", "tsv"), "-0 writes bare paths"),
        (("--queries", "empty.txt", "pictures"), "No query"),
    ],
)
def test_search_says_what_is_wrong(run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    if "texts.npy" in arguments:
        assert run("embed", "--text", "a cat", "-o", "texts.npy").returncode == 0
    done = run("search", *arguments)
    assert (done.returncode, message in done.stderr.decode()) == (2, True), done.stderr


def test_search_of_another_models_features_names_both(run: Run, clipcls: Run, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", RESNET_CONFIG)
    assert clipcls("embed", "pictures", "-o", "out.npy", "--model", other, "--device", "cpu", "-q").returncode == 1
    done = run("search", "a cat", "--features", "out.npy")
    assert done.returncode == 2
    assert str(other) in done.stderr.decode()


def test_a_known_query_over_cached_pictures_loads_no_torch(run: Run, tiny_model: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for path in pictures.iterdir():  # files that haven't just changed
        os.utime(path, (1, 1))
    arguments = ("search", "a cat", pictures, "--top-k", "1", "-q")
    assert run(*arguments).returncode == 1
    (pictures / "005.png").unlink()
    model = ("--model", str(tiny_model), "--device", "cpu")
    assert not loaded_by(*map(str, arguments), *model) & {"torch", "open_clip"}
