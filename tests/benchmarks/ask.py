"""What ten questions cost, beside one.

    python tests/benchmarks/ask.py FOLDER [--model everyday] [--rounds 5]

FOLDER holds pictures. Runs of 1 and of 10 questions with ten choices each take turns, without a cache and with all
features cached; choices are embedded before. The answers of the ten are compared with those of ten runs of `predict`.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from clipcls import Classifier, Destination, Execution, ModelSpec, Session, Sources, run
from clipcls.labels.label_files import make_label
from clipcls.labels.label_sets import load_label_set
from clipcls.labels.questions import Question
from clipcls.predict.ask import Questionnaire


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="everyday")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    words = list(load_label_set("everyday").labels)
    questions = [
        Question(f"q{number}", tuple(map(make_label, words[number * 10 : number * 10 + 10]))) for number in range(10)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for title, cache in (("nothing cached", None), ("all cached", Path(folder, "cache"))):
            with Session(ModelSpec(arguments.model), Execution(cache_dir=cache)) as session:
                measure(title, session, questions, arguments, Path(folder))
        compare(questions, arguments, Path(folder))


def measure(
    title: str, session: Session, questions: list[Question], arguments: argparse.Namespace, folder: Path
) -> None:
    asked = {count: Questionnaire(session, questions[:count]) for count in (1, 10)}
    seconds: dict[int, list[float]] = {1: [], 10: []}
    for one in asked.values():
        one.embed_labels()
        run(one, Sources([arguments.folder]), Destination(str(folder / "rows.jsonl")))
    for _ in range(arguments.rounds):
        for count, one in asked.items():
            start = time.perf_counter()
            report = run(one, Sources([arguments.folder]), Destination(str(folder / "rows.jsonl")))
            seconds[count].append(time.perf_counter() - start)
    single, several = (statistics.median(seconds[count]) for count in (1, 10))
    print(f"{title}: {report.done:,} pictures, 1 question {single:.2f} s, 10 {several:.2f} s: {several / single:.3f}")


def compare(questions: list[Question], arguments: argparse.Namespace, folder: Path) -> None:
    with Session(ModelSpec(arguments.model, precision="fp32"), Execution(cache_dir=folder / "cache")) as session:
        found = list(Questionnaire(session, questions).predict([arguments.folder]))
        worst = 0.0
        for question in questions:
            for mine, own in zip(found, Classifier(session, question.labels).predict([arguments.folder]), strict=True):
                answer = dict(mine.answers).get(question.name)
                assert (answer is None) == (own.error is not None)
                if answer is not None and own.score is not None:
                    assert answer.label == own.label
                    worst = max(worst, abs(answer.score - own.score))
    print(f"ten runs of predict: the same labels, scores within {worst:.1e}")


if __name__ == "__main__":
    main()
