"""`clipcls eval --group` through its real entry point, as a process."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import EXAMPLES
from labelled import write_shards

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """A table that names twelve drawings again and again, in one group of two with labels of others."""
    paths = sorted(path for path in EXAMPLES.glob("*.*g*") if path.suffix != ".txt")
    names = [next(name for name in ("cat", "dog", "truck", "engine") if name in path.stem + "truck") for path in paths]
    rows = [f"{path},{name},plain,{number % 2}" for path, name in zip(paths, names, strict=True) for number in range(4)]
    rows += [
        f"{path},{name},shuffled,{number % 2}"
        for path, name in zip(paths, names[4:] + names[:4], strict=True)
        for number in range(4)
    ]
    rows += [f"{paths[0]},{names[0]},,0"]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,label,kind,odd", *rows]))
    return table


def test_groups_are_told_as_tables_and_as_json(clipcls: Run, grouped: Path) -> None:
    run = ("eval", "t.csv", "--model", "pictogram", "--group", "kind", "--group", "odd")
    done = clipcls(*run)
    text = done.stdout.decode()
    assert (done.returncode, done.stderr) == (0, b"")
    tables = text[text.index("kind  ") : text.index("Note: ")]
    assert all(len(line) <= 80 for line in tables.splitlines())
    heads = [line for line in tables.splitlines() if "to the rest" in line]
    assert [line.split()[0] for line in heads] == ["kind", "odd", "kind"]
    assert "by kind, accuracies apart with a corrected p below 0.05: plain (above the rest)" in text
    assert "shuffled (below the rest)" in text and "too few" in text
    assert "groups of fewer than 30 images are in no test and no gap: (none)" in text
    assert "No gaps are told" in text and "kind & odd  " in text and "plain & 0" in text
    assert not any(word in text.lower() for word in ("fair", "bias"))

    made = json.loads(clipcls(*run, "--format", "json").stdout)
    result = made["results"][made["best"]]
    assert [report["columns"] for report in result["groups"]] == [["kind"], ["odd"], ["kind", "odd"]]
    plain, shuffled, none = result["groups"][0]["groups"]
    assert (plain["group"], shuffled["group"], none["group"]) == (["plain"], ["shuffled"], ["(none)"])
    assert (plain["few"], none["few"], none["holm_p"], none["images"]) == (False, True, None, 1)
    assert plain["holm_p"] >= plain["fisher_p"]
    whole = [group["accuracy"] for group in (plain, shuffled, none)]
    accuracy = sum(share["part"] for share in whole) / sum(share["whole"] for share in whole)
    assert accuracy == pytest.approx(result["figures"]["accuracy@1"]["value"])
    gap = result["groups"][0]["gaps"][0]
    assert (gap["figure"], gap["class"], gap["lowest"], gap["highest"]) == ("accuracy", None, ["shuffled"], ["plain"])
    assert gap["difference"] == pytest.approx(whole[0]["value"] - whole[1]["value"])


def test_groups_of_what_captions_find_stand_beside_chance(clipcls: Run, tmp_path: Path) -> None:
    rows = [f"{path},a {path.stem},{'webp' in path.name}" for path in sorted(EXAMPLES.glob("*.*g*"))]
    (tmp_path / "t.csv").write_text("\n".join(["path,caption,webp", *rows]))
    done = clipcls("eval", "t.csv", "--retrieval", "--model", "pictogram", "--group", "webp")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.decode().splitlines() if line.startswith("NDKL by webp")]
    assert len(lines) == 1 and "by chance 0." in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t.csv", "--group", "a", "--group", "b", "--group", "c"], "two at most"),
        (["t.csv", "--group", "kind", "--multi-label"], "needs one label an image"),
        (["data", "--group", "kind"], "data: groups are read from a column of a table"),
    ],
)
def test_groups_that_cannot_be_told_are_refused(
    clipcls: Run, grouped: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if "data" in arguments:
        write_shards(tmp_path / "data")
    done = clipcls("eval", *arguments, "--model", "pictogram")
    assert done.returncode == 2 and not done.stdout
    assert message in done.stderr.decode() and len(done.stderr.splitlines()) == 1
