"""The pages of the documentation: README.md and the guides beside the examples, and what is in them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted(ROOT.glob("examples/*/README.md"))]
_NUMBER = re.compile(r"-?\d+\.\d+")
_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<remark>[^\n]*?) -->\n(?P=indent))?```(?P<language>\w*)\n"
    r"(?P<text>.*?)^(?P=indent)```\n",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        line: where in the page its text begins.
        remark: the HTML comment on the line before it.
        shown: the text of a `text` block that follows at once: what the block prints.
    """

    language: str
    text: str
    line: int
    remark: str = ""
    shown: str | None = None

    @property
    def reason_not_to_run(self) -> str:
        """What the block needs that tests don't have; empty where it runs."""
        return self.remark.removeprefix("not run: ") if self.remark.startswith("not run: ") else ""

    @property
    def exit_code(self) -> int:
        """What it exits with by intention."""
        stated = re.fullmatch(r"exits with (\d+)", self.remark)
        return int(stated[1]) if stated else 0


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page in order; what one prints is part of it."""
    found: list[Block] = []
    matches = list(_FENCE.finditer(page))
    for i, match in enumerate(matches):
        if match["language"] == "text" and not match["remark"] and found and _follows(page, matches[i - 1], match):
            continue
        after = matches[i + 1] if i + 1 < len(matches) else None
        shown = dedent(after["text"]) if after and after["language"] == "text" and not after["remark"] else None
        if after is None or match["language"] == "text" or not _follows(page, match, after):
            shown = None
        line = page.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["language"], dedent(match["text"]), line, match["remark"] or "", shown))
    return found


def _follows(page: str, first: "re.Match[str]", second: "re.Match[str]") -> bool:
    return not page[first.end() : second.start()].strip()


def prose(page: str) -> str:
    """Return a page without its blocks of text, which show what programs print."""
    return re.sub(r"```text\n.*?```", "", page, flags=re.DOTALL)


def without_code(page: str) -> str:
    """Return a page without its fenced blocks and without what is set as code in a line."""
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", page))


def links(page: str) -> list[str]:
    """Return the targets of a page's links and pictures that lead into the repository."""
    text = without_code(page)
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"(?:src|srcset|href)=\"([^\"\s]+)", text)
    return [target for target in targets if not re.match(r"\w+://", target)]


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def agrees(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Tell whether lines are those of a page: but for spaces, last digits, and what the page leaves out with `…`."""
    if not shown:
        return not printed
    if shown[0].strip() == "…":
        return any(agrees(shown[1:], printed[i:]) for i in range(len(printed) + 1))
    return bool(printed) and _line_agrees(shown[0], printed[0]) and agrees(shown[1:], printed[1:])


def _line_agrees(shown: str, printed: str) -> bool:
    shown, printed = (" ".join(line.split()) for line in (shown, printed))
    if "…" in shown:
        return re.fullmatch(re.escape(shown).replace("…", ".*"), printed) is not None
    numbers = zip(_NUMBER.findall(shown), _NUMBER.findall(printed), strict=False)
    # processors differ in the last digits of bfloat16
    near = all(abs(float(a) - float(b)) <= 0.02 * max(1.0, abs(float(a))) for a, b in numbers)
    return near and _NUMBER.sub("#", shown) == _NUMBER.sub("#", printed)
