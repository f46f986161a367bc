"""Render the emoji of Unicode CLDR in several drawing styles, and write the tables to train and evaluate on.

    python render.py --packages node_modules OUTPUT

OUTPUT then holds `STYLE/CODE.png` (96 by 96 pixels, transparent), `train.jsonl` (what `clipcls train` reads)
and `heldout.jsonl` (the styles that are kept for evaluation). README.md names the sources and licences.
"""

import argparse
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import resvg_py
from PIL import Image, ImageDraw, ImageFont

SIZE = 96
CLDR = Path("/usr/share/unicode/cldr/common")
NOTO = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NOTO_SIZE = 109  # the one size of the font's bitmaps
NOTO_ADVANCE = 136  # and their width: a sequence that the font lacks is drawn as several
HELD_OUT = ("twemoji", "openmoji")
VARIATION = "\ufe0f"

Draw = Callable[[str], Image.Image | None]


@dataclass(frozen=True, slots=True)
class Concept:
    """One emoji with its names and keywords.

    Attributes:
        sign: the character or sequence, without variation selectors.
        names: by language.
        keywords: by language, without the name.
    """

    sign: str
    names: dict[str, str]
    keywords: dict[str, tuple[str, ...]]

    @property
    def code(self) -> str:
        """The code points in hexadecimal, joined by hyphens."""
        return "-".join(f"{ord(c):x}" for c in self.sign)

    @property
    def captions(self) -> list[str]:
        """Names and keywords of both languages; names as often as all the keywords together."""
        captions = []
        for language in ("en", "zh"):
            name, keywords = self.names.get(language), self.keywords.get(language, ())
            if name:
                captions += [name] * max(2, len(keywords))
            captions += keywords
        return captions


# ---- names


def annotations(language: str) -> Iterator[tuple[str, str, bool]]:
    """(sign, text, whether the text is the name) of every annotation in a language."""
    for folder in ("annotations", "annotationsDerived"):
        tree = ET.parse(CLDR / folder / f"{language}.xml")
        for node in tree.iter("annotation"):
            yield node.attrib["cp"].replace(VARIATION, ""), node.text or "", node.get("type") == "tts"


def is_wanted(sign: str) -> bool:
    """Not a flag of a region, not a skin tone, not plain text."""
    if any("\U0001f1e6" <= c <= "\U0001f1ff" or "\U0001f3fb" <= c <= "\U0001f3ff" for c in sign):
        return False
    return "\U000e007f" not in sign and ord(sign[0]) > 0xFF


def concepts() -> list[Concept]:
    """Every wanted emoji that the Noto colour font draws as one glyph."""
    names: dict[str, dict[str, str]] = {}
    keywords: dict[str, dict[str, tuple[str, ...]]] = {}
    for language in ("en", "zh"):
        for sign, text, is_name in annotations(language):
            if is_name:
                names.setdefault(sign, {})[language] = text.strip()
            else:
                keywords.setdefault(sign, {})[language] = tuple(word.strip() for word in text.split("|"))
    draw = noto()
    found = []
    for sign in sorted(names):
        if "en" in names[sign] and is_wanted(sign) and draw(sign) is not None:
            words = {k: tuple(w for w in v if w != names[sign].get(k)) for k, v in keywords.get(sign, {}).items()}
            found.append(Concept(sign, names[sign], words))
    return found


# ---- styles


