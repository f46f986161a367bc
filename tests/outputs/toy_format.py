"""The command line with an output format more, for the test that a class and an entry are all that one needs."""

from collections.abc import Iterator

from clipcls.outputs.formats import OUTPUT_FORMATS
from clipcls.outputs.formats.text import TextFormat, WholeLines
from clipcls.records import Prediction


class Toy(TextFormat):
    name = "toy"
    extensions = ("toy",)

    def row(self, prediction: Prediction) -> str:
        return f"{prediction.label or prediction.error} <- {prediction.path}\n"

    def parse(self, lines: WholeLines) -> Iterator[tuple[Prediction, int]]:
        for line in lines:
            label, path = line.decode().removesuffix("\n").split(" <- ")
            yield Prediction(path, label, 1.0, None), lines.end


OUTPUT_FORMATS["toy"] = Toy()

if __name__ == "__main__":
    from clipcls.cli import main

    main()
