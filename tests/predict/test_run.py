"""A run looks at its pictures before a model is had, and before an output is emptied."""

import io
from pathlib import Path
from typing import Any, NoReturn

import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.errors import UsageError
from clipcls.inputs.listing import Sources
from clipcls.outputs.destination import Destination
from clipcls.predict.classifier import Classifier
from clipcls.predict.run import run


def download(*_: object) -> NoReturn:
    raise AssertionError("a model was downloaded first")


def classifier(model: Any) -> Classifier:
    return Classifier(Session(model, Execution()), ["red", "blue"])


OLD = "rows of an earlier run\n"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old"
    path.write_text(OLD)
    return path


@pytest.mark.parametrize("name", ["photoz", "phot*", "http://a.example/b.jpg"])
def test_what_is_not_there_needs_no_model(
    tmp_path: Path, name: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(UsageError, match="nothing is written"):
        run(classifier(download), Sources([name]), Destination(folder=tmp_path / "parts"))
    assert not (tmp_path / "parts").exists()
    report = run(classifier(download), Sources([name]), Destination(format_name="jsonl"))
    assert (report.done, report.failed) == (1, 1)
    assert capsysbinary.readouterr().out.startswith(b'{"path": "%s"' % name.encode())


def test_misspelt_folder_is_said_before_a_cluster_is_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipcls.distributed import run as on_cluster

    monkeypatch.setattr(on_cluster, "require_ray", lambda: None)
    monkeypatch.setattr(on_cluster, "_joined", download)
    spread, parts = on_cluster.Spread(), Destination(folder=tmp_path / "parts")
    with pytest.raises(UsageError, match="photoz: no such file"):
        on_cluster.run_on_cluster(classifier("photo"), Sources(["photoz"]), parts, spread)
    assert not (tmp_path / "parts").exists()


def test_list_of_pictures_that_are_gone_empties_no_output(old: Path, fake_encoder: Any, tmp_path: Path) -> None:
    listing = b"a.png\nb.png\nc.png\n"
    piped = Sources(["-"], stdin=io.BytesIO(listing))
    (tmp_path / "list").write_bytes(listing)
    for model, sources in ((fake_encoder, piped), (download, Sources(files_from=str(tmp_path / "list")))):
        with pytest.raises(UsageError, match=r"The first: a\.png: no such file"):
            run(classifier(model), sources, Destination(str(old), format_name="tsv"))
        assert old.read_text() == OLD


def test_missing_pictures_before_one_that_exists_are_records(old: Path, fake_encoder: Any, colours: Path) -> None:
    sources = Sources(["photoz", str(colours / "red.png"), "gone.png"])
    report = run(classifier(fake_encoder), sources, Destination(str(old), format_name="jsonl"))
    assert (report.done, report.failed) == (3, 2)
    assert [line.split('"')[3] for line in old.read_text().splitlines()] == ["photoz", sources.names[1], "gone.png"]


def test_broken_pictures_are_records_though_none_is_good(old: Path, fake_encoder: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.tar").write_bytes(b"no shard")
    for name in ("bad.png", "bad.tar"):
        report = run(
            classifier(fake_encoder), Sources([str(tmp_path / name)]), Destination(str(old), format_name="tsv")
        )
        assert (report.done, report.failed) == (1, 1)


def test_run_that_goes_on_needs_no_picture_any_more(tmp_path: Path, fake_encoder: Any, colours: Path) -> None:
    output = Destination(str(tmp_path / "out.jsonl"))
    run(classifier(fake_encoder), Sources([str(colours)]), output)
    for picture in colours.iterdir():
        picture.unlink()
    again = Destination(output.output, resume=True)
    assert run(classifier(fake_encoder), Sources([str(colours)]), again).done == 3
