"""What `clipcls teach` gains by a few examples, what its suspects and suggestions are worth, and what it costs.

    python tests/benchmarks/teach.py FOLDER[=TEMPLATE][@MODEL]… [--seeds 20]
    python tests/benchmarks/teach.py --make-digits FOLDER

Each FOLDER holds class folders of pictures, whose names are the labels; TEMPLATE is what they are filled into, the
model's own prompts by default; MODEL is `everyday` by default. Examples are drawn at random, as many a class, and
accuracy is that on all other pictures, of which each class keeps two at least. Measured over seeds:

- 1 to 16 examples a class: zero-shot; taught; Tip-Adapter without training or validation data (Zhang et al. 2022,
  https://arxiv.org/abs/2207.09519, with its alpha of 1 and beta of 5.5); scikit-learn's logistic regression as it
  comes, and with C chosen by cross-validation. Intervals are those of a mean over seeds, of differences seed by seed.
- Log loss and calibration error of taught scores beside those of zero-shot ones.
- Every tenth example with a wrong label: how many of those `teach` lists among the ones to look at.
- Fifty corrections: fifty pictures of one half are given their true labels, and answers to the other half are compared
  before and after. The fifty are those of `teach --suggest`, those of the least margin, or random ones.
- Seconds and memory of 1,000 classes with 16 examples of 512 numbers each, made at random.

`--make-digits` writes scikit-learn's 1,797 digits as class folders of PNGs, to be used with '=the digit {}'. The
drawings in the tables are Twemoji's, in a folder for each of these subgroups of Unicode's emoji-test.txt: arrow, bird
(animal-bird), building (place-building), clock (time), clothing, drink, fruit (food-fruit), heart, household thing
(household), mammal (animal-mammal), meal (food-prepared), office supplies (office), sport, tool, vehicle
(transport-ground), weather (sky-weather); all others have fewer than 18 pictures or no name that they show.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Self

import numpy as np
from measuring import in_new_process

from clipcls import Classifier, ModelSpec, Session, Sources
from clipcls.evaluate import metrics
from clipcls.evaluate.few_shot import FewShot, fit_few_shot, log_losses
from clipcls.predict.pool import PicturePool, embed_pool
from clipcls.predict.ranking import LabelFeatures, similarities
from clipcls.predict.scores import SCORE_KINDS
from clipcls.predict.suggest import suggest

SHOTS = (1, 2, 4, 8, 16)
WRONG_SHOTS, WRONG_SHARE = (8, 16), 0.1
CORRECTIONS = 50
#: Pictures that each class keeps for measuring.
KEPT = 2
ALPHA, BETA = 1.0, 5.5
#: Values of C that cross-validation chooses from, and its folds at most.
PENALTIES, FOLDS = (1.0, 10.0, 100.0, 1000.0), 4
CLASSES, EXAMPLES, DIM = 1000, 16, 512
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

#: What one seed gives, by table, number of examples and column.
Figures = dict[tuple[str, int, str], float]


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of class folders, and how its pictures are asked about."""

    folder: Path
    template: str | None
    model: str

    @classmethod
    def parse(cls, text: str) -> Self:
        rest, _, model = text.partition("@")
        folder, _, template = rest.partition("=")
        return cls(Path(folder), template or None, model or "everyday")


@dataclass(frozen=True, slots=True)
class Task:
    """Pictures whose labels are known.

    Attributes:
        truth: (n,) int64.
        classifier: whose labels are embedded.
    """

    name: str
    pool: PicturePool
    features: np.ndarray
    truth: np.ndarray
    classifier: Classifier

    @property
    def labels(self) -> LabelFeatures:
        return self.classifier.label_features


