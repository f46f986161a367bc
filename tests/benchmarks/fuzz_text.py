"""Damaged text through every reader of it: no traceback, no hang, no answer from fewer rows without a word.

    nice python tests/benchmarks/fuzz_text.py --count 50000 --seed 0 --keep offenders

Good labels, prompts, tables, lists of paths, predictions, calibrations and settings are changed at random: quotes,
separators, encodings, newlines, NULs, byte order marks, huge lines, numbers, nesting, flipped bytes, cuts. Each mutant
is read as the commands read it. A mutant that raises anything but a `ClipclsError`, whose error holds a line break or
doesn't name the file, that takes longer than two seconds, or that gives fewer rows than it has without an error or a
message, is an offender; they are saved. The same seed makes the same mutants. Exits with 1 if there are any offenders.
"""

import argparse
import csv
import io
import json
import logging
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcls.errors import ClipclsError
from clipcls.inputs.discover import discover
from clipcls.inputs.labelled.read import read_captioned, read_truth
from clipcls.inputs.listing import Sources
from clipcls.labels.label_files import read_labels
from clipcls.labels.prompts import load_prompt_set
from clipcls.models.locate import read_architecture
from clipcls.outputs.formats import format_for
from clipcls.outputs.read_back import read_predictions
from clipcls.predict.calibration import read_calibration
from clipcls.train.settings import read_config_file

SECONDS = 2.0
HUGE = 300_000

PREDICTION = {"path": "a.jpg", "label": "cat", "score": 0.5, "similarity": 0.3}
TOP = [{"label": "cat", "score": 0.5, "similarity": 0.3}]
CSV_TOP = '"[{""label"": ""cat"", ""score"": 0.5, ""similarity"": 0.3}]"'
CALIBRATION = """clipcls_calibration: 1
model: {name: m, fingerprint: ab, precision: fp32, decode: fast}
prompts: {name: default, sha256: ab}
score: {kind: softmax, multi_label: false, background: null, temperature: 1.5, logit_scale: 4.0, logit_bias: null}
fitted_on: {images: 10, date: '2026-01-01', clipcls: 0.1.0}
thresholds: null
labels: [{name: cat}, {name: dog}]
"""


@dataclass(frozen=True, slots=True)
class Reader:
    """A file of text, and what reads it.

    Attributes:
        name: of the file.
        read: returns the number of rows that were read, or are errors of their own; None where rows don't count.
        rows: counts the rows of a mutant independently; None where they can't be told.
    """

    name: str
    good: str
    read: Callable[[Path], int | None]
    rows: Callable[[str], int | None] = lambda text: None


def _lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.split("\n"))


def _nonempty(text: str) -> int:
    return sum(bool(line.strip("\r\ufeff")) for line in text.split("\n"))


