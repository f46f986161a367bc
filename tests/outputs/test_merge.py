"""Parts of a job, each a run of its own, and what merging them gives, says and refuses."""

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.errors import StoppedError, UsageError
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.inputs.parts import numbered_share
from clipcls.labels.questions import make_question
from clipcls.outputs.destination import Destination
from clipcls.outputs.journal import read_record
from clipcls.outputs.merge import MergeReport, merge
from clipcls.outputs.vectors.write import VectorDestination
from clipcls.predict.answerer import Answerer
from clipcls.predict.ask import Questionnaire
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring, Unknown
from clipcls.predict.run import run
from clipcls.predict.write_features import write_features
from clipcls.records import ImageRef, InputPart
from conftest import save_pictures

COUNT = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty-three pictures, of which two can't be read."""
    pictures = save_pictures(tmp_path / "pictures", 23, (8, 8))
    for broken in (pictures[4], pictures[17]):
        broken.write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.fixture
def classifier(fake_encoder: Any) -> Classifier:
    return Classifier(Session(fake_encoder, Execution(batch_size=4)), ["red", "blue"], scoring=Scoring(top_k=2))


def run_parts(answerer: Answerer, folder: Path, name: str = "part-{}.jsonl", **more: Any) -> list[Path]:
    outputs = [folder.parent / "parts" / name.format(number) for number in range(1, COUNT + 1)]
    outputs[0].parent.mkdir(exist_ok=True)
    for number, output in enumerate(outputs, 1):
        where = Destination(str(output)) if output.suffix else Destination(folder=output, format_name="jsonl")
        run(answerer, Sources([str(folder)], part=InputPart(number, COUNT)), replace(where, **more))
    return outputs


def whole(answerer: Answerer, folder: Path, name: str = "whole.jsonl") -> Path:
    run(answerer, Sources([str(folder)]), Destination(str(folder.parent / name)))
    return folder.parent / name


def merged(parts: list[Path], name: str = "merged.jsonl") -> Path:
    output = parts[0].parent.parent / name
    merge(parts, Destination(str(output)))
    return output


def test_each_picture_is_in_one_part_and_stays_there(folder: Path) -> None:
    def listed() -> list[list[Any]]:
        return [list(discover(Sources([str(folder)], part=InputPart(number, COUNT)))) for number in (1, 2, 3)]

    before = listed()
    found = sorted((image.index, image.path) for part in before for image in part)
    assert found == list(enumerate(image.path for image in discover(str(folder))))
    save_pictures(folder / "a", 10, (8, 8))
    for old, new in zip(before, listed(), strict=True):
        assert {image.path for image in old} <= {image.path for image in new}


def test_parts_are_about_equal() -> None:
    images = [ImageRef(f"{number}.jpg") for number in range(3000)]
    for number in (1, 2, 3):
        assert 900 < sum(is_own for _, is_own in numbered_share(images, InputPart(number, 3))) < 1100


@pytest.mark.parametrize("name", ["part-{}.jsonl", "part-{}.parquet", "part-{}"])
def test_merged_parts_are_the_unbroken_run(classifier: Classifier, folder: Path, name: str) -> None:
    parts = run_parts(classifier, folder, name)
    expected = whole(classifier, folder)
    output = folder.parent / "merged.jsonl"
    report = merge([parts[2], parts[0], parts[1]], Destination(str(output)))
    assert report == MergeReport(3, 23, 2)
    assert output.read_bytes() == expected.read_bytes()
    assert read_record(output) == read_record(expected)
    assert merged([folder.parent / "parts"]).read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_other_formats_and_other_answers(fake_encoder: Any, folder: Path, kind: str) -> None:
    session = Session(fake_encoder, Execution(batch_size=4))
    questions = (
        make_question("red", ["red", "blue"]),
        replace(make_question("all", ["red", "green", "blue"]), multi=True, threshold=0.1),
    )
    words = Scoring(unknown=Unknown(words=("green",)))
    answerers: list[Answerer] = [Questionnaire(session, questions), Classifier(session, ["red", "blue"], scoring=words)]
    for number, answerer in enumerate(answerers):
        parts = run_parts(answerer, folder, f"{number}-{{}}.jsonl")
        expected = whole(answerer, folder, f"whole.{kind}")
        lines = [path.read_text().splitlines() for path in (merged(parts, f"merged.{kind}"), expected)]
        for mine, own in zip(*lines, strict=True):
            # JSONL has seven digits of a score, which TSV rounds to six places
            assert mine == own or (kind == "tsv" and mine[:-3] == own[:-3])
        assert read_record(folder.parent / f"merged.{kind}") == read_record(expected)


