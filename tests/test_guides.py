"""What README.md and the guides beside the examples say: commands run, outputs are theirs, links lead somewhere."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pages import PAGES, README, ROOT, Block, agrees, anchors, blocks, links, prose
from shell import Shell, shell

REFERENCE = ROOT / "examples" / "reference" / "README.md"
# recipes, which take an hour and packages of other registries
RECIPES = {"pictogram", "everyday"}
GUIDES = [page for page in PAGES if page.parent.name not in RECIPES and page != REFERENCE]
# blocks that tests can't run, by what they need; a new one has to be counted here
NOT_RUN = {
    "a Ray cluster": 5,
    "a checkpoint": 1,  # tests/models/test_weights.py runs it
    "a Slurm cluster": 1,
    "a hub": 5,
    "a server": 4,  # tests/serve/test_guide.py runs them
    "a store": 1,
    "an installation": 5,
    "minutes on an idle machine": 7,
    "several GPUs": 3,
    "the web": 1,
}

_NUMBER = re.compile(r"\d[\d.:e+-]*")
JQ = shutil.which("jq")
_NOTHING = re.compile(r"(?!)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, forks: Any) -> Iterator[Shell]:
    """A shell in a folder that holds what a checkout has for its readers."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__", "build"))
    with shell(folder, tmp_path / "programs", forks) as opened:
        yield opened


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, checkout: Shell) -> None:
    """Each block exits with 0, or what is said before it, and prints what is shown after it and no other messages."""
    for block in blocks(read(page)):
        if block.language in ("sh", "python") and not block.reason_not_to_run and not needs_what_is_missing(block):
            run(block, checkout, name_of(page))


def needs_what_is_missing(block: Block) -> bool:
    return "jq " in block.text and JQ is None


def run(block: Block, checkout: Shell, page: str) -> None:
    if block.language == "sh":
        done = checkout.run(block.text)
    else:
        done = checkout.run(f"python - <<'PYTHON'\n{block.text}PYTHON\n")
    whole = f"{page}:{block.line}:\n{block.text}--- exit code {done.code}\n{done.output}--- errors\n{done.errors}"
    assert done.code == block.exit_code, whole
    hidden = _NUMBER if block.remark == "figures differ" else _NOTHING
    texts = (hidden.sub("0", text) for text in (block.shown or "", done.output, done.errors))
    shown, printed, messages = ([line for line in text.splitlines() if line.strip()] for text in texts)
    for message in messages:
        line = next((line for line in shown if agrees([line], [message]) and line.strip() != "…"), None)
        assert line is not None, f"not shown: {message!r}\n{whole}"
        shown.remove(line)
    assert block.shown is None or agrees(shown, printed), "shown:\n" + "\n".join(shown) + f"\n{whole}"


def test_blocks_that_are_not_run_do_not_grow_unseen() -> None:
    reasons = Counter(block.reason_not_to_run for page in GUIDES for block in blocks(read(page)))
    del reasons[""]
    assert reasons == NOT_RUN


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_what_is_shown_is_compared(page: Path) -> None:
    """A `text` block follows the block that prints it, or says that it isn't compared and why."""
    for block in blocks(read(page)):
        compared = block.language != "text" or block.remark.startswith("not compared: ")
        assert compared, f"{name_of(page)}:{block.line}: no block that prints this stands right before it"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(read(page)):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{name_of(page)}: {target}"
        path = path / "README.md" if path.is_dir() and anchor else path
        assert not anchor or anchor in anchors(read(path)), f"{name_of(page)}: {target}"


def test_help_blocks_are_up_to_date() -> None:
    command = [sys.executable, "-m", "cogapp", "--check", name_of(REFERENCE)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"run `cog -r {name_of(REFERENCE)}`\n" + done.stdout


def test_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= 250


def test_every_option_named_in_prose_exists() -> None:
    helps = "".join(re.findall(r"```text.*?```", read(REFERENCE), re.DOTALL))
    known = set(re.findall(r"--[a-z][a-z-]+", helps))
    for page in GUIDES:
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", prose(read(page))))
        assert named <= known | ELSEWHERE, name_of(page)


# options of pip, uv, curl, ray, sbatch, torchrun, benchmarks and cog
ELSEWHERE = {
    "--address",
    "--array",
    "--block",
    "--check",
    "--data-binary",
    "--fail",
    "--head",
    "--index-url",
    "--memory",
    "--more-words",
    "--no-indexing",
    "--nproc-per-node",
    "--rclip",
    "--silent",
    "--strict",
}


@pytest.mark.parametrize(
    ("shown", "agree"),
    [
        ("a.png  cat  0.98\nb.png  dog  0.5", True),
        ("a.png cat 0.9801\n…", True),
        ("…\nb.png … 0.50", True),
        ("a.png  dog  0.98\nb.png  dog  0.5", False),
        ("a.png  cat  0.90\nb.png  dog  0.5", False),
        ("a.png  cat  0.98", False),
        ("…\na.png  cat  0.98", False),
    ],
)
def test_what_differs_from_what_is_printed_is_found(shown: str, agree: bool) -> None:
    assert agrees(shown.splitlines(), ["a.png\tcat\t0.9812", "b.png\tdog\t0.50"]) == agree


def test_a_block_knows_what_it_prints_and_why_it_is_not_run() -> None:
    page = "<!-- exits with 1 -->\n```sh\na\n```\n\n```text\nb\n```\n\n1. c\n\n"
    page += "   <!-- not run: a hub -->\n   ```sh\n   d\n   ```\n"
    first, second = blocks(page)
    assert (first.text, first.exit_code, first.shown, first.line) == ("a\n", 1, "b\n", 3)
    assert (second.text, second.reason_not_to_run, second.shown) == ("d\n", "a hub", None)