def _csv_rows(text: str, delimiter: str = ",", header: int = 1) -> int | None:
    """Rows of strict CSV; lines that aren't blank where no quote is in it."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if '"' not in text:
        return max(0, sum(bool(line.replace(delimiter, "").strip()) for line in text.split("\n")) - header)
    try:
        rows = [
            row
            for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            if any(cell.strip() for cell in row)
        ]
    except csv.Error:
        return None
    return max(0, len(rows) - header)


def _labels(path: Path) -> int:
    return len(read_labels(path))


def _listed(path: Path) -> int:
    return sum(1 for _ in discover(Sources(files_from=str(path))))


def _pictures(path: Path) -> int:
    return sum(1 for _ in discover(Sources([str(path)], column="path")))


def _truth(path: Path) -> int:
    truth = read_truth([str(path)])
    return len(truth.examples) + len(truth.problems)


def _captions(path: Path) -> int:
    truth = read_captioned(str(path))
    return len(truth.examples) + len(truth.problems)


def _predictions(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in read_predictions(file, format_for(path), str(path)))


def _prompts(path: Path) -> None:
    load_prompt_set(str(path))


def _architecture(path: Path) -> None:
    read_architecture(str(path))


def _uncounted(read: Callable[[Path], object]) -> Callable[[Path], None]:
    def call(path: Path) -> None:
        read(path)

    return call


READERS = (
    Reader("labels.txt", "cat\nhot_dog\ncrane, bird\n", _labels, _lines),
    Reader("labels.csv", 'label,synonyms\ncat,kitty|puss\n"crane, bird",\ndog,\n', _labels, _csv_rows),
    Reader("labels.tsv", "label\tsynonyms\ncat\tkitty\ndog\t\n", _labels, lambda text: _csv_rows(text, "\t")),
    Reader("labels.json", '{"cat": ["kitty"], "dog": {"prompts": ["a dog"]}, "id": "7"}', _uncounted(read_labels)),
    Reader("labels.jsonl", '{"label": "cat"}\n"dog"\n{"label": "owl", "synonyms": ["eagle owl"]}\n', _labels, _lines),
    Reader("labels.yaml", "cat: [kitty]\ndog: {prompts: [a dog]}\nowl:\n", _uncounted(read_labels)),
    Reader("prompts.yaml", "description: x\ntemplates:\n- a {}\n- the {label}.\n", _prompts),
    Reader("prompts.txt", "a {}\nthe {}.\n", _prompts),
    Reader("list.txt", "a.jpg\nb c.jpg\nx/d.png\n", _listed, _nonempty),
    Reader("table.csv", 'path,label\na.jpg,cat\n"b,c.jpg",dog\nd.jpg,"x ""y"""\n', _pictures, _csv_rows),
    Reader("table.tsv", "path\tlabel\na.jpg\tcat\nb.jpg\tdog\n", _pictures, lambda text: _csv_rows(text, "\t")),
    Reader("table.jsonl", '{"path": "a.jpg", "label": "cat"}\n{"path": "b.jpg"}\n', _pictures, _lines),
    Reader("truth.csv", 'path,label\na.jpg,cat\n"b,c.jpg",dog\nd.jpg,"x ""y"""\n', _truth, _csv_rows),
    Reader("truth.jsonl", '{"path": "a.jpg", "labels": ["cat", "x"]}\n{"path": "b", "labels": []}\n', _truth, _lines),
    Reader("pairs.csv", 'image,caption\na.jpg,a cat\n"b,c.jpg","a ""dog"""\n', _captions, _csv_rows),
    Reader("pairs.jsonl", '{"image": "a.jpg", "caption": "a cat", "captions": ["x", "y"]}\n' * 3, _captions, _lines),
    Reader("out.jsonl", (json.dumps(PREDICTION | {"top": TOP, "error": None}) + "\n") * 3, _predictions, _lines),
    Reader(
        "out.csv",
        "path,label,score,similarity,top,error,path_b64\n" + f"a.jpg,cat,0.5,0.3,{CSV_TOP},,\n" * 3,
        _predictions,
        _csv_rows,
    ),
    Reader("out.tsv", "a.jpg\tcat\t0.500000\nb.jpg\t\t0.100000\n", _uncounted(_predictions)),
    Reader("calibration.yaml", CALIBRATION, _uncounted(read_calibration)),
    Reader("settings.yaml", "epochs: 3\nbatch_size: 8\ntemplates: ['a {}']\nseed: 1\n", _uncounted(read_config_file)),
    Reader("arch.json", '{"embed_dim": 8, "vision_cfg": {"layers": 1}, "text_cfg": {}}', _architecture),
)  # fmt: skip

PIECES = (
    *('"', '""', "'", ",", ";", "\t", "|", ":", "{", "}", "[", "]", "{}", "\\", "#", "- ", "&a ", "*a", "!!binary "),
    *("\n", "\r", "\r\n", "\n\n", "\x0b", "\x0c", "\x85", "\u2028", "\0", "\ufeff", "\u200b", "\ud800", "\u202e"),
    *("0", "-1", "1e999", "NaN", "Infinity", "null", "true", "0x1F", "99999999999999999999999", "1_000", "2024-01-02"),
    *("猫", "é", "e\u0301", "\U0001f469\u200d\U0001f680", "data:image/png;base64,", "http://x/", "s3://b/", "~"),
)
ENCODINGS = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252", "utf-8-sig", "utf-7", "shift_jis")


