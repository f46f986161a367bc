"""`clipcls eval --retrieval` through its real entry point, as a process."""

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli_eval import EXACTLY, shown
from test_start_up import loaded_by

from conftest import EXAMPLES
from labelled import write_tar

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """A table of twelve drawings, some with two captions."""
    shutil.copytree(EXAMPLES, tmp_path / "images")
    rows = []
    for number, path in enumerate(sorted((tmp_path / "images").glob("*.*g*"))):
        name = path.stem.replace("-", " ")
        rows.append(f"images/{path.name},a {name},{'' if number % 3 else f'one {name}'}")
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(["image,caption,caption2", *rows]))
    return table


def test_retrieval_says_all_there_is(clipcls: Run, pairs: Path) -> None:
    done = clipcls("eval", "pairs.csv", "--retrieval", "--model", "pictogram")
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b""), done.stderr
    count = len(pairs.read_text().splitlines()) - 1
    assert text.startswith(f"{count} images and {count + -(-count // 3)} captions measured\n")
    names = [f"{way} recall@{k}" for way in ("text to image", "image to text") for k in (1, 5)]
    for name in ("mean recall@1", *names, "text to image median rank", "95 % interval"):
        assert name in text
    assert f"Note: {count} images are few" in text
    assert "clipcls predict" not in text


def test_retrieval_compares_models_and_prompts(clipcls: Run, pairs: Path, tiny_model: Path) -> None:
    options = ("--model", tiny_model, "--model", "pictogram", "--prompts", "simple", "--template", "{}")
    text = clipcls("eval", "pairs.csv", "--retrieval", *options).stdout.decode()
    rows = [line for line in text.splitlines() if line.startswith((str(tiny_model), "pictogram "))]
    assert [("prompts simple" in row, "prompts templates" in row) for row in rows] == [(True, False), (False, True)] * 2
    assert "to the best" in text and "rather too high" in text and "The best, model pictogram" in text
    made = json.loads(clipcls("eval", "pairs.csv", "--retrieval", *options, "--format", "json").stdout)
    assert [(row["model"], row["prompts"]) for row in made["results"]] == [
        (model, prompts) for model in (str(tiny_model), "pictogram") for prompts in ("simple", "templates")
    ]
    assert made["results"][made["best"]]["difference_to_best"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_retrieval_leaves_out_what_cannot_be_read(clipcls: Run, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pairs.open("a") as table:
        table.write("\nbad.png,a dog,two dogs\nhttp://127.0.0.1:9/1.jpg,a cat,\nimages/cat.png,,")
        table.write("\nimages/cat.png,a dog,\n")
    run = ("eval", "pairs.csv", "--retrieval", "--model", "pictogram")
    done = clipcls(*run)
    count = len(pairs.read_text().splitlines()) - 5
    text, errors = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == 1
    assert text.startswith(f"{count} images and ")
    assert "2 images could not be read and are in none of the figures, nor are their 3 captions: bad.png, http" in text
    assert "2 captions" not in text and "'a dog' (2)" in text and "lowers recall" in text
    assert "in the data, 1 to look at: pairs.csv, line" in text
    assert "bad.png: not an image" in errors and "an address; --allow-urls has it fetched" in errors
    assert f"2 of {count + 2} images were left out of the figures, with their captions" in errors
    made = json.loads(clipcls(*run, "--format", "json", "-q").stdout)
    assert [row["path"] for row in made["failed"]] == ["bad.png", "http://127.0.0.1:9/1.jpg"]
    assert made["shared_captions"] == {"a dog": 2}


def test_retrieval_over_the_cache_loads_no_torch(clipcls: Run, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pairs.parent)
    arguments = ("eval", "pairs.csv", "--retrieval", "--model", "pictogram")
    assert clipcls(*arguments).returncode == 0
    assert not loaded_by(*arguments) & {"torch", "open_clip", "sklearn", "scipy", "matplotlib"}


def test_retrieval_of_shards_equals_clip_benchmark(clipcls: Run, tmp_path: Path, tiny_model: Path) -> None:
    theirs = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tiny_model}")
    random = np.random.default_rng(2)
    words = ["red", "cat", "on", "a", "roof", "blue", "two", "dogs"]
    loader = []
    for shard, pictures in enumerate((shown(1, 20), shown(2, 13))):
        captions = [[" ".join(random.choice(words, 5)) for _ in range(random.integers(1, 6))] for _ in pictures]
        loader.append((torch.stack([transform(Image.open(io.BytesIO(data))) for data in pictures]), captions))
        members = {f"{number:04d}.png": data for number, data in enumerate(pictures)}
        members |= {f"{number:04d}.txt": "\n".join(texts).encode() for number, texts in enumerate(captions)}
        write_tar(tmp_path / "data" / "test" / f"{shard}.tar", dict(sorted(members.items())))
    (tmp_path / "data" / "test" / "nshards.txt").write_text("2")
    (tmp_path / "data" / "dataset_type.txt").write_text("retrieval")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tiny_model}")
    expected = theirs.evaluate(model.eval(), loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    done = clipcls("eval", "data", "--retrieval", "--model", tiny_model, *EXACTLY)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["measured_images"] == 33
    figures = {name: estimate["value"] for name, estimate in made["results"][0]["figures"].items()}
    for k in (1, 5, 10):
        assert figures[f"text to image recall@{k}"] == pytest.approx(expected[f"image_retrieval_recall@{k}"], abs=1e-6)
        assert figures[f"image to text recall@{k}"] == pytest.approx(expected[f"text_retrieval_recall@{k}"], abs=1e-6)
    assert 0 < figures["text to image recall@5"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["pairs.csv", "--labels", "a,b", "--threshold", "0", "--confused", "0", "--multi-label"],
            "have no labels and thresholds: leave --labels, --multi-label, --threshold, --confused out.",
        ),
        (["pairs.csv", "--predictions", "p.tsv", "--score", "cosine"], "leave --predictions, --score out"),
        (["images"], "images: no captions. They are in tables (.parquet, .csv, .tsv, .jsonl) and in shards (.tar)."),
        (["truth.csv"], "truth.csv: labels, but no captions, which have columns caption"),
        (["gone.csv"], "gone.csv: no such file or folder"),
        (
            ["gone.tar"],
            "gone.tar: no picture with a caption in a .txt or .json beside it; the first problem: gone.tar",
        ),
        (["one.csv"], "Only one picture can be read"),
        (["pairs.csv", "-o", "pairs.csv"], "overwrite"),
        (["pairs.csv", "--template", "a photo"], "no placeholder"),
    ],
)
def test_retrieval_refuses_what_has_no_meaning(
    clipcls: Run, pairs: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "truth.csv").write_text("path,label\nimages/cat.png,cat\n")
    (tmp_path / "one.csv").write_text("path,caption\nimages/cat.png,cat\nimages/cat.png,a cat\n")
    done = clipcls("eval", *arguments, "--retrieval", "--model", "pictogram")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.decode() and b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


def test_eval_of_captions_points_to_retrieval(clipcls: Run, pairs: Path, tmp_path: Path) -> None:
    pairs.write_text(pairs.read_text().replace(",a ", ",this is a drawing of a "))
    done = clipcls("eval", "pairs.csv", "--model", "pictogram")
    assert done.returncode == 0
    assert b"its captions are taken for classes, though most pictures have one of their own" in done.stdout
    (tmp_path / "texts.csv").write_text("path,text\nimages/cat.png,a cat\n")
    done = clipcls("eval", "texts.csv", "--model", "pictogram")
    assert done.returncode == 2
    assert b"no column of labels" in done.stderr and b"`clipcls eval --retrieval`" in done.stderr