def square(picture: Image.Image) -> Image.Image:
    """The drawn part on a transparent square with a margin of a sixteenth, at SIZE."""
    box = picture.getchannel("A").getbbox()
    if box is None:
        return picture.resize((SIZE, SIZE))
    drawn = picture.crop(box)
    side = round(max(drawn.size) * 1.125)
    canvas = Image.new("RGBA", (side, side))
    canvas.paste(drawn, ((side - drawn.width) // 2, (side - drawn.height) // 2))
    return canvas.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def noto() -> Draw:
    """Noto Color Emoji, from the font."""
    font = ImageFont.truetype(str(NOTO), NOTO_SIZE, layout_engine=ImageFont.Layout.RAQM)

    def draw(sign: str) -> Image.Image | None:
        text = sign if len(sign) > 1 else sign + VARIATION
        if round(font.getlength(text)) != NOTO_ADVANCE:
            return None
        canvas = Image.new("RGBA", (NOTO_ADVANCE, NOTO_ADVANCE))
        ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
        return square(canvas) if canvas.getbbox() else None

    return draw


def plain(name: str) -> str:
    """A name reduced to letters and digits, to match icon names with Unicode's."""
    folded = unicodedata.normalize("NFKD", name.casefold())
    return re.sub(r"[^a-z0-9]", "", folded)


def svg_picture(svg: str) -> Image.Image:
    """An SVG drawn large, then squared."""
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIZE, height=2 * SIZE, skip_system_fonts=True)
    return square(Image.open(BytesIO(bytes(png))).convert("RGBA"))


def icon_names(folder: Path, icons: Iterable[str], names: dict[str, str]) -> dict[str, str]:
    """From sign to icon, by the set's own table of characters where it has one, else by name."""
    table = folder / "chars.json"
    characters = json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {}
    found = {}
    for codes, icon in characters.items():
        sign = "".join(chr(int(code, 16)) for code in codes.split("-")).replace(VARIATION, "")
        found[sign] = icon
    by_name = {plain(icon): icon for icon in icons}
    for sign, name in names.items():
        for candidate in (name, unicodedata.name(sign, "") if len(sign) == 1 else ""):
            if candidate and sign not in found and plain(candidate) in by_name:
                found[sign] = by_name[plain(candidate)]
    return found


def iconify(folder: Path, names: dict[str, str]) -> Draw:
    """A style from an @iconify-json package.

    Args:
        folder: the unpacked package.
        names: the English name of every sign.
    """
    data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    aliases = data.get("aliases", {}).items()
    # an alias that says more than its parent turns it or flips it
    icons = {name: data["icons"].get(alias["parent"]) for name, alias in aliases if list(alias) == ["parent"]}
    icons |= data["icons"]
    known = icon_names(folder, icons, names)

    def draw(sign: str) -> Image.Image | None:
        icon = icons.get(known.get(sign, ""))
        if icon is None:
            return None
        width, height = icon.get("width", data.get("width", 16)), icon.get("height", data.get("height", 16))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return svg_picture(f'<svg {spaces} viewBox="{box}" color="#000">{icon["body"]}</svg>')

    return draw


def files(folder: Path) -> Draw:
    """A style from a package of files that are named by code point."""
    found = {path.stem.replace("-fe0f", ""): path for path in folder.rglob("*") if path.suffix in (".svg", ".webp")}

    def draw(sign: str) -> Image.Image | None:
        path = found.get("-".join(f"{ord(c):x}" for c in sign))
        if path is None:
            return None
        if path.suffix == ".svg":
            return svg_picture(path.read_text(encoding="utf-8"))
        return square(Image.open(path).convert("RGBA"))

    return draw


PACKAGES = {
    "noto": "",  # a font
    "noto-v1": "@iconify-json/noto-v1",
    "fluent": "@iconify-json/fluent-emoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "fluent-3d": "@lobehub/fluent-emoji-3d",
    "fluent-mono": "@iconify-json/fluent-emoji-high-contrast",
    "fxemoji": "@iconify-json/fxemoji",
    "emojione": "@iconify-json/emojione",
    "streamline": "@iconify-json/streamline-emojis",
    "icon-park": "@iconify-json/icon-park",
    "game-icons": "@iconify-json/game-icons",
    "mdi": "@iconify-json/mdi",
    "twemoji": "@twemoji/svg",
    "openmoji": "@iconify-json/openmoji",
}
# Sets that don't draw emoji, and names by which they may mean something else: a device, a stamp, a meal, a sport.
ICONS = ("icon-park", "game-icons", "mdi")
HOMONYMS = ("mouse", "seal", "turkey", "chicken", "cricket")


def style(name: str, packages: Path, names: dict[str, str]) -> Draw:
    """The drawing function of one style; `names` has the English name of every sign."""
    package = PACKAGES[name]
    if not package:
        return noto()
    if not package.startswith("@iconify-json/"):
        return files(packages / package)
    if name in ICONS:
        names = {sign: text for sign, text in names.items() if text not in HOMONYMS}
    return iconify(packages / package, names)


# ---- output


def render_style(name: str, packages: Path, wanted: list[Concept], output: Path) -> list[dict[str, object]]:
    """Draw one style; returns the rows of its table."""
    draw = style(name, packages, {concept.sign: concept.names["en"] for concept in wanted})
    (output / name).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for concept in wanted:
        picture = draw(concept.sign)
        if picture is not None:
            image = f"{name}/{concept.code}.png"
            picture.save(output / image)
            row = {"image": image, "captions": concept.captions, "names": concept.names}
            rows.append(row | {"code": concept.code, "style": name})
    return rows


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Parse the command line, render every style, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--packages", type=Path, default=Path("node_modules"), help="npm's folder of packages")
    options = parser.parse_args()
    wanted = concepts()
    print(f"{len(wanted)} concepts")
    with ProcessPoolExecutor() as pool:
        jobs = {name: pool.submit(render_style, name, options.packages, wanted, options.output) for name in PACKAGES}
        rows = {name: job.result() for name, job in jobs.items()}
    for name in PACKAGES:
        print(f"{name}: {len(rows[name])} pictures")
    write_table(options.output / "heldout.jsonl", [row for name in HELD_OUT for row in rows.pop(name)])
    write_table(options.output / "train.jsonl", [row for part in rows.values() for row in part])


if __name__ == "__main__":
    main()