def mutant(good: str, generator: random.Random) -> bytes:
    """Return a file's bytes after one to four changes."""
    text = good
    for _ in range(generator.choice((1, 1, 2, 4))):
        place = generator.randrange(len(text) + 1)
        match generator.randrange(9):
            case 0 | 1 | 2:
                text = text[:place] + generator.choice(PIECES) + text[place:]
            case 3:
                text = text[:place] + text[place + generator.choice((1, 2, 9)) :]
            case 4:
                lines = text.split("\n")
                lines.insert(generator.randrange(len(lines) + 1), generator.choice(lines))
                text = "\n".join(lines)
            case 5:
                text = (
                    text[:place] + generator.choice(("x", '"', ",", "[", "{", "\n")) * _length(generator) + text[place:]
                )
            case 6:
                old, new = generator.sample([",", ";", "\t", "\n", "\r\n", "\r", '"', ":"], 2)
                text = text.replace(old, new)
            case 7:
                text = text[:place]
            case 8:
                number = re.search(r"\d+", text)
                text = text if number is None else text.replace(number[0], generator.choice(PIECES), 1)
        text = text or "x"
    encoding = generator.choice(ENCODINGS) if generator.random() < 0.15 else "utf-8"
    data = bytearray(text.encode(encoding, "surrogatepass" if encoding == "utf-8" else "replace"))
    if generator.random() < 0.1 and data:
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data)


def _length(generator: random.Random) -> int:
    """Return a length: mostly some signs, rarely a line longer than a reader's buffers."""
    return HUGE if generator.random() < 0.05 else generator.randrange(2, 200)


class Messages(logging.Handler):
    """Counts what is logged for a user to see."""

    def __init__(self) -> None:
        super().__init__(level=25)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        record.getMessage()
        self.count += 1


def offence(reader: Reader, path: Path, data: bytes, messages: Messages) -> str | None:
    """Read a mutant; returns what is wrong with how it was read, None for nothing."""
    messages.count = 0
    began = time.perf_counter()
    try:
        found = reader.read(path)
    except ClipclsError as exc:
        found = None
        said = str(exc)
        if "\n" in said.strip() and "yaml" not in reader.name:
            return f"an error of several lines: {said[:200]!r}"
        if path.name not in said and "list of paths" not in said:
            return f"an error that doesn't name the file: {said[:200]!r}"
        if len(said) > 3000:
            return f"an error of {len(said):,} characters: {said[:200]!r}"
    except Exception as exc:  # noqa: BLE001, whatever it is
        return f"{type(exc).__name__}: {str(exc)[:200]!r}"
    took = time.perf_counter() - began
    if took > SECONDS:
        return f"took {took:.1f} s"
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return None
    expected = reader.rows(text) if found is not None else None
    if found is not None and expected is not None and found < expected and not messages.count:
        return f"{found} rows of {expected}, without a word"
    return None


def run(count: int, seed: int, keep: Path | None, readers: Sequence[Reader] = READERS) -> Counter[str]:
    """Make and read mutants; returns how many offenders there are of each file."""
    messages = Messages()
    logger = logging.getLogger("clipcls")
    logger.addHandler(messages)
    logger.propagate = False
    logger.setLevel(25)
    offenders: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a picture.jpg").touch()  # a row that names the folder gives it
        for number in range(count):
            reader = readers[number % len(readers)]
            data = mutant(reader.good, random.Random(f"{seed} {number}"))
            path = Path(folder) / reader.name
            path.write_bytes(data)
            wrong = offence(reader, path, data, messages)
            if wrong is not None:
                offenders[reader.name] += 1
                print(f"{reader.name}, mutant {number}: {wrong}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{number}-{reader.name}").write_bytes(data)
    logger.removeHandler(messages)
    logger.propagate = True
    return offenders


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for offenders")
    options: Any = parser.parse_args()
    began = time.monotonic()
    offenders = run(options.count, options.seed, options.keep)
    seconds = time.monotonic() - began
    print(f"{options.count:,} mutants in {seconds:.0f} s, {sum(offenders.values()):,} offenders {dict(offenders)}")
    return int(bool(offenders))


if __name__ == "__main__":
    sys.exit(main())