def test_containers_are_dealt_out_whole_and_an_empty_part_is_one(classifier: Classifier, tmp_path: Path) -> None:
    pictures, folder = save_pictures(tmp_path / "loose", 9, (8, 8)), tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            for picture in pictures[number : number + 4]:
                shard.add(picture, picture.name)
    inputs = Sources([str(folder / "1.tar"), str(folder / "0.tar")])
    for number in range(1, COUNT + 1):
        where = Destination(str(tmp_path / f"{number}.jsonl"))
        report = run(classifier, replace(inputs, part=InputPart(number, COUNT)), where)
        assert report.done == (4 if number < 3 else 0)
    run(classifier, inputs, Destination(str(tmp_path / "whole.jsonl")))
    parts = [tmp_path / f"{number}.jsonl" for number in (1, 2, 3)]
    merge(parts, Destination(str(tmp_path / "merged.jsonl")))
    assert (tmp_path / "merged.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_nothing_there_is_said_by_every_part(classifier: Classifier, tmp_path: Path) -> None:
    for number in (1, 2):
        with pytest.raises(UsageError, match="nowhere: no such file"):
            run(classifier, Sources(["nowhere"], part=InputPart(number, 2)), Destination(str(tmp_path / "x.jsonl")))


def test_what_is_missing_or_does_not_belong_is_named(classifier: Classifier, folder: Path) -> None:
    parts = run_parts(classifier, folder)
    cases: list[tuple[list[Path], str]] = [
        (parts[:1], r"Of 3 parts, parts 2, 3 are missing\."),
        ([parts[0], parts[2]], r"Of 3 parts, part 2 is missing\."),
        ([*parts, parts[1]], r"part-2\.jsonl and .*part-2\.jsonl are both part 2/3"),
        ([whole(classifier, folder)], r"whole\.jsonl: not a part of a job; it was made without --part"),
        ([folder], "No parts"),
        ([folder / "nowhere"], "nowhere: no such file"),
    ]
    for given, said in cases:
        with pytest.raises(UsageError, match=said):
            merged(given)
    run(classifier, Sources([str(folder)], part=InputPart(1, 2)), Destination(str(folder.parent / "half.jsonl")))
    with pytest.raises(UsageError, match=r"is part 1/2, and .* part 1/3: not of one job"):
        merged([parts[0], folder.parent / "half.jsonl"])
    other = Classifier(classifier.session, ["red", "green"])
    run(other, Sources([str(folder)], part=InputPart(2, COUNT)), Destination(str(parts[1])))
    with pytest.raises(UsageError, match=r"other settings than .*: --labels"):
        merged(parts)
    (parts[1].parent / f".{parts[1].name}.run").unlink()
    with pytest.raises(UsageError, match=r"\.part-2\.jsonl\.run, which says what part it is, can't be read: no such"):
        merged(parts)
    assert not (folder.parent / "merged.jsonl").exists()


def test_part_that_was_stopped_is_not_merged_until_it_has_gone_on(classifier: Classifier, folder: Path) -> None:
    parts = run_parts(classifier, folder)
    sources, where = Sources([str(folder)], part=InputPart(2, COUNT)), Destination(str(parts[1]))
    run(classifier, sources, where, stop=lambda: True)
    with pytest.raises(UsageError, match=r"Not complete: part 2 \(.*part-2\.jsonl\)"):
        merged(parts)
    run(classifier, sources, replace(where, resume=True))
    assert merged(parts).read_bytes() == whole(classifier, folder).read_bytes()
    with parts[1].open("ab") as file:
        file.write(b"\n")
    with pytest.raises(UsageError, match="Not complete: part 2"):
        merged(parts)
    with pytest.raises(UsageError, match=r"--part \(2/3 then, 1/3 now\)"):
        run(classifier, replace(sources, part=InputPart(1, COUNT)), replace(where, resume=True))


@pytest.mark.parametrize("name", ["part-{}.jsonl", "part-{}"])
def test_pictures_that_are_run_again_go_to_their_places(classifier: Classifier, folder: Path, name: str) -> None:
    parts = run_parts(classifier, folder, name)
    mended = save_pictures(folder.parent / "more", 23, (8, 8))
    for broken in (4, 17):
        (folder / mended[broken].name).write_bytes(mended[broken].read_bytes())
    run_parts(classifier, folder, name, resume=True, retry_errors=True)
    assert merged(parts).read_bytes() == whole(classifier, folder).read_bytes()


def test_inputs_that_change_between_the_runs_are_noticed(classifier: Classifier, folder: Path) -> None:
    parts = run_parts(classifier, folder)
    save_pictures(folder / "000", 1, (8, 8))
    for number in (1, 2):
        run(classifier, Sources([str(folder)], part=InputPart(number, COUNT)), Destination(str(parts[number - 1])))
    with pytest.raises(UsageError, match=r"changed between the runs of .*part-2\.jsonl and .*part-3\.jsonl"):
        merged(parts)
    with pytest.raises(UsageError, match="The inputs have changed since this part was begun"):
        run(
            classifier,
            Sources([str(folder)], part=InputPart(3, COUNT)),
            Destination(str(parts[2]), resume=True),
        )


@pytest.mark.parametrize("place", ["{}.parquet", "{}"])
def test_features_of_parts_are_merged(fake_encoder: Any, folder: Path, place: str) -> None:
    session = Session(fake_encoder, Execution(batch_size=4))
    parts = [folder.parent / place.format(number) for number in range(1, COUNT + 1)]
    for number, part in enumerate(parts, 1):
        where = VectorDestination(part) if part.suffix else VectorDestination(folder=part)
        write_features(session, Sources([str(folder)], part=InputPart(number, COUNT)), where)
    write_features(session, Sources([str(folder)]), VectorDestination(folder.parent / "whole.npy"))
    report = merge(parts, Destination(str(folder.parent / "merged.npy")))
    assert report == MergeReport(3, 23, 2)
    for ending in (".npy", ".paths.jsonl", ".json"):
        files = [(folder.parent / name).with_suffix(ending).read_bytes() for name in ("whole.npy", "merged.npy")]
        assert files[0] == files[1]
    assert np.load(folder.parent / "merged.npy").shape == (23, 3)
    with pytest.raises(UsageError, match="only Parquet has room"):
        where = VectorDestination(folder.parent / "part.npy")
        write_features(session, Sources([str(folder)], part=InputPart(1, COUNT)), where)


@pytest.mark.parametrize(
    ("output", "said"),
    [("x.csv", r"csv has no room for a row's place in the whole; write \.jsonl or \.parquet"), ("-", "give --output")],
)
def test_outputs_that_cannot_be_merged_are_refused(
    classifier: Classifier, folder: Path, output: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        run(classifier, Sources([str(folder)], part=InputPart(1, 2)), Destination(output))


def test_row_without_an_index_and_full_disk(
    classifier: Classifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = run_parts(classifier, folder)
    with pytest.raises(StoppedError, match="can't be written"):
        merge(parts, Destination("/dev/full", format_name="jsonl"))
    rows = [json.loads(line) for line in parts[0].read_text().splitlines()]
    del rows[1]["index"]
    size = parts[0].stat().st_size
    text = "".join(json.dumps(row) + "\n" for row in rows)
    parts[0].write_text(text.rstrip("\n") + " " * (size - len(text)) + "\n")
    with pytest.raises(UsageError, match="a row without an index"):
        merged(parts)
