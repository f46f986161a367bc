"""Draw the pictures at the top of README.md: what a terminal shows, and the photographs with their labels.

    python picture.py

Run it in the checkout; it runs the command and draws what that prints, light and dark.
"""

import io
import json
import os
import pty
import shlex
import subprocess
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME, MONOKAI
from rich.text import Text

COMMAND = "clipcls predict examples/photos --labels cat,dog,coffee,flower,hat,pen,rocket,shirt,shoes --model everyday"
HERE = Path(__file__).parent
COLUMNS = 80
PAPER = {"light": ("#ffffff", "#1f2328", "#59636e"), "dark": ("#0d1117", "#f0f6fc", "#9198a1")}  # paper, ink, grey
TILE, GAP, TEXT = 176, 12, 40


def main() -> None:
    """Draw the four pictures."""
    shown = run_in_terminal()
    for theme, colours in {"light": DEFAULT_TERMINAL_THEME, "dark": MONOKAI}.items():
        console = Console(width=COLUMNS, record=True, file=io.StringIO())
        console.print(Text(f"$ {COMMAND}"), soft_wrap=False)
        console.print(Text.from_ansi(shown))
        console.print(Text("$ "))
        console.save_svg(str(HERE / f"terminal-{theme}.svg"), title="clipcls", theme=colours, unique_id=theme)
    rows = [json.loads(line) for line in run(*shlex.split(COMMAND), "--format", "jsonl").splitlines()]
    for theme in PAPER:
        draw(rows, theme).save(HERE / f"labels-{theme}.png", optimize=True)


def run_in_terminal() -> str:
    """Run the command in a terminal of 80 columns, and return what it shows."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    process = subprocess.Popen(shlex.split(COMMAND), stdout=theirs, stderr=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:  # how Linux says that the terminal's other end is closed
        pass
    os.close(ours)
    if process.wait():
        raise SystemExit(f"exit code {process.returncode}: {COMMAND}")
    return shown.decode().replace("\r\n", "\n").strip()


def run(*command: str) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def draw(rows: list[dict[str, str | float]], theme: str) -> Image.Image:
    """Return the photographs in rows of four, with label and score under each."""
    paper, ink, grey = PAPER[theme]
    lines = -(-len(rows) // 4)
    picture = Image.new("RGB", (4 * (TILE + GAP) + GAP, lines * (TILE + TEXT) + GAP), paper)
    pen = ImageDraw.Draw(picture)
    large, small = ImageFont.load_default(18), ImageFont.load_default(14)
    for number, row in enumerate(rows):
        left, top = GAP + number % 4 * (TILE + GAP), GAP + number // 4 * (TILE + TEXT)
        photograph = Image.open(str(row["path"])).convert("RGB")
        side = min(photograph.size)
        x, y = (photograph.width - side) // 2, (photograph.height - side) // 2
        photograph = photograph.resize((TILE, TILE), Image.Resampling.LANCZOS, (x, y, x + side, y + side))
        picture.paste(photograph, (left, top))
        pen.text((left, top + TILE + 6), str(row["label"]), ink, large)
        pen.text((left + TILE, top + TILE + 9), f"{row['score']:.2f}", grey, small, anchor="ra")
    return picture.quantize(256, dither=Image.Dither.FLOYDSTEINBERG)


if __name__ == "__main__":
    main()