def main() -> None:
    """Parse the command line, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Source.parse, metavar="FOLDER[=TEMPLATE][@MODEL]")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--make-digits", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.make_digits:
        make_digits(arguments.make_digits)
        return
    if not arguments.sources:
        parser.error("give folders of class folders")
    print(in_new_process(cost))
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes to come
    tasks = [embed(source) for source in arguments.sources]
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        futures = [[processes.submit(measure, task, seed) for seed in range(arguments.seeds)] for task in tasks]
        of_tasks = {task.name: [seed.result() for seed in seeds] for task, seeds in zip(tasks, futures, strict=True)}
    found = {
        name: {key: np.array([figures[key] for figures in seeds]) for key in seeds[0]}
        for name, seeds in of_tasks.items()
    }
    for report in (report_accuracy, report_scores, report_suspects, report_corrections):
        report(found)


def make_digits(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (picture, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / DIGITS[digit] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        dark = (255 - picture * 255 / 16).astype(np.uint8)
        Image.fromarray(dark).resize((64, 64), Image.Resampling.BICUBIC).save(path)


def embed(source: Source) -> Task:
    with Session(ModelSpec(source.model)) as session:
        pool, _ = embed_pool(session, Sources([source.folder]))
        names = sorted({Path(path).parent.name for path in pool.paths})
        classifier = Classifier(session, names, [source.template] if source.template else None)
        classifier.embed_labels()
    truth = np.array([names.index(Path(path).parent.name) for path in pool.paths])
    features = pool.rows(np.arange(len(pool))).astype(np.float32)
    return Task(f"{source.folder.name}, {source.model}", pool, features, truth, classifier)


def measure(task: Task, seed: int) -> Figures:
    figures: Figures = {}
    for shots in SHOTS:
        random = np.random.default_rng([seed, shots])
        shown, rest = draw(task.truth, shots, random)
        learned = fit_few_shot(task.features[shown], task.truth[shown], task.labels)
        measure_accuracy(task, shots, shown, rest, learned, figures)
        measure_scores(task, shots, rest, learned, figures)
        if shots in WRONG_SHOTS:
            measure_suspects(task, shots, shown, rest, random, figures)
    measure_corrections(task, np.random.default_rng(seed), figures)
    return figures


def draw(truth: np.ndarray, shots: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of examples, and of all others."""
    order = random.permutation(len(truth))
    of_classes = [order[truth[order] == label] for label in np.unique(truth)]
    shown = np.concatenate([own[: min(shots, len(own) - KEPT)] for own in of_classes])
    return shown, np.setdiff1d(order, shown)


def accuracy(logits: np.ndarray, truth: np.ndarray) -> float:
    return float((logits.argmax(axis=1) == truth).mean())


# ---------------------------------------------------------------------------------------------------------
# Accuracy


def measure_accuracy(
    task: Task, shots: int, shown: np.ndarray, rest: np.ndarray, learned: FewShot, figures: Figures
) -> None:
    examples, truth, others = task.features[shown], task.truth[shown], task.features[rest]
    methods: dict[str, Callable[[], np.ndarray]] = {
        "zero-shot": lambda: similarities(others, task.labels.features),
        "taught": lambda: learned.head(others),
        "Tip-Adapter": lambda: tip_adapter(examples, truth, others, task.labels),
        "logistic, C=1": lambda: logistic(examples, truth, others, choose=False),
    }
    if shots > 1:
        methods["logistic, C chosen"] = lambda: logistic(examples, truth, others, choose=True)
    for name, logits in methods.items():
        figures["accuracy", shots, name] = accuracy(logits(), task.truth[rest])


def tip_adapter(examples: np.ndarray, truth: np.ndarray, others: np.ndarray, labels: LabelFeatures) -> np.ndarray:
    near = np.exp(BETA * (others @ examples.T - 1)) @ np.eye(len(labels.names))[truth]
    return np.exp(labels.logit_scale) * similarities(others, labels.features) + ALPHA * near


def logistic(examples: np.ndarray, truth: np.ndarray, others: np.ndarray, choose: bool) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    # one example a class is what is asked for
    warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
    # the same function of fewer numbers: weights lie in the span of the examples
    basis = np.linalg.qr(examples.T.astype(np.float64))[0]
    model = LogisticRegression(max_iter=1000)
    if choose:
        folds = min(FOLDS, np.bincount(truth).min())
        model = GridSearchCV(model, {"C": PENALTIES}, scoring="neg_log_loss", cv=folds)
    logits: np.ndarray = model.fit(examples @ basis, truth).predict_proba(others @ basis)
    return logits


