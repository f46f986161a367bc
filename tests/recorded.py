"""Record what clipcls commands print, write and exit with, and compare two such recordings byte for byte.

    python tests/recorded.py record BEFORE
    python tests/recorded.py record AFTER --python ../other/.venv/bin/python
    python tests/recorded.py compare BEFORE AFTER

A refactoring changes nothing that a user sees: what the code recorded before it is what it must record after it. The
commands are in `recorded.txt`. They run as processes of any interpreter that has clipcls, so that this file needs
nothing of the package: Python, Pillow and pyarrow do. The same machine has to make both recordings, since scores are
compared to their last digit.
"""

import argparse
import base64
import difflib
import fnmatch
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
COMMANDS = Path(__file__).with_suffix(".txt")
# all files of the corpus are this old: 1 January 2020
MTIME_NS = 1_577_836_800 * 10**9
# the cache doesn't trust the times of files that changed less than two seconds before they were read
SETTLE_SECONDS = 2.5
STEP_SECONDS = 400
_ENCODED_PATH = re.compile(r'(?<=_b64": ")[A-Za-z0-9+/]+=*(?=")')
_CALLS_CLIPCLS = re.compile(r"\bclipcls(?: |$)")

# --------------------------------------------------------------------------------------------- the corpus


def write_corpus(folder: Path) -> None:
    """Make pictures, good and bad, and every kind of list, table, shard and label file that the commands name."""
    for name in ("images", "others"):
        shutil.copytree(ROOT / "examples" / name, folder / name, ignore=shutil.ignore_patterns("*.txt"))
    _write_awkward(folder / "awkward")
    _write_classes(folder)
    _write_tables(folder)
    _write_shards(folder)
    _write_label_files(folder)
    _write_training(folder)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, ns=(MTIME_NS, MTIME_NS), follow_symlinks=False)


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _write_awkward(folder: Path) -> None:
    """Pictures with something about them, by content and by name, and files that are none."""
    folder.mkdir()
    dog = Image.open(ROOT / "examples" / "images" / "dog.jpg").convert("RGB")
    cat = Image.open(ROOT / "examples" / "images" / "cat.png").convert("RGBA")
    turned = Image.Exif()
    turned[0x0112] = 6
    jpeg, png = _encoded(dog, "JPEG"), _encoded(cat, "PNG")
    grey16 = Image.frombytes("I;16", (64, 64), b"".join(i.to_bytes(2, "little") for i in range(0, 65536, 16)))
    files = {
        "animated.gif": _encoded(dog, "GIF", save_all=True, append_images=[cat.convert("RGB")]),
        "cmyk.jpg": _encoded(dog.convert("CMYK"), "JPEG"),
        "empty.png": b"",
        "float.tif": _encoded(dog.convert("F"), "TIFF"),
        "grey16.png": _encoded(grey16, "PNG"),
        "palette.png": _encoded(cat.convert("P"), "PNG"),
        "pixel.png": _encoded(Image.new("RGB", (1, 1), "red"), "PNG"),
        "text.png": b"This is no picture.\n",
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "truncated.png": png[: len(png) // 2],
        "turned.jpg": _encoded(dog, "JPEG", exif=turned.tobytes()),
        ".hidden.png": png,
        "na\u00efve \u732b.png": png,
        "tab\tand \\ backslash.png": png,
        "new\nline.png": png,
        "star*[1].png": png,
        os.fsdecode(b"latin-\xe9.png"): png,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "link.png").symlink_to("palette.png")


def _write_classes(folder: Path) -> None:
    """Class folders: `classes` as they should be; `messy` with a bad picture, an odd one and a class more."""
    for top in ("classes", "messy"):
        for name in ("cat", "dog", "truck"):
            (folder / top / name).mkdir(parents=True)
        for path in sorted((folder / "images").iterdir()):
            name = "cat" if "cat" in path.name else "dog" if "dog" in path.name or "poodle" in path.name else "truck"
            shutil.copy(path, folder / top / name)
    (folder / "messy" / "fire_engine").mkdir()
    shutil.copy(folder / "others" / "pizza.webp", folder / "messy" / "fire_engine")
    shutil.copy(folder / "others" / "rose.png", folder / "messy" / "cat")
    shutil.copy(folder / "awkward" / "truncated.jpg", folder / "messy" / "dog")


def _write_tables(folder: Path) -> None:
    """Lists of paths, tables of pictures, and tables of right answers."""
    import pyarrow as pa
    from pyarrow import parquet

    paths = [f"images/{path.name}" for path in sorted((folder / "images").iterdir())]
    names = ["truck", "cat", "cat", "cat", "truck", "dog", "dog", "truck", "cat", "dog", "truck", "dog"]
    bad = ["awkward/truncated.jpg", "missing.png"]
    (folder / "list.txt").write_text("\n".join(paths[:3] + bad) + "\n")
    (folder / "list.nul").write_bytes(b"\0".join(map(os.fsencode, [*paths[:2], "awkward/new\nline.png"])) + b"\0")
    (folder / "table.csv").write_text("id,image\n" + "".join(f"{i},{path}\n" for i, path in enumerate(paths + bad)))
    (folder / "table.tsv").write_text("id\timage\n" + "".join(f"{i}\t{path}\n" for i, path in enumerate(paths[:3])))
    rows = [json.dumps({"id": i, "image": path}) for i, path in enumerate(paths[:3])]
    (folder / "table.jsonl").write_text("\n".join(rows) + "\n")
    parquet.write_table(pa.table({"id": list(range(4)), "image": paths[:3] + bad[:1]}), folder / "table.parquet")
    data = [(folder / path).read_bytes() for path in [*paths[:2], bad[0]]]
    structs = [{"bytes": item, "path": None} for item in data]
    parquet.write_table(pa.table({"image": structs, "data": data}), folder / "pictures.parquet")
    right = list(zip(paths, names, strict=True))
    (folder / "truth.csv").write_text("path,label\n" + "".join(f"{path},{name}\n" for path, name in right))
    several = [{"path": path, "labels": [name, "animal"] if name != "truck" else [name]} for path, name in right]
    (folder / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several))


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


