"""Findings as exit codes, lines, tables and JSON."""

import json

import pytest

from clipcls.check.findings import Finding, as_json, error, exit_code, note, ok, table_lines, tsv_line, warning
from clipcls.errors import ModelError, UsageError


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        ([], 0),
        ([ok("a", "b"), note("a", "b")], 0),
        ([warning("a", "b"), ok("a", "b")], 1),
        ([warning("a", "b"), error("a", UsageError("b"))], 2),
        ([error("a", ModelError("b")), error("a", UsageError("b")), note("a", "b")], 3),
    ],
)
def test_exit_code_is_that_of_the_worst(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code
    assert json.loads(as_json(findings))["exit_code"] == code


def test_tsv_line_is_one_line_whatever_is_said() -> None:
    finding = error("model", ModelError("first\nsecond\tthird"), "do\\it")
    assert tsv_line(finding) == "error\tmodel\tfirst\\nsecond\\tthird\tdo\\\\it\n"


def test_table_lines_keep_paragraphs_and_widths() -> None:
    lines = table_lines(note("model", "one\n  two\n" + "word " * 30, "do it"), 70).splitlines()
    assert lines[0] == "note     model          one"
    assert lines[1].split() == ["two"]
    assert lines[-1].split() == ["→", "do", "it"]
    assert all(len(line) <= 70 for line in lines)


def test_table_lines_show_no_control_characters() -> None:
    assert "\x1b" not in table_lines(ok("labels", "'\x1b[2J'"), 80)


def test_as_json_holds_everything() -> None:
    finding = warning("labels", "猫", "x")
    (found,) = json.loads(as_json([finding]))["findings"]
    assert Finding(**found) == finding
