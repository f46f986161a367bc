"""The findings of a check, and their formats: lines for a terminal, TSV and JSON."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from clipcls.errors import ClipclsError, printable
from clipcls.outputs.formats.tsv import escaped

Level = Literal["ok", "note", "warning", "error"]

_WARNED = 1
_LEVEL_WIDTH = len("warning")
_SUBJECT_WIDTH = 13
_INDENT = " " * (_LEVEL_WIDTH + _SUBJECT_WIDTH + 4)
_NARROWEST = 40


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check.

    Attributes:
        level: `ok`, `note` (good to know), `warning` (results may be worse than they need be), `error` (`predict` would
            refuse it, or be wrong).
        subject: what was checked, in a word.
        message: what was found.
        remedy: what to do; empty where there is nothing to do, or the message says it.
        exit_code: the code that `predict` would exit with; 0 unless it is an error.
    """

    level: Level
    subject: str
    message: str
    remedy: str = ""
    exit_code: int = 0


def ok(subject: str, message: str) -> Finding:
    """Report something that is as it should be."""
    return Finding("ok", subject, message)


def note(subject: str, message: str, remedy: str = "") -> Finding:
    """Report something that is good to know."""
    return Finding("note", subject, message, remedy)


def warning(subject: str, message: str, remedy: str = "") -> Finding:
    """Report something that may make results worse."""
    return Finding("warning", subject, message, remedy)


def error(subject: str, exc: ClipclsError, remedy: str = "") -> Finding:
    """Report something that `predict` would refuse, or that makes its results wrong."""
    return Finding("error", subject, str(exc), remedy, exc.exit_code)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return the exit code: the highest of the errors', else 1 with warnings, else 0."""
    return max((_WARNED if f.level == "warning" else f.exit_code for f in findings), default=0)


def tsv_line(finding: Finding) -> str:
    """Return the line `level<TAB>subject<TAB>message<TAB>remedy`."""
    cells = (finding.level, finding.subject, finding.message, finding.remedy)
    return "\t".join(escaped(cell) for cell in cells) + "\n"


def table_lines(finding: Finding, width: int) -> str:
    """Return lines for a terminal: what was found and, indented, what to do."""
    room = max(width - len(_INDENT), _NARROWEST)
    paragraphs = [*finding.message.splitlines(), *([f"→ {finding.remedy}"] if finding.remedy else [])]
    wrapped = [line for text in paragraphs for line in textwrap.wrap(printable(text), room) or [""]]
    start = f"{finding.level:<{_LEVEL_WIDTH}}  {finding.subject:<{_SUBJECT_WIDTH}}  "
    return "".join(f"{start if i == 0 else _INDENT}{line}".rstrip() + "\n" for i, line in enumerate(wrapped))


def as_json(findings: Iterable[Finding]) -> str:
    """Return one JSON object with `exit_code` and `findings`."""
    listed = list(findings)
    data = {"exit_code": exit_code(listed), "findings": [asdict(finding) for finding in listed]}
    return json.dumps(data, ensure_ascii=False, indent=2) + "\n"