def report_accuracy(found: dict[str, dict[tuple[str, int, str], np.ndarray]]) -> None:
    columns = list(dict.fromkeys(name for key in found.values() for table, _, name in key if table == "accuracy"))
    rows, worse = [], []
    means: dict[int, list[list[float]]] = {shots: [] for shots in SHOTS}
    for task, figures in found.items():
        for shots in SHOTS:
            values = [figures.get(("accuracy", shots, name), np.array([np.nan])).mean() for name in columns]
            gains = figures["accuracy", shots, "taught"] - figures["accuracy", shots, "zero-shot"]
            half = half_interval(gains)
            means[shots].append([*values, gains.mean()])
            rows.append([task, shots, *map(percent, values), f"{100 * gains.mean():+.1f} ± {100 * half:.1f}"])
            if gains.mean() + half < 0:
                worse.append(f"{task} with {shots}: {100 * gains.mean():.2f} ± {100 * half:.2f}")
    print_table("Accuracy in %", ["pictures", "examples", *columns, "gain"], rows)
    rows = [
        [shots, *map(percent, np.mean(values, axis=0)[:-1]), f"{100 * np.mean(values, axis=0)[-1]:+.1f}"]
        for shots, values in means.items()
    ]
    print_table("Accuracy in %, mean of all", ["examples", *columns, "gain"], rows)
    print(f"Taught below zero-shot by more than the interval: {'; '.join(worse) or 'none'}\n")


def half_interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


# ---------------------------------------------------------------------------------------------------------
# Scores


def measure_scores(task: Task, shots: int, rest: np.ndarray, learned: FewShot, figures: Figures) -> None:
    others, truth = task.features[rest], task.truth[rest]
    for name, contrasts in (
        ("zero-shot", similarities(others, task.labels.features)),
        ("taught", learned.head(others)),
    ):
        scores = SCORE_KINDS["softmax"].scores(contrasts, task.labels.logit_scale, None)
        error = metrics.calibration_error(scores.max(axis=1), scores.argmax(axis=1) == truth)
        figures["log loss", shots, name] = float(log_losses(scores, truth).mean())
        figures["calibration error", shots, name] = float(error(np.ones((1, len(rest))))[0])


def report_scores(found: dict[str, dict[tuple[str, int, str], np.ndarray]]) -> None:
    rows = []
    for task, figures in found.items():
        for shots in SHOTS:
            columns = [(table, name) for table in ("log loss", "calibration error") for name in ("zero-shot", "taught")]
            rows.append([task, shots, *(f"{figures[table, shots, name].mean():.3f}" for table, name in columns)])
    header = ["log loss, zero-shot", "log loss, taught", "calibration error, zero-shot", "calibration error, taught"]
    print_table("Scores", ["pictures", "examples", *header], rows)


# ---------------------------------------------------------------------------------------------------------
# Wrong labels


def measure_suspects(
    task: Task, shots: int, shown: np.ndarray, rest: np.ndarray, random: np.random.Generator, figures: Figures
) -> None:
    count = max(1, round(WRONG_SHARE * len(shown)))
    wrong = random.permutation(len(shown))[:count]
    given = task.truth[shown]
    n_labels = len(task.labels.names)
    given[wrong] = (given[wrong] + random.integers(1, n_labels, count)) % n_labels
    learned = fit_few_shot(task.features[shown], given, task.labels)
    # as `teach` lists them
    order = np.argsort(-log_losses(learned.scores, given), kind="stable")
    suspects = order[learned.scores.argmax(axis=1)[order] != given[order]]
    figures |= {
        ("suspects", shots, "wrong"): count,
        ("suspects", shots, "listed"): len(suspects),
        ("suspects", shots, "found"): np.isin(wrong, suspects).mean(),
        ("suspects", shots, "found first"): np.isin(wrong, suspects[:count]).mean(),
        ("suspects", shots, "accuracy"): accuracy(learned.head(task.features[rest]), task.truth[rest]),
    }