def _write_shards(folder: Path) -> None:
    """Plain and compressed shards of pictures, one with captions, and a data set in CLIP_benchmark's layout."""
    pictures = [path.read_bytes() for path in sorted((folder / "images").glob("*.png"))]
    shards = folder / "shards"
    for shard in range(2):
        chosen = enumerate(pictures[shard * 3 : shard * 3 + 3])
        _write_tar(shards / f"{shard:03}.tar", ((f"{number:04}.png", data) for number, data in chosen))
    _write_tar(shards / "bad.tar", [("a.png", pictures[0]), ("b.jpg", b"no picture"), ("c.txt", b"a note")])
    _write_tar(folder / "packed.tar.gz", [("a.png", pictures[0]), ("b.png", pictures[1])])
    cut = (shards / "000.tar").read_bytes()
    (folder / "cut.tar").write_bytes(cut[: len(cut) // 3])
    benchmark = folder / "benchmark"
    # black cat, cat, delivery truck, dog face, guide dog, pickup truck
    for shard, right in enumerate(((0, 0, 2), (1, 1, 2))):
        members = [
            member
            for number, (name, data) in enumerate(zip(right, pictures[shard * 3 : shard * 3 + 3], strict=True))
            for member in ((f"s{number:07}.cls", str(name).encode()), (f"s{number:07}.png", data))
        ]
        _write_tar(benchmark / "test" / f"{shard}.tar", members)
    (benchmark / "test" / "nshards.txt").write_text("2\n")
    (benchmark / "classnames.txt").write_text("cat\ndog\ntruck\n")
    (benchmark / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}.\n")


def _write_label_files(folder: Path) -> None:
    """Label and prompt files of every kind, and broken ones."""
    texts = {
        "labels.txt": "cat\ndog\n\ntruck\n",
        "labels.csv": "label,synonyms,prompts\ncat,kitty,\ndog,hound|puppy,\ntruck,,an icon of a truck\n",
        "labels.json": '{"cat": ["kitty"], "dog": [], "truck": {"prompts": ["an icon of a truck"]}}\n',
        "labels.yaml": "cat:\ndog: [hound, puppy]\ntruck: {prompts: [an icon of a truck, a lorry]}\n",
        "doubled.txt": "cat\ndog\nCat\n",
        "empty.txt": "\n",
        "broken.yaml": "cat: [\n",
        "truth.yaml": "- yes\n- no\n",
        "prompts.yaml": "templates:\n  - an icon of a {}\n  - a drawing of a {}\n",
        "prompts.txt": "an icon of a {}\na drawing of a {label}\n",
        "bad-prompts.txt": "an icon without a place\n",
        "bad-calibration.yaml": "temperature: much\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "latin.txt").write_bytes(b"caf\xe9\n")


def _write_training(folder: Path) -> None:
    """Pairs to train on, with a row that can't be used, and an architecture that takes no time."""
    rows = [{"image": f"images/{path.name}", "caption": path.stem} for path in sorted((folder / "images").iterdir())]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    messy = [*rows[:5], {"image": "awkward/truncated.jpg", "caption": "broken"}, {"image": rows[6]["image"]}]
    (folder / "messy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messy))
    arch = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny.json").write_text(json.dumps(arch, indent=1))


# ----------------------------------------------------------------------------------- what came of commands


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or link as it was.

    Attributes:
        kind: `file`, `folder`, or `link to …`.
        mode: its permissions.
        links: how many names a file has.
        is_old: whether it has the time that all of the corpus has.
        data: of a file.
    """

    kind: str
    mode: int
    links: int
    is_old: bool
    data: bytes = b""


def snapshot(folder: Path) -> dict[str, Entry]:
    """Read all below a folder, by relative path."""
    return {str(path.relative_to(folder)): _entry(path) for path in sorted(folder.rglob("*"))}


def _entry(path: Path) -> Entry:
    status = path.lstat()
    is_old = status.st_mtime_ns == MTIME_NS
    if path.is_symlink():
        return Entry(f"link to {path.readlink()}", 0, 1, is_old)
    if path.is_dir():
        return Entry("folder", status.st_mode & 0o7777, 1, False)
    return Entry("file", status.st_mode & 0o7777, status.st_nlink, is_old, path.read_bytes())


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _shown(data: bytes, scratch: bytes) -> str:
    """Text as it is; of other files what says whether they are the same but for the path of the scratch folder."""
    if not data:
        return "(empty)\n"
    if data.startswith(b"PAR1"):
        return _parquet_rows(data)
    if data.startswith(b"PK\3\4"):
        return _archive_members(data, scratch)
    if b"Software\0Matplotlib" in data:
        image = Image.open(io.BytesIO(data))
        return f"plot, {image.mode}, {image.size}, pixels {hashlib.sha256(image.tobytes()).hexdigest()}\n"
    if data.startswith((b"\x89PNG", b"RIFF", b"\xff\xd8\xff")) or b"\0\0\0" in data:
        return f"{_digest(data, scratch)}\n"
    return _text(data) if data.endswith(b"\n") else f"{_text(data)}\n(no newline at the end)\n"


def _digest(data: bytes, scratch: bytes) -> str:
    return f"{len(data)} bytes, SHA-256 {hashlib.sha256(data.replace(scratch, b'<scratch>')).hexdigest()}"


def _archive_members(data: bytes, scratch: bytes) -> str:
    """What is in a checkpoint, which is a ZIP file; torch's `serialization_id` is a checksum of the rest."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/.data/serialization_id")]
        structure = [name for name in names if name.endswith("/data.pkl")]
        others = b"".join(name.encode() + archive.read(name) for name in names if name not in structure)
        lines = [f"{name}: {_digest(archive.read(name), scratch)}\n" for name in structure]
    return "".join([*lines, f"{len(names) - len(structure)} other members: {_digest(others, scratch)}\n"])


def _parquet_rows(data: bytes) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(pa.BufferReader(data))
    columns = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
    rows = (json.dumps(row, ensure_ascii=False, default=repr) for row in table.to_pylist())
    return "".join(f"{line}\n" for line in (f"Parquet, {columns}", *rows))


# ------------------------------------------------------------------------------------------- the commands


@dataclass(frozen=True, slots=True)
class Case:
    """Commands that run one after the other in a copy of the corpus of their own."""

    name: str
    steps: tuple[str, ...]


def read_cases(text: str) -> list[Case]:
    """Read the list of commands: `[name]` begins a case, `#` a comment, every other line is a step."""
    found: dict[str, list[str]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1]
            if name in found:
                raise SystemExit(f"{COMMANDS}: [{name}] is there twice.")
            found[name] = []
        elif not line.startswith("#"):
            found[next(reversed(found))].append(line)
    return [Case(name, tuple(steps)) for name, steps in found.items()]


def choose(cases: Sequence[Case], pattern: str | None) -> list[Case]:
    """Return the cases whose names match a shell pattern or, after `!`, don't match it."""
    if pattern is None:
        return list(cases)
    unwanted = pattern.startswith("!")
    return [case for case in cases if fnmatch.fnmatchcase(case.name, pattern.removeprefix("!")) != unwanted]


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where commands run: a scratch folder whose path has the same length in each recording.

    Attributes:
        scratch: holds the corpus, a home folder, and a folder for each case.
        replacements: patterns of what differs between any two recordings, and what stands for it.
    """

    scratch: Path
    replacements: tuple[tuple[re.Pattern[str], str], ...]

    @classmethod
    def make(cls, scratch: Path, interpreter: Path) -> "Workplace":
        """Make the corpus, an empty home, and `clipcls` as a command."""
        for name in ("home", "bin", "tmp", "corpus"):
            (scratch / name).mkdir()
        command = scratch / "bin" / "clipcls"
        command.write_text(f'#!/bin/sh\nexec "{interpreter}" -m clipcls "$@"\n')
        command.chmod(0o755)
        write_corpus(scratch / "corpus")
        find = "import importlib.util, sys; print(importlib.util.find_spec('clipcls').origin, sys.prefix, sep='\\n')"
        asked = subprocess.run([interpreter, "-c", find], cwd=scratch, capture_output=True, text=True)
        if asked.returncode:
            raise SystemExit(f"{interpreter}: has no clipcls.\n{asked.stderr}")
        origin, prefix = asked.stdout.splitlines()
        return cls(scratch, tuple(_replacements(scratch, Path(origin).parent, Path(prefix))))

    def environment(self, case: Path) -> dict[str, str]:
        """Return all that the environment of a case's commands holds."""
        return {
            "PATH": f"{self.scratch}/bin:/usr/bin:/bin",
            "HOME": str(self.scratch / "home"),
            "TMPDIR": str(self.scratch / "tmp"),
            "LC_ALL": "C.UTF-8",
            "TZ": "UTC",
            "COLUMNS": "80",
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            # away from other clusters on this machine
            "RAY_TMPDIR": str(self.scratch / "tmp"),
            "CLIPCLS_MODEL": "pictogram",
            "CLIPCLS_DEVICE": "cpu",
            "CLIPCLS_PRECISION": "fp32",
            "CLIPCLS_CACHE_DIR": str(case / "cache"),
        }

    def prepare(self, cases: Iterable[Case]) -> None:
        """Give each case its copy of the corpus."""
        for case in cases:
            shutil.copytree(self.scratch / "corpus", self.scratch / case.name / "work", symlinks=True)
        time.sleep(SETTLE_SECONDS)

    def record(self, case: Case) -> str:
        """Run a case's commands, and return what came of them."""
        folder = self.scratch / case.name
        work = folder / "work"
        before = snapshot(work)
        parts = []
        for step in case.steps:
            done = _run(step, work, self.environment(folder))
            after = snapshot(work)
            if _CALLS_CLIPCLS.search(step):
                parts.append(self.normalise("".join(self._described(step, done, before, after))))
            elif done.returncode:
                raise SystemExit(f"[{case.name}] {step}: exit code {done.returncode}: {_text(done.stderr)}")
            before = after
        shutil.rmtree(folder)
        return "\n".join(parts)

    def normalise(self, text: str) -> str:
        """Replace what differs between any two recordings."""
        text = _ENCODED_PATH.sub(self._decoded, text)
        for pattern, standing in self.replacements:
            text = pattern.sub(standing, text)
        return text

    def _described(
        self, step: str, done: "subprocess.CompletedProcess[bytes]", before: dict[str, Entry], after: dict[str, Entry]
    ) -> Iterator[str]:
        yield f"$ {step}\nexit code {done.returncode}\n"
        for name, data in (("standard output", done.stdout), ("standard error", done.stderr)):
            if data:
                yield f"--- {name}\n{_shown(data, os.fsencode(self.scratch))}"
        for name in sorted(before.keys() | after.keys()):
            was, now = before.get(name), after.get(name)
            if now is None:
                yield f"--- removed {name!r}\n"
            elif was != now:
                age = ", as old as the corpus" if now.is_old else ""
                links = f", {now.links} links" if now.links > 1 else ""
                yield f"--- {'changed' if was else 'new'} {now.kind} {name!r}, mode {now.mode:o}{age}{links}\n"
                if now.kind == "file" and (was is None or was.data != now.data):
                    yield _shown(now.data, os.fsencode(self.scratch))

    def _decoded(self, match: re.Match[str]) -> str:
        """Show an absolute path that isn't UTF-8 as it is, since its Base64 hides where the recording was made."""
        path = base64.b64decode(match[0])
        return repr(os.fsdecode(path))[1:-1] if path.startswith(os.fsencode(self.scratch)) else match[0]


def _replacements(scratch: Path, package: Path, prefix: Path) -> Iterator[tuple[re.Pattern[str], str]]:
    """What isn't the same twice. Scores, counts and sizes of what was written are no such things."""
    yield re.compile(re.escape(str(scratch)) + r"/[\w.-]+/(?=work|cache)"), "<case>/"
    yield re.compile(re.escape(str(scratch))), "<scratch>"
    # wherever the embedded model lies in the package
    yield re.compile(re.escape(str(package)) + r"/(?:[\w./-]*/)?pictogram(?=/)"), "<pictogram>"
    yield re.compile(re.escape(str(package))), "<package>"
    yield re.compile(re.escape(str(prefix))), "<python>"
    # the record of a sorting: its run's random name; what follows size and mtime of a file
    yield re.compile(r'(?<="run": ")[0-9a-f]{12}(?=")'), "<run>"
    yield re.compile(r'("mark": \[\d+, \d+)(, \d+)+\]'), r"\1, <stamp>]"
    # a calibration's day; the time and the process that a damaged cache was set aside at and by
    yield re.compile(r"(?<=\bdate: ')\d{4}-\d\d-\d\d(?=')"), "<date>"
    yield re.compile(r"(?<=\.damaged-)\d{19}-\d+"), "<ns>-<process>"
    # the speed of a training run, its time, and the lines between the first and the last, which come every 15 seconds
    yield re.compile(r'(?<="images_per_second": )[\d.e-]+, "seconds_left": [\d.e-]+'), '<rate>, "seconds_left": <time>'
    yield re.compile(r"\d+ images/s  \d+:\d\d:\d\d left"), "<rate> images/s  <time> left"
    yield re.compile(r"(?<=^trained in )[\d.]+(?= min)", re.MULTILINE), "<time>"
    yield re.compile(r"(?<=left\n)(?:step \d+/\d+  .* left\n)+(?=step \d+/\d+  .* left\n)"), ""
    # other times than the corpus's own, in nanoseconds
    yield re.compile(rf"\b(?!{MTIME_NS}\b)1[5-9]\d{{17}}\b"), "<ns>"


def _run(step: str, folder: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of bash; one that doesn't end is killed with all that it started, which is recorded too."""
    command = ["bash", "-o", "pipefail", "-c", step]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    place: dict[str, Any] = {"cwd": folder, "env": environment, "umask": 0o022, "start_new_session": True}
    with subprocess.Popen(command, **streams, **place) as process:
        try:
            output, errors = process.communicate(timeout=STEP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            errors += f"no end within {STEP_SECONDS} seconds\n".encode()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


# ------------------------------------------------------------------------------------- record and compare


def record(folder: Path, interpreter: Path, only: str | None, jobs: int) -> int:
    """Run the chosen commands, and write a file a case into a folder."""
    cases = choose(read_cases(COMMANDS.read_text(encoding="utf-8")), only)
    if not cases:
        raise SystemExit(f"No case is called {only}.")
    if only is None and folder.is_dir() and any(folder.iterdir()):
        raise SystemExit(f"{folder}: isn't empty. Choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="recorded-") as scratch, ThreadPoolExecutor(jobs) as pool:
        workplace = Workplace.make(Path(scratch).resolve(), interpreter)
        workplace.prepare(cases)
        for case, text in zip(cases, pool.map(workplace.record, cases), strict=True):
            (folder / f"{case.name}.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
            print(f"{time.monotonic() - start:6.1f} s  {case.name}", file=sys.stderr, flush=True)
    commands = sum(bool(_CALLS_CLIPCLS.search(step)) for case in cases for step in case.steps)
    print(f"{commands} commands in {folder}", file=sys.stderr)
    return 0


def compare(before: Path, after: Path) -> int:
    """Print how two recordings differ, and return 1 if they do."""
    names = sorted({path.name for folder in (before, after) for path in folder.glob("*.txt")})
    if not names:
        raise SystemExit(f"{before}, {after}: hold no recordings.")
    differing = 0
    for name in names:
        texts = [_text(path.read_bytes()) if path.exists() else "" for path in (before / name, after / name)]
        if texts[0] != texts[1]:
            differing += 1
            # not `splitlines`, which splits at more than newlines
            old, new = (text.removesuffix("\n").split("\n") for text in texts)
            lines = difflib.unified_diff(old, new, str(before / name), str(after / name), lineterm="")
            output = "".join(f"{line}\n" for line in lines)
            sys.stdout.buffer.write(output.encode("utf-8", "surrogateescape"))
    print(f"{differing} of {len(names)} differ", file=sys.stderr)
    return 1 if differing else 0


def main() -> int:
    """Read the command line, and do what it says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="run the commands of recorded.txt")
    recording.add_argument("folder", type=Path, help="where a file for each case is written")
    recording.add_argument("--python", type=Path, default=Path(sys.executable), help="which has the clipcls to record")
    recording.add_argument("--only", metavar="PATTERN", help="cases to run, as 'sort*'; '!slow*' is all but those")
    recording.add_argument("--jobs", type=int, default=2, help="cases that run at the same time [2]")
    recording.set_defaults(run=lambda args: record(args.folder, args.python.absolute(), args.only, args.jobs))
    comparing = commands.add_parser("compare", help="print how two recordings differ; exit code 1 if they do")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.set_defaults(run=lambda args: compare(args.before, args.after))
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
