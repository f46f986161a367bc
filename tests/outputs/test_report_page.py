"""The page of a report: whatever names and labels say, it stays data."""

import base64
import hashlib
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import StoppedError
from clipcls.outputs.journal import read_record
from clipcls.outputs.report.contents import Histogram, Report, ReportRow, TruthFigures
from clipcls.outputs.report.page import BLOCK_ROWS, page_parts, write_page
from clipcls.outputs.report.settings import label_names, shown_settings
from clipcls.records import Prediction, ScoredLabel
from predictions import SETTINGS, answer, destination, failed, write

HOSTILE = (
    *("</script><script>alert(1)</script>", "<!--<script>", '"><img src=x onerror=alert(1)>', "{{previews}}{{data}}"),
    *("line\nbreak\u2028", "\u202egnp.exe", "__proto__", "&lt;b&gt;", os.fsdecode(b"bad-\xff")),
)


def report(*rows: ReportRow, **fields: Any) -> Report:
    made = Report(
        title="labels.jsonl",
        base="/pictures",
        digest="ab12",
        settings=[("model", "everyday")],
        labels={"cat": len(rows)},
        total=len(rows),
        unknown=0,
        histogram=Histogram(0.0, 1.0, (0, len(rows))),
        failures=[],
        reasons={},
        truth=None,
        rows=rows,
    )
    return replace(made, **fields)


def text_of(made: Report) -> str:
    return "".join(page_parts(made))


def data_in(page: str) -> Any:
    """The data as a browser reads them: up to the first end of a script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script', page, re.DOTALL)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("text", HOSTILE)
def test_names_labels_and_errors_stay_data(text: str) -> None:
    row = ReportRow(Prediction(text, text, 0.5, 0.1, (ScoredLabel(text, 0.5, 0.1),)), 0.5, text, True, None, text)
    truth = TruthFigures(1, 0, 0, 0, {(text, None): 1})
    fields: dict[str, Any] = {"failures": [(text, text)], "reasons": {text: 1}, "settings": [(text, text)]}
    page = text_of(report(row, title=text, base=text, labels={text: 1}, truth=truth, **fields))
    plain = text_of(report(ReportRow(answer("a.png", 0.5), 0.5)))
    for sign in "<>":
        # not one sign more that HTML reads
        assert page.count(sign) == plain.count(sign)
    data = data_in(page)
    assert data["title"] == data["base"] == data["rows"][0]["path"] == data["rows"][0]["reason"] == text
    assert data["labels"] == [text]
    assert data["failures"] == data["settings"] == [[text, text]]


def test_policy_lets_only_the_own_script_and_style_run() -> None:
    page = text_of(report(ReportRow(answer("a.png", 0.5), 0.5)))
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert found
    policy = dict(part.split(" ", 1) for part in found[1].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["img-src"] == "data:"
    for tag in ("style", "script"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert page.index("Content-Security-Policy") < page.index("<style>")
    # no event handlers, no styles in tags, nothing from elsewhere
    assert not re.search(r"<[^>]* (on\w+|style|src)=", page.replace("<Image", ""))
    assert "http" not in page.replace("http-equiv", "")


def test_previews_lie_in_blocks_behind_the_script() -> None:
    rows = [ReportRow(answer(f"{number}.png", 0.5), 0.5, preview=b"%d" % number) for number in range(BLOCK_ROWS + 2)]
    rows[1] = replace(rows[1], preview=None, reason="gone")
    page = text_of(report(*rows))
    blocks = re.findall(r'<script type="text/plain" id="previews-(\d+)">(.*?)</script>', page, re.DOTALL)
    assert [number for number, _ in blocks] == ["0", "1"]
    lines = [line for _, block in blocks for line in block.split("\n")]
    assert [base64.b64decode(line) for line in lines] == [row.preview or b"" for row in rows]
    assert data_in(page)["rows"][1]["reason"] == "gone"


def test_previews_in_a_folder_are_named() -> None:
    row = ReportRow(answer("a.png", 0.5), 0.5, preview="ab/cd.webp")
    page = text_of(report(row, preview_folder="small%20ones/"))
    assert data_in(page)["folder"] == "small%20ones/"
    assert data_in(page)["rows"][0]["preview"] == "ab/cd.webp"
    assert "img-src data: 'self' file:" in page
    assert 'id="previews-0"' not in page


def test_what_is_no_number_and_what_is_unknown() -> None:
    top = (ScoredLabel("cat", float("nan"), float("nan")),)
    row = ReportRow(Prediction("a.png", None, float("nan"), None, top, known=0.25), 0.0)
    (found,) = data_in(text_of(report(row, labels={"cat": 0}, unknown=1)))["rows"]
    assert found == {"path": "a.png", "label": -1, "score": None, "margin": 0.0, "top": [[0, None]], "known": 0.25}


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StoppedError, match="can't be written"):
        write_page(report(), tmp_path / "none" / "report.html")


def test_settings_are_said_for_people() -> None:
    prompts = [f"a photo of a {{}} {number}" for number in range(12)]
    settings = {
        "--model": "ab" * 32,
        "--prompts": prompts,
        "--multi-label": False,
        "--threshold": None,
        "--explain": True,
    }
    said = dict(
        shown_settings(settings | {"--max-pixels": 1000, "--labels": [["cat", "cat"], ["dog", "dog"]]}, "photo")
    )
    assert said["model"] == "photo, fingerprint abababababab"
    assert said["prompts"].splitlines()[-1] == "… and 2 more"
    assert (said["explain"], said["max-pixels"], said["labels"]) == ("yes", "1,000", "2")
    assert not said.keys() & {"multi-label", "threshold"}
    assert dict(shown_settings(settings))["model"] == "fingerprint abababababab"
    assert label_names({"--labels": [["cat", "a cat"], ["dog", "dog"]]}) == ["cat", "dog"]


def test_a_journal_is_believed_only_of_the_file_that_it_is_about(tmp_path: Path) -> None:
    output = tmp_path / "labels.tsv"
    assert read_record(output) is None
    write(destination(output), [answer("a.png", 0.5), failed("b.png")])
    record = read_record(output)
    assert record is not None
    assert dict(record.settings) == SETTINGS
    assert [prediction.path for prediction in record.failed] == ["b.png"]
    output.write_text("a.png\tcat\t0.5\nb.png\tcat\t0.5\n")
    assert read_record(output) is None
