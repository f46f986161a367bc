"""Measure the model on photographs, through the command line.

    python measure.py [--model MODEL] [--words WORDS.yaml | --all] SET ...

A SET is a folder LABEL/FILE of photographs. WORDS.yaml says by which other word each label is asked for, in another
language say; labels that it doesn't name are asked for as they are. `--all` measures something else: the labels are
5,000 English captions drawn by chance, the set's own among them, and an answer is right where every class that it means
is one that the label means, as for a cat "tabby" is and "animal" isn't.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from concepts import Caption, captions

LABELS = 5000


def clipcls(*arguments: str | Path) -> str:
    """Return what the command prints."""
    command = [sys.executable, "-m", "clipcls", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def by_name(photographs: Path, model: str, words: dict[str, str]) -> str:
    """Return the figures of one set of photographs, as a row of a table."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {name: {"prompts": [words.get(name, name)]} for name in labels_of(photographs)}
        file = Path(folder) / "labels.yaml"
        file.write_text(yaml.safe_dump(asked, allow_unicode=True), encoding="utf-8")
        more = ["--labels-file", file] if words else []
        report: dict[str, Any] = json.loads(clipcls("eval", photographs, "--model", model, "--format", "json", *more))
    (result,) = report["results"]
    figures = {name: figure["value"] for name, figure in result["figures"].items()}
    worst = sorted((row["recall"], row["class"]) for row in result["classes"])[:5]
    return (
        f"{photographs.name}: {len(asked)} labels, {report['measured']} photographs, "
        f"{100 * figures['accuracy@1']:.1f} % right, calibration error {figures['calibration error']:.3f}; "
        f"least: {', '.join(f'{name} {100 * recall:.0f} %' for recall, name in worst)}"
    )


def by_all_words(photographs: Path, model: str) -> str:
    """Return how many photographs get a word that means what is in them, among 5,000 words."""
    meanings = {caption.text: caption for caption in captions() if caption.kind != "chinese"}
    names = labels_of(photographs)
    others = sorted(set(meanings) - set(names))
    drawn = sorted([*names, *random.Random(0).sample(others, min(len(others), LABELS - len(names)))])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "labels.txt"
        file.write_text("\n".join(drawn), encoding="utf-8")
        rows = clipcls("predict", photographs, "--model", model, "--labels-file", file, "--format", "jsonl", "-q")
    answers = [(Path(row["path"]).parent.name, row["label"]) for row in map(json.loads, rows.splitlines())]
    right = sum(answer == name or is_within(meanings[answer], meanings[name]) for name, answer in answers)
    share = 100 * right / len(answers)
    return f"{photographs.name}: {len(drawn):,} labels, {len(answers)} photographs, {share:.1f} % right"


def labels_of(photographs: Path) -> Sequence[str]:
    """Return the labels of a set."""
    return sorted(folder.name for folder in photographs.iterdir() if folder.is_dir())


def is_within(answer: Caption, label: Caption) -> bool:
    """Tell whether all that an answer means is meant by a label, too."""
    return {number for number, weight in answer.weights if weight == 1} <= {number for number, _ in label.weights}


def main() -> None:
    """Print a line for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", type=Path, nargs="+", metavar="SET")
    parser.add_argument("--model", default="everyday")
    parser.add_argument("--words", type=Path)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    words = yaml.safe_load(options.words.read_text(encoding="utf-8")) if options.words else {}
    for photographs in options.sets:
        print(by_all_words(photographs, options.model) if options.all else by_name(photographs, options.model, words))


if __name__ == "__main__":
    main()
