"""Measure the page that `clipcls report` writes: its size, and how soon headless Chromium shows it and answers to keys.

    python tests/benchmarks/report_page.py FOLDER [--rows 10000] [--runs 5] [--thumbnails]

FOLDER receives pictures made of the example photographs, predictions of them, and the page. Times count from the start
of the navigation, by Chromium's own performance entries: the first picture is there once a small picture is loaded and
two frames have passed; the page is interactive once it is parsed and its last long task has ended. Then a scripted
session corrects 30 pictures by keys alone, exports the CSV, and `clipcls eval` reads it.

    python tests/benchmarks/report_page.py --draw

draws the pictures of the guide.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Page, browser

PHOTOS = sorted((Path(__file__).parents[2] / "examples" / "photos").glob("*.jpg"))
LABELS = [path.stem for path in PHOTOS]
CORRECTIONS = 30
# runs before the page's own script
WATCHER = """
document.addEventListener("load", (event) => {
  if (event.target.tagName !== "IMG" || window.firstPicture) return;
  window.firstPicture = -1;
  requestAnimationFrame(() => requestAnimationFrame(() => { window.firstPicture = performance.now(); }));
}, true);
window.longTasks = [];
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) longTasks.push(entry.startTime + entry.duration);
}).observe({ type: "longtask", buffered: true });
"""
FIGURES = """(async () => {
  while (!(window.firstPicture > 0)) await new Promise((resolve) => setTimeout(resolve, 10));
  await new Promise((resolve) => setTimeout(resolve, 300));
  const [navigation] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0].startTime;
  const interactive = Math.max(navigation.domInteractive, navigation.domContentLoadedEventEnd, paint, ...longTasks);
  return { "first paint": paint, "first picture": firstPicture, interactive, loaded: navigation.loadEventEnd };
})()"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("report-page"))
    parser.add_argument("--draw", action="store_true", help="draw the pictures in the guide")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--thumbnails", action="store_true", help="with the small pictures beside the page")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    if options.draw:
        draw()
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    predictions = make_predictions(options.rows)
    command = ["clipcls", "report", predictions, "--truth", "truth.csv"]
    began = time.perf_counter()
    subprocess.run([*command, *(["--thumbnails", "small"] if options.thumbnails else [])], check=True)
    page = Path("report.html").resolve()
    print(f"{options.rows:,} rows: {page.stat().st_size / 1e6:.1f} MB in {time.perf_counter() - began:.1f} s")
    runs = []
    for _ in range(options.runs):
        with browser() as opened:
            opened.call("Page.addScriptToEvaluateOnNewDocument", source=WATCHER)
            opened.open(page.as_uri())
            runs.append(opened.evaluate(FIGURES))
            assert not opened.messages, opened.messages
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:>14}: {statistics.median(values):6.0f} ms, {min(values):.0f} to {max(values):.0f}")
    with browser() as opened:
        correct(opened, page)


def draw() -> None:
    """Draw the page of the guide, light and dark, as its commands make it."""
    os.chdir(Path(__file__).parents[2])
    with tempfile.TemporaryDirectory() as folder:
        predictions, page = Path(folder, "labels.jsonl"), Path(folder, "report.html")
        labels = ["--labels-file", "examples/evaluation/labels.txt", "--top-k", "2", "--threshold", "0.7"]
        command = ["clipcls", "predict", "examples/images", "examples/others", "--model", "pictogram", *labels]
        subprocess.run([*command, "--output", predictions], check=True)
        subprocess.run(["clipcls", "report", predictions, "--truth", "examples/truth.csv", "-o", page], check=True)
        text = page.read_text(encoding="utf-8")
        page.write_text(text.replace(json.dumps(str(predictions)), '"labels.jsonl"'), encoding="utf-8")
        with browser() as opened:
            for theme in ("light", "dark"):
                opened.open(page.as_uri(), 1200, 760, dark=theme == "dark")
                opened.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
                opened.screenshot(page.with_suffix(".png"))
                with Image.open(page.with_suffix(".png")) as drawn:
                    picture = drawn.convert("RGB").quantize(128, dither=Image.Dither.NONE)
                picture.save(f"examples/report/report-{theme}.png", optimize=True)


def make_predictions(rows: int) -> str:
    """Write pictures, their truth and predictions of them that are wrong in a sixth."""
    Path("pictures").mkdir(exist_ok=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(partial(make_row, here=Path.cwd()), range(rows), chunksize=50))
    with Path("truth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label"], *([row["path"], row.pop("truth")] for row in made)])
    Path("predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    return "predictions.jsonl"


def make_row(number: int, here: Path) -> dict[str, Any]:
    """Write a picture, a part of a photograph with noise over it, and return a row about it."""
    random = np.random.default_rng(number)
    truth = LABELS[number % len(LABELS)]
    path = Path("pictures", f"{number:06d}.jpg")
    if not (here / path).exists():
        with Image.open(PHOTOS[number % len(PHOTOS)]) as photo:
            share = random.uniform(0.5, 1)
            width, height = int(photo.width * share), int(photo.height * share)
            left, top = random.integers(0, photo.width - width + 1), random.integers(0, photo.height - height + 1)
            part = photo.convert("RGB").crop((left, top, left + width, top + height))
        noisy = np.asarray(part, np.float32) + random.normal(0, 6, (height, width, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(here / path, quality=80)
    random = np.random.default_rng([number, 1])  # whether or not the picture was there
    best = truth if random.random() < 5 / 6 else str(random.choice(LABELS))
    labels = [best, *(label for label in LABELS if label != best)][:3]
    scores = sorted(random.dirichlet([0.4] * 3).tolist(), reverse=True)
    top = [{"label": label, "score": score, "similarity": 0.2} for label, score in zip(labels, scores, strict=True)]
    label = best if scores[0] >= 0.4 else None
    row = {"path": str(path), "label": label, "score": scores[0], "similarity": 0.2, "top": top, "error": None}
    return row | {"truth": truth}


def read_labels(table: Path) -> dict[str, str]:
    """Return the labels by path that a table holds."""
    with table.open(newline="") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file)}


def correct(page: Page, address: Path) -> None:
    """Give the first 30 wrong pictures their right labels by keys, and judge the predictions by what is exported."""
    page.open(address.as_uri())
    truth = read_labels(Path("truth.csv"))
    began = time.perf_counter()
    corrected = {}
    while len(corrected) < CORRECTIONS:
        path, answer = page.evaluate("[rows[order[chosen]].path, nameOf(rows[order[chosen]].label)]")
        if answer == truth[path]:
            page.press("ArrowRight")
            continue
        corrected[path] = truth[path]
        page.type(truth[path])
        page.press("Enter")
    seconds = time.perf_counter() - began
    page.evaluate("document.querySelector('[data-export=csv]').click()")
    exported = page.downloaded("labels.csv")
    found = {os.path.relpath(path): label for path, label in read_labels(exported).items()}
    assert found == corrected, (found, corrected)
    assert not page.messages, page.messages
    print(f"{len(found)} pictures corrected by keys in {seconds:.1f} s, and exported")
    command = ["clipcls", "eval", exported, "--predictions", "predictions.jsonl", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    print(f"clipcls eval measured {figures['measured']} images of them")


if __name__ == "__main__":
    main()
