"""What an output format more needs, and what each is asked."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipcls.errors import UsageError
from clipcls.outputs.destination import Destination, check_explanations
from clipcls.outputs.formats import OUTPUT_FORMATS, format_names
from clipcls.outputs.formats.text import TextFormat, WholeLines
from clipcls.records import Prediction
from conftest import save_pictures
from shell import Started


class Toy(TextFormat):
    """An output format more: a class and an entry are all that one needs."""

    name = "toy"
    extensions = ("toy",)

    def row(self, prediction: Prediction) -> str:
        return f"{prediction.label or prediction.error} <- {prediction.path}\n"

    def parse(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        for line in lines:
            label, path = line.decode().removesuffix("\n").split(" <- ")
            yield Prediction(path, label, 1.0, None), lines.end


def enter_toy() -> None:
    OUTPUT_FORMATS["toy"] = Toy()
    for name in [name for name in sys.modules if name.startswith("clipcls.cli")]:
        del sys.modules[name]  # its options list the formats that there were


def test_format_more_can_do_what_the_others_can(
    tiny_model: Path, tmp_path: Path, start: Callable[..., Started]
) -> None:
    paths = [f"pictures/{path.name}" for path in save_pictures(tmp_path / "pictures", 3)]

    def run(*arguments: str) -> bytes:
        process = start(*arguments, before=enter_toy)
        output, errors = process.communicate()
        assert process.wait() == 0, errors
        return output

    predict = ("predict", "pictures", "--model", str(tiny_model), "--labels", "cat")
    rows = run(*predict, "--format", "toy")
    assert rows.decode().splitlines() == [f"cat <- {path}" for path in paths]
    run(*predict, "--output", "out.toy")
    (tmp_path / "out.toy").write_bytes(rows[:-3])
    (tmp_path / ".out.toy.run").write_text((tmp_path / ".out.toy.run").read_text().partition("\n")[0] + "\n")
    run(*predict, "--output", "out.toy", "--resume")
    assert (tmp_path / "out.toy").read_bytes() == rows
    run(*predict, "--output-dir", "parts", "--format", "toy")
    assert (tmp_path / "parts" / "part-000000.toy").read_bytes() == rows
    run("sort", "parts", "--into", "sorted")
    assert len(list((tmp_path / "sorted" / "cat").iterdir())) == len(paths)


def test_formats_are_named_in_the_registrys_order() -> None:
    assert format_names(lambda one: one.can_resume) == "tsv, jsonl or csv"
    assert format_names(lambda one: one.fits_parts, first=OUTPUT_FORMATS["parquet"]) == "parquet, jsonl or csv"
    assert format_names(lambda one: one.name == "csv", prefix=".") == ".csv"


@pytest.mark.parametrize("name", ["out.tsv", "out.csv", "out.parquet"])
def test_explanations_need_room(name: str) -> None:
    for room in (Destination("out.jsonl"), Destination(name, format_name="table")):
        check_explanations(room)
    with pytest.raises(UsageError, match=r"has no room .* Use --format jsonl, or table to read them"):
        check_explanations(Destination(name))


def test_extensions_belong_to_one_format_each() -> None:
    extensions = [extension for one in OUTPUT_FORMATS.values() for extension in one.extensions]
    assert len(extensions) == len(set(extensions))
