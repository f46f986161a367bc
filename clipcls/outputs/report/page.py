"""Write a report as a page: the template, with the data in blocks that a browser never runs.

Everything that comes from pictures, labels or errors is data: JSON in which the signs that HTML knows are escaped. The
page's policy lets nothing run but its own script, by its hash, and nothing load but its own pictures.
"""

import base64
import json
import math
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.outputs.content_policy import inline_source
from clipcls.outputs.report.contents import Report, ReportRow

#: Answers that are shown of each picture.
MOST_ANSWERS = 5
#: Pictures in a block of previews; the template's script knows it from the data.
BLOCK_ROWS = 64

# as JSON escapes them, so that no text ends the block that it stands in
_ESCAPES = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&"})


def write_page(report: Report, path: Path) -> None:
    """Write a report, or replace an earlier one.

    Raises:
        StoppedError: the file can't be written.
    """
    with can_write(str(path)):
        write_atomically(path, lambda file: file.writelines(part.encode() for part in page_parts(report)))


def page_parts(report: Report) -> Iterator[str]:
    """Yield the page, piece by piece."""
    template = files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    before_policy, _, rest = template.partition("{{policy}}")
    before_data, _, rest = rest.partition("{{data}}")
    before_previews, _, end = rest.partition("{{previews}}")
    yield before_policy
    yield _policy(template, report.preview_folder is not None)
    yield before_data
    yield _escaped(_data(report))
    yield before_previews
    if report.preview_folder is None:
        for first in range(0, len(report.rows), BLOCK_ROWS):
            yield _block(first // BLOCK_ROWS, report.rows[first : first + BLOCK_ROWS])
    yield end


def _policy(template: str, has_files: bool) -> str:
    """Return the content security policy; browsers that hold files for origins of their own need `file:`."""
    pictures = "data: 'self' file:" if has_files else "data:"
    return (
        f"default-src 'none'; style-src {inline_source(template, 'style')}; "
        f"script-src {inline_source(template, 'script')}; img-src {pictures}; base-uri 'none'; form-action 'none'"
    )


def _escaped(data: Any) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _block(number: int, rows: Sequence[ReportRow]) -> str:
    """Return a block of previews, one a line, in base64."""
    lines = (base64.b64encode(row.preview).decode("ascii") if isinstance(row.preview, bytes) else "" for row in rows)
    return f'<script type="text/plain" id="previews-{number}">' + "\n".join(lines) + "</script>\n"


# ---------------------------------------------------------------------------------------------------------
# Data


def _data(report: Report) -> dict[str, Any]:
    """Return what the script reads; labels are numbers in `labels`, and -1 is unknown."""
    truth = report.truth
    numbers: dict[str | None, int] = {None: -1}
    for name in _names(report):
        numbers.setdefault(name, len(numbers) - 1)
    return {
        "title": report.title,
        "base": report.base,
        "digest": report.digest,
        "settings": list(map(list, report.settings)),
        "labels": [name for name in numbers if name is not None],
        "counts": list(report.labels.values()),
        "total": report.total,
        "unknown": report.unknown,
        "failed": report.failed,
        "histogram": {
            "low": report.histogram.low,
            "high": report.histogram.high,
            "counts": list(report.histogram.counts),
        },
        "failures": list(map(list, report.failures)),
        "reasons": [[reason, count] for reason, count in report.reasons.items()],
        "truth": truth
        and {
            "judged": truth.judged,
            "right": truth.right,
            "without": truth.without,
            "unseen": truth.unseen,
            "confusion": [[numbers[known], numbers[given], n] for (known, given), n in truth.confusion.items()],
        },
        "rows": [_row(row, numbers) for row in report.rows],
        "blockRows": BLOCK_ROWS,
        "folder": report.preview_folder,
    }


def _names(report: Report) -> Iterator[str | None]:
    """Yield all labels that the data refer to, those with counts first."""
    yield from report.labels
    for row in report.rows:
        yield row.truth
        yield from (entry.label for entry in row.prediction.top[:MOST_ANSWERS])
    if report.truth is not None:
        for pair in report.truth.confusion:
            yield from pair


def _row(row: ReportRow, numbers: dict[str | None, int]) -> dict[str, Any]:
    found = row.prediction
    fields: dict[str, Any] = {
        "path": found.path,
        "label": numbers[found.label],
        "score": _number(found.score),
        "margin": _number(row.margin),
        "top": [[numbers[entry.label], _number(entry.score)] for entry in found.top[:MOST_ANSWERS]],
    }
    if found.known is not None:
        fields["known"] = _number(found.known)
    if row.truth is not None:
        fields |= {"truth": numbers[row.truth], "wrong": row.is_wrong}
    if isinstance(row.preview, str):
        fields["preview"] = row.preview
    if row.reason is not None:
        fields["reason"] = row.reason
    return fields


def _number(value: float | None) -> float | None:
    """Return a number in as many digits as the page shows; what isn't one can't be in JSON."""
    return None if value is None or not math.isfinite(value) else round(value, 4)
