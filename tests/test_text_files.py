"""Text that other programs wrote."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import UsageError
from clipcls.labels.label_files import read_labels
from clipcls.labels.prompts import load_prompt_set
from clipcls.models.preprocess import read_json
from clipcls.predict.calibration import read_calibration
from clipcls.text_files import read_text
from clipcls.train.settings import read_config_file

READERS: dict[str, Callable[[Path], Any]] = {
    "labels.txt": read_labels,
    "prompts.yaml": lambda path: load_prompt_set(str(path)),
    "settings.yaml": read_config_file,
    "calibration.yaml": read_calibration,
}


def test_read_text_takes_marks_and_every_line_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffé\r\nb\rc\n".encode())
    assert read_text(tmp_path / "a.txt") == "é\nb\nc\n"


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_refused_with_the_remedy(tmp_path: Path, name: str, encoding: str) -> None:
    (tmp_path / name).write_bytes("cat\n".encode(encoding))
    with pytest.raises(UsageError, match=f"{name}: it is in UTF-16; save it as UTF-8"):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("name", READERS)
def test_other_encodings_are_refused_with_the_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("cat\ncafé\n".encode("latin-1"))
    with pytest.raises(UsageError, match=f"{name}, line 2: not UTF-8; save the file as UTF-8"):
        READERS[name](tmp_path / name)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(Exception, match="isn't JSON"):
        read_json(tmp_path / "a.json")


def test_every_reader_withstands_a_short_fuzz() -> None:
    fuzz = Path(__file__).parent / "benchmarks" / "fuzz_text.py"
    command = [sys.executable, str(fuzz), "--count", "3000", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3,000 mutants" in done.stdout
