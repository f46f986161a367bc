"""`--part` and `clipcls merge`, through their real entry point, as processes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

JOB = ("predict", str(EXAMPLES), "--labels", "cat,dog,truck", "--model", "pictogram")


def test_parts_are_merged_to_what_one_run_writes(clipcls: Run, tmp_path: Path) -> None:
    whole = clipcls(*JOB, "--format", "jsonl").stdout
    (tmp_path / "parts").mkdir()
    for number in (2, 3, 1):
        if number == 1:
            missing = clipcls("merge", "parts", "-o", "all.jsonl")
            assert (missing.returncode, missing.stderr) == (2, b"clipcls: error: Of 3 parts, part 1 is missing.\n")
        done = clipcls(*JOB, "--part", f"{number}/3", "-o", f"parts/{number}.jsonl")
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for output in ("parts/all.jsonl", "parts/all.jsonl", "-"):  # again over what is there already
        done = clipcls("merge", "parts", "-o", output, "--format", "jsonl")
        assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (tmp_path / "parts/all.jsonl").read_bytes() == whole
    resumed = clipcls(*JOB, "-o", "parts/all.jsonl", "--resume")
    assert resumed.returncode == 0 and (tmp_path / "parts/all.jsonl").read_bytes() == whole
    refused = clipcls("merge", "parts/1.jsonl", "parts/2.jsonl", "-o", "parts/1.jsonl")
    assert refused.returncode == 2 and b"is one of the inputs" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((*JOB, "--part", "4/3", "-o", "x.jsonl"), "--part 4/3: give its number and how many there are, such as 3/16."),
        ((*JOB, "--part", "3", "-o", "x.jsonl"), "--part 3: give its number"),
        ((*JOB, "--part", "1/3"), "--part: give --output FILE or --output-dir DIR"),
        ((*JOB, "--part", "1/3", "-o", "x.csv"), "--part: csv has no room for a row's place"),
        ((*JOB, "--part", "1/3", "--engine", "ray", "--output-dir", "x"), "--engine ray divides the inputs itself"),
        (("embed", "x", "--part", "1/3", "-o", "x.npy"), "--part: only Parquet has room"),
        (("embed", "--text", "x", "--part", "1/3", "-o", "x.parquet"), "Give pictures, or --text and --texts"),
        (("search", "cat", "x", "--part", "1/3"), "No such option: --part"),
        (
            (
                *("ask", str(EXAMPLES), "--question", "a", "--choices", "b,c", "--without-priors", "--part", "1/3"),
                "-ox.jsonl",
            ),
            "--without-priors looks at all pictures, and --part at some",
        ),
        (("merge", "x"), "x: no such file or folder."),
    ],
)
def test_mistakes_are_named(clipcls: Run, arguments: tuple[str, ...], said: str) -> None:
    done = clipcls(*arguments)
    assert done.returncode == 2
    assert said in done.stderr.decode()