def report_suspects(found: dict[str, dict[tuple[str, int, str], np.ndarray]]) -> None:
    rows = []
    for task, figures in found.items():
        for shots in WRONG_SHOTS:
            wrong, listed, *shares = (
                figures["suspects", shots, name].mean() for name in ("wrong", "listed", "found", "found first")
            )
            accuracies = [
                figures[key].mean()
                for key in (
                    ("accuracy", shots, "zero-shot"),
                    ("suspects", shots, "accuracy"),
                    ("accuracy", shots, "taught"),
                )
            ]
            counts = [f"{wrong:.0f}", f"{listed:.1f}"]
            rows.append([task, shots, *counts, *(f"{100 * share:.0f}" for share in shares), *map(percent, accuracies)])
    header = [
        "wrong",
        "suspects",
        "found, %",
        "among as many first, %",
        "zero-shot",
        "taught, 10 % wrong",
        "taught, all right",
    ]
    print_table("10 % wrong labels", ["pictures", "examples", *header], rows)


# ---------------------------------------------------------------------------------------------------------
# Corrections


def measure_corrections(task: Task, random: np.random.Generator, figures: Figures) -> None:
    order = random.permutation(len(task.truth))
    half, rest = np.split(order, [len(order) // 2])
    figures["corrections", 0, "zero-shot"] = accuracy(
        similarities(task.features[rest], task.labels.features), task.truth[rest]
    )
    for name, chosen in (
        ("suggested", suggested(task, half)),
        ("least margin", half[np.argsort(margins(task, half), kind="stable")[:CORRECTIONS]]),
        ("random", half[:CORRECTIONS]),
    ):
        learned = fit_few_shot(task.features[chosen], task.truth[chosen], task.labels)
        figures["corrections", 0, name] = accuracy(learned.head(task.features[rest]), task.truth[rest])


def suggested(task: Task, half: np.ndarray) -> np.ndarray:
    pool = PicturePool([str(i) for i in half], (task.features[half],))
    return np.array([int(prediction.path) for prediction in suggest(task.classifier, pool, CORRECTIONS)])


def margins(task: Task, half: np.ndarray) -> np.ndarray:
    cosines = similarities(task.features[half], task.labels.features)
    scores = np.sort(SCORE_KINDS["softmax"].scores(cosines, task.labels.logit_scale, None), axis=1)
    margin: np.ndarray = scores[:, -1] - scores[:, -2]
    return margin


def report_corrections(found: dict[str, dict[tuple[str, int, str], np.ndarray]]) -> None:
    names = [name for table, _, name in next(iter(found.values())) if table == "corrections"]
    rows = []
    for task, figures in found.items():
        values = [figures["corrections", 0, name] for name in names]
        gains = [
            f"{100 * gain.mean():+.1f} ± {100 * half_interval(gain):.1f}"
            for gain in (values[1] - values[0], values[1] - values[3])
        ]
        rows.append([task, *(percent(value.mean()) for value in values), *gains])
    means = np.array([[figures["corrections", 0, name].mean() for name in names] for figures in found.values()]).mean(0)
    rows.append(["mean", *map(percent, means), *(f"{100 * gain:+.1f}" for gain in means[1] - means[[0, 3]])])
    gains = ["suggested minus zero-shot", "suggested minus random"]
    print_table(f"Accuracy in % after {CORRECTIONS} corrections", ["pictures", *names, *gains], rows)


# ---------------------------------------------------------------------------------------------------------
# Cost, and tables


def cost() -> str:
    random = np.random.default_rng(0)

    def unit(values: np.ndarray) -> np.ndarray:
        return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)

    truth = np.repeat(np.arange(CLASSES), EXAMPLES)
    centres = random.standard_normal((CLASSES, DIM))
    texts = unit(centres + random.standard_normal(centres.shape))
    features = unit(centres[truth] + 2 * random.standard_normal((len(truth), DIM)))
    labels = LabelFeatures(tuple(map(str, range(CLASSES))), texts, float(np.log(100)))
    before, start = peak(), time.perf_counter()
    fit_few_shot(features, truth, labels)
    seconds = time.perf_counter() - start
    return (
        f"{CLASSES:,} classes × {EXAMPLES} examples × {DIM} numbers: {seconds:.1f} s with {os.cpu_count()} cores, "
        f"{peak() - before:,.0f} MiB more memory at the peak\n"
    )


def peak() -> float:
    """The most memory so far in MiB, of this process alone: `ru_maxrss` begins with its parent's."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def percent(share: float) -> str:
    return "–" if np.isnan(share) else f"{100 * share:.1f}"


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table in Markdown."""
    print(f"{title}:\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |")
    print()


if __name__ == "__main__":
    main()
