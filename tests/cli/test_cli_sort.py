"""`clipcls sort` as a process."""

import contextlib
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from clipcls.outputs.formats import format_for
from clipcls.outputs.sort.log import LOG_NAME
from clipcls.records import Prediction, ScoredLabel
from conftest import ROOT
from shell import Started

Done = subprocess.CompletedProcess[bytes]
Run = Callable[..., Done]
Start = Callable[..., Started]

ODD = os.fsdecode(b"photos/caf\xe9\t\n.jpg")
LABELS = {"photos/a.jpg": "cat", "photos/b.jpg": "hot dog", "photos/c.jpg": None, ODD: "cat"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number, name in enumerate(LABELS):
        (tmp_path / name).write_bytes(b"%d" % number * 100)
    return tmp_path / "photos"


@pytest.fixture
def run(clipcls: Run) -> Run:
    """`clipcls sort` in `tmp_path`, with nothing on standard input unless there is some."""
    return lambda *args, input=b"": clipcls("sort", *args, input=input)


def predictions() -> list[Prediction]:
    return [
        Prediction(path, label, 0.5, 0.25, tuple(ScoredLabel(name, 0.5, 0.25) for name in (label or "cat", "last")))
        for path, label in LABELS.items()
    ]


def write(path: Path, rows: Sequence[Prediction]) -> Path:
    with path.open("wb") as file, format_for(path).open_sink(file, path.name) as sink:
        for row in rows:
            sink.write(row)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder but the record, and the streams of what ran there."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.name != LOG_NAME and ".streams" not in path.parts
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


SORTED = {
    "cat/a.jpg": b"0" * 100,
    "hot dog/b.jpg": b"1" * 100,
    "_unknown/c.jpg": b"2" * 100,
    os.fsdecode(b"cat/caf\xe9\t\n.jpg"): b"3" * 100,
}


PARTS = ["part-000000.jsonl", "part-000001.csv"]


@pytest.mark.parametrize("names", [["p.jsonl"], ["p.tsv"], ["p.txt"], ["p.parquet"], PARTS])
def test_sort_reads_all_that_predict_writes(run: Run, photos: Path, tmp_path: Path, names: list[str]) -> None:
    if names == ["p.parquet"]:
        pytest.importorskip("pyarrow")
    (tmp_path / "parts").mkdir()
    for number, name in enumerate(names):
        write(tmp_path / "parts" / name, predictions()[3 * number : None if len(names) == number + 1 else 3])
    done = run(f"parts/{names[0]}" if len(names) == 1 else "parts", "--into", "sorted")
    assert (done.returncode, done.stdout) == (0, b""), done.stderr
    assert done.stderr.decode().splitlines() == [
        "clipcls: 4 files copied into sorted/",
        "clipcls:   1  _unknown",
        "clipcls:   2  cat",
        "clipcls:   1  hot dog",
    ]
    assert contents(tmp_path / "sorted") == SORTED
    assert len(contents(photos)) == 4


def test_sort_reads_standard_input_to_its_end_before_it_touches_anything(
    run: Run, photos: Path, tmp_path: Path
) -> None:
    jsonl, tsv = (write(tmp_path / name, predictions()).read_bytes() for name in ("p.jsonl", "p.tsv"))
    move = ("--into", "sorted", "--by", "move", "--yes")
    for broken in (jsonl[:-20], jsonl + b"not a row\n", b'{"path": "photos/a.jpg"}\n'):
        (tmp_path / "broken.jsonl").write_bytes(broken)
        for done in (run("broken.jsonl", *move), run("-", *move, input=broken)):
            assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
            assert len(contents(photos)) == 4
    assert run("-", *move, input=jsonl).returncode == 0
    assert contents(tmp_path / "sorted") == SORTED
    assert not contents(photos)
    assert run("--undo", "sorted").returncode == 0
    assert run("-", "--into", "sorted", "--format", "tsv", input=tsv).returncode == 0
    assert contents(tmp_path / "sorted") == SORTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give predictions and --into DIR"),
        (("p.jsonl",), "Give predictions and --into DIR"),
        (("p.jsonl", "--undo", "sorted"), "--undo DIR goes alone"),
        (("nosuch.jsonl", "--into", "sorted"), "nosuch.jsonl: can't be read: No such file"),
        (("photos", "--into", "sorted"), "photos: there are no part files in it"),
        (("p.jsonl", "--into", "p.jsonl"), "p.jsonl isn't a folder"),
        (("p.jsonl", "--into", "no/such"), "isn't there"),
        (("p.jsonl", "--into", "sorted", "--format", "table"), "can't be read back from table"),
        (("p.jsonl", "--into", "sorted", "--by", "move"), "give --yes"),
        (("-", "--into", "sorted"), "no predictions in it"),
        (("--undo", "photos"), "nothing to undo"),
    ],
)
def test_sort_says_what_is_wrong_on_one_line(
    run: Run, photos: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    write(tmp_path / "p.jsonl", predictions())
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert not (tmp_path / "sorted").exists()


@pytest.mark.parametrize("by", ["copy", "move"])
def test_sort_dry_run_says_what_a_run_does(run: Run, photos: Path, tmp_path: Path, by: str) -> None:
    write(tmp_path / "p.jsonl", [*predictions(), Prediction("photos/gone.jpg", "cat", 0.5, 0.25)])
    (tmp_path / "sorted" / "cat").mkdir(parents=True)
    (tmp_path / "sorted" / "cat" / "A.JPG").write_bytes(b"another")
    before = contents(tmp_path)
    dry = run("p.jsonl", "--into", "sorted", "--by", by, "--dry-run")
    assert dry.returncode == 1
    assert contents(tmp_path) == before
    assert dry.stdout.splitlines() == [
        b"photos/a.jpg\tsorted/cat/a-2.jpg",
        b"photos/b.jpg\tsorted/hot dog/b.jpg",
        b"photos/c.jpg\tsorted/_unknown/c.jpg",
        b"photos/caf\xe9\\t\\n.jpg\tsorted/cat/caf\xe9\\t\\n.jpg",
    ]
    real = run("p.jsonl", "--into", "sorted", "--by", by, "--yes", "-v")
    assert (real.returncode, real.stdout) == (1, dry.stdout)
    for done in (dry, real):
        assert b"clipcls: photos/gone.jpg: no such file\n" in done.stderr
        assert done.stderr.endswith(b"clipcls: 1 row left out\n")
    assert contents(tmp_path / "sorted") == {"cat/A.JPG": b"another", "cat/a-2.jpg": b"0" * 100} | {
        name: content for name, content in SORTED.items() if name != "cat/a.jpg"
    }


def test_sort_undo_restores_and_says_so_unless_quiet(run: Run, photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", [*predictions(), Prediction("photos/gone.jpg", "cat", 0.5, 0.25)])
    before = contents(tmp_path)
    done = run("p.jsonl", "--into", "sorted", "--by", "move", "--yes", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"", b"")
    (photos / "a.jpg").write_bytes(b"new")
    done = run("--undo", "sorted")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"clipcls: {tmp_path}/sorted/cat/a.jpg: something else is at {tmp_path}/photos/a.jpg now",
        "clipcls: 3 files taken back from sorted/; 1 file left there",
    ]
    (photos / "a.jpg").unlink()
    done = run("--undo", "sorted", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert contents(tmp_path) == before
    assert not (tmp_path / "sorted").exists()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    done = run("p.jsonl", "--into", "sorted")
    assert done.returncode == 1
    assert done.stderr.endswith(b"clipcls: 5 rows left out; run it in the folder that predict was run in\n")
    assert not (tmp_path / "sorted").exists()


def asked(start: Start, reply: bytes) -> tuple[int, bytes]:
    """Move on a terminal, and say something when asked; the exit code and all that was shown."""
    leader, follower = pty.openpty()
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    process = start("sort", "p.jsonl", "--into", "sorted", "--by", "move", **streams)
    os.close(follower)
    shown = b""
    replied = False
    with contextlib.suppress(OSError):  # the terminal is gone
        while select.select([leader], [], [], 30)[0] and (part := os.read(leader, 4096)):
            shown += part
            if not replied and b"[y/N]" in shown:
                os.write(leader, reply)
                replied = True
    code = process.wait()
    os.close(leader)
    return code, shown


def test_sort_asks_before_it_moves(start: Start, photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", predictions())
    code, shown = asked(start, b"\n")
    assert (code, len(contents(photos))) == (1, 4)
    assert b"Move 4 files into sorted/? [y/N]" in shown
    assert b"nothing was moved" in shown
    code, shown = asked(start, b"y\n")
    assert code == 0, shown
    assert contents(tmp_path / "sorted") == SORTED


def test_sort_that_cannot_write_exits_with_4_and_can_be_undone(start: Start, photos: Path, tmp_path: Path) -> None:
    def limited(size: int, *args: str) -> tuple[int, str]:
        """Run where files of more bytes can't be written; returns the exit code and the messages."""
        process = start("sort", *args, before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))
        _, errors = process.communicate()
        return process.wait(), errors.decode()

    (photos / "b.jpg").write_bytes(b"x" * 100_000)
    write(tmp_path / "p.jsonl", predictions())
    before = contents(tmp_path)
    assert limited(50_000, "p.jsonl", "--into", "sorted") == (
        4,
        "clipcls: error: sorted/hot dog/b.jpg: can't be written: file too large. 1 of 4 files are done: the same "
        "command goes on, `clipcls sort --undo sorted` takes them back.\n",
    )
    assert contents(tmp_path / "sorted") == {"cat/a.jpg": b"0" * 100}
    # taking back needs no space
    assert limited(0, "--undo", "sorted") == (0, "clipcls: 1 file taken back from sorted/\n")
    assert contents(tmp_path) == before
    assert not (tmp_path / "sorted").exists()


@pytest.mark.parametrize(("by", "number"), [("copy", signal.SIGINT), ("move", signal.SIGTERM)])
def test_sort_stops_between_two_files_when_told(
    start: Start, run: Run, tmp_path: Path, by: str, number: signal.Signals
) -> None:
    (tmp_path / "photos").mkdir()
    names = [f"photos/{index:04d}.jpg" for index in range(400)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    write(tmp_path / "p.jsonl", [Prediction(name, "cat", 0.5, 0.5) for name in names])
    before = contents(tmp_path)
    process = start("sort", "p.jsonl", "--into", "sorted", "--by", by, "--yes")
    while not (tmp_path / "sorted/cat/0000.jpg").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.wait() == 128 + number, errors
    assert b"of 400 files are done: the same command goes on" in errors
    assert b"Traceback" not in errors
    assert (tmp_path / "sorted" / LOG_NAME).read_bytes().endswith(b'{"end": true}\n')
    some = contents(tmp_path / "sorted")
    assert 0 < len(some) < 400
    assert all(f"photos/{Path(name).name}".encode() == content for name, content in some.items())
    done = run("p.jsonl", "--into", "sorted", "--by", by, "--yes")
    assert done.returncode == 0, done.stderr
    assert f"clipcls: {len(some):,} file".encode() in done.stderr
    assert len(contents(tmp_path / "sorted")) == 400
    assert run("--undo", "sorted").returncode == run("--undo", "sorted").returncode == 0
    assert contents(tmp_path) == before


def test_sort_goes_on_when_nobody_reads_what_it_says(start: Start, photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", predictions())
    for arguments in (("p.jsonl", "--into", "sorted"), ("--undo", "sorted")):
        process = start("sort", *arguments, "-v")
        process.stdout.close()
        _, errors = process.communicate()
        assert process.wait() == 0
        assert b"clipcls: 4 files " in errors
    process = start("sort", "p.jsonl", "--into", "sorted", "--dry-run", stdout=None)
    _, errors = process.communicate()
    assert process.wait() == 4
    assert b"standard output is closed" in errors and b"Traceback" not in errors


def test_sort_loads_neither_torch_nor_numpy(photos: Path, tmp_path: Path) -> None:
    write(tmp_path / "p.jsonl", predictions())
    code = (
        "import sys\n"
        "sys.argv = ['clipcls', 'sort', 'p.jsonl', '--into', 'sorted']\n"
        "from clipcls.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exc:\n    assert not exc.code, exc.code\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=environment, text=True)
    assert not set(loaded.split()) & {"torch", "numpy", "PIL", "open_clip", "pyarrow", "urllib3", "yaml"}


def test_a_table_of_labels_is_sorted_too(tmp_path: Path, clipcls: Run) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(b"content")
    # relative paths start at the table's folder, as everywhere in such tables
    (tmp_path / "in" / "labels.csv").write_text(f"path,label\na.png,cat\n{tmp_path}/in/b.png,dog\n,cat\n")
    done = clipcls("sort", "in/labels.csv", "--into", "sorted")
    assert done.returncode == 0, done.stderr
    assert b"nothing in the column path" in done.stderr
    assert (tmp_path / "sorted" / "cat" / "a.png").exists()
    assert (tmp_path / "sorted" / "dog" / "b.png").exists()
