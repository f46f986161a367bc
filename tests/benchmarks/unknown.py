"""How well pictures of none of the labels are told from pictures of some label.

    python tests/benchmarks/unknown.py FOLDER_KNOWN FOLDER_OTHER [--model everyday] [--labels-file everyday]

Both folders hold class folders of pictures. The labels are the names of those in FOLDER_KNOWN, or a label file's; of
FOLDER_OTHER, classes that are labels are left out. For each figure that a picture could be judged by: AUROC, and the
share of other pictures that passes where 95 % of the pictures of labels do (FPR95). At last the shares of both that
pass the default threshold of `predict --unknown`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from clipcls import Classifier, Label, ModelSpec, Scoring, Session, Unknown
from clipcls.labels.label_files import make_label, read_labels
from clipcls.records import Prediction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("known", type=Path)
    parser.add_argument("other", type=Path)
    parser.add_argument("--model", default="everyday")
    parser.add_argument("--labels-file")
    arguments = parser.parse_args()
    classes = sorted(folder.name for folder in arguments.known.iterdir() if folder.is_dir())
    labels = read_labels(arguments.labels_file) if arguments.labels_file else [make_label(name) for name in classes]
    names = {label.name for label in labels}
    others = sorted(folder for folder in arguments.other.iterdir() if folder.is_dir() and folder.name not in names)
    with Session(ModelSpec(arguments.model)) as session:
        known, other = (figures(folders, labels, session) for folders in ([arguments.known], others))
    counts = f"{len(labels)} labels, {len(known['known'])} pictures of them, {len(other['known'])} others"
    print(f"{arguments.known.name} and {arguments.other.name} ({arguments.model}): {counts}")
    for name in known:
        truth = np.repeat([True, False], [len(known[name]), len(other[name])])
        area = roc_auc_score(truth, np.concatenate([known[name], other[name]]))
        passing = np.mean(other[name] >= np.quantile(known[name], 0.05))
        print(f"    {name:10s} AUROC {area:.3f}   FPR95 {passing:6.1%}")
    kept, let_through = (np.mean(found["known"] >= np.float32(Unknown().min_known)) for found in (known, other))
    print(f"    --unknown keeps {kept:.0%}, and lets {let_through:.0%} through")


def figures(folders: Sequence[Path], labels: Sequence[Label], session: Session) -> dict[str, np.ndarray]:
    """What each picture could be judged by, from the rows that users get."""
    rows = predicted(folders, labels, session, Scoring(unknown=Unknown(min_known=0.0)))
    against_background = predicted(folders, labels, session, Scoring("sigmoid"))
    return {
        "known": np.array([row.known for row in rows], np.float32),
        "softmax": np.array([row.score for row in rows]),
        "cosine": np.array([row.similarity for row in rows]),
        "sigmoid": np.array([row.score for row in against_background]),
    }


def predicted(folders: Sequence[Path], labels: Sequence[Label], session: Session, scoring: Scoring) -> list[Prediction]:
    rows = Classifier(session, labels, scoring=scoring).predict(folders)
    return [row for row in rows if row.error is None]


if __name__ == "__main__":
    main()
