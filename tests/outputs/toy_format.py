"""The command line with an output format more, for the test that a class and an entry are all that one needs."""

from collections.abc import Iterable, Iterator

from clipcls.outputs.formats import OUTPUT_FORMATS
from clipcls.outputs.formats.text import StoredPrediction, TextFormat, whole_lines
from clipcls.records import Prediction


class Toy(TextFormat):
    name = "toy"
    extensions = ("toy",)

    def row(self, prediction: Prediction) -> str:
        return f"{prediction.label or prediction.error} <- {prediction.path}\n"

    def read_rows(self, lines: Iterable[bytes], name: str) -> Iterator[StoredPrediction]:
        end = 0
        for line in whole_lines(lines):
            label, path = line.decode().removesuffix("\n").split(" <- ")
            yield StoredPrediction(Prediction(path, label, 1.0, None), end, end := end + len(line))


OUTPUT_FORMATS["toy"] = Toy()

if __name__ == "__main__":
    from clipcls.cli import main

    main()
