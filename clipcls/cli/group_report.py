"""Writes the figures of groups, by a column of the data, as tables of 80 columns."""

from typing import TYPE_CHECKING

from clipcls.cli.tables import Rows, decimal, interval, table
from clipcls.errors import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clipcls.evaluate.groups import Gap, GroupFigures, GroupReport

# most groups of a table; of more, those with the lowest accuracy are shown
_MOST_GROUPS = 20
# gaps of recall and of answers that are shown, the largest ones
_MOST_GAPS = 3
_GROUP_WIDTH, _FIGURE_WIDTH, _END_WIDTH = 20, 24, 16
_SIGNIFICANT = 0.05


def group_tables(report: "GroupReport", names: "Sequence[str]") -> str:
    """Return a table of groups and one of the gaps between them.

    Args:
        names: of the classes, those that are labels first.
    """
    groups = list(report.groups)
    title = ""
    if len(groups) > _MOST_GROUPS:
        groups = sorted((group for group in groups if not group.is_small), key=lambda group: group.accuracy.value)
        groups = groups[:_MOST_GROUPS] or list(report.groups[:_MOST_GROUPS])
        title = f"{len(groups)} of {len(report.groups):,} groups, of the lowest accuracy; --format json tells all.\n"
    header = (_named(report.columns), "images", "accuracy", "95 % interval", "to the rest", "p, corrected")
    return title + table(header, [_group_row(group) for group in groups], left=1) + _gaps(report, names)


def _group_row(group: "GroupFigures") -> tuple[str, ...]:
    accuracy, apart = group.accuracy, group.to_the_rest
    row = (_fitted(_named(group.name), _GROUP_WIDTH), f"{accuracy.whole:,}", decimal(accuracy.value))
    beside = "" if apart is None else f"{apart.value:+.4f}"
    p = "" if group.p_corrected is None else decimal(group.p_corrected)
    p = "<0.0001" if p == "0.0000" else p
    return (*row, interval(accuracy), beside, "too few" if group.is_small else p)


def _gaps(report: "GroupReport", names: "Sequence[str]") -> str:
    from clipcls.evaluate.groups import ANSWERS, FEWEST, RECALL

    if not report.gaps:
        return f"No gaps are told, as fewer than two groups have {FEWEST} images.\n"
    whole = [gap for gap in report.gaps if gap.label is None]
    titles = {RECALL: "recall of", ANSWERS: "answers of"}
    rows: Rows = [_gap_row(report, gap, gap.figure) for gap in whole]
    for figure, title in titles.items():
        own = sorted((gap for gap in report.gaps if gap.figure == figure), key=lambda gap: -gap.difference)
        rows += [_gap_row(report, gap, f"{title} {names[gap.label or 0]}") for gap in own[:_MOST_GAPS]]
    return "\n" + table(("gap between groups", "gap", "by chance", "lowest", "highest"), rows, left=1)


def _gap_row(report: "GroupReport", gap: "Gap", title: str) -> tuple[str, ...]:
    ends = (_fitted(_named(report.groups[end].name), _END_WIDTH) for end in (gap.lowest, gap.highest))
    return (_fitted(title, _FIGURE_WIDTH), decimal(gap.difference), decimal(gap.by_chance), *ends)


def group_notes(reports: "Sequence[GroupReport]") -> list[str]:
    """Return what is to be said of groups besides their figures."""
    from clipcls.evaluate.groups import FEWEST

    lines, tested = [], False
    for report in reports:
        by = _named(report.columns)
        corrected = [(one, one.p_corrected) for one in report.groups if one.p_corrected is not None]
        tested = tested or bool(corrected)
        apart = [
            f"{_named(one.name)} ({'below' if one.to_the_rest.value < 0 else 'above'} the rest)"
            for one, p in corrected
            if p < _SIGNIFICANT and one.to_the_rest is not None
        ]
        if apart:
            lines.append(f"by {by}, accuracies apart with a corrected p below {_SIGNIFICANT}: {listed(apart)}")
    if tested and not lines:
        lines.append("no group's accuracy can be told from the rest's, which doesn't show that they are equal")
    for report in reports:
        small = [_named(one.name) for one in report.groups if one.is_small]
        if small:
            by = _named(report.columns)
            lines.append(f"by {by}, groups of fewer than {FEWEST} images are in no test and no gap: {listed(small)}")
    return lines


def _named(parts: "Sequence[str]") -> str:
    """Return the columns of a report, or the cells of a group."""
    return " & ".join(parts)


def _fitted(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
