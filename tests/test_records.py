"""What tells whether a file is unchanged."""

from pathlib import Path

import pytest

from clipcls.records import FileStamp


def test_file_stamp_is_the_same_in_its_text_form(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    stamp = FileStamp.at(tmp_path / "a")
    assert stamp is not None and stamp.size == 3 and stamp == FileStamp.of((tmp_path / "a").stat())
    assert FileStamp.parse(str(stamp)) == stamp


@pytest.mark.parametrize("name", ["missing", "nul\0", "a" * 5000])
def test_file_stamp_of_no_file_is_none(tmp_path: Path, name: str) -> None:
    assert FileStamp.at(str(tmp_path / name)) is None


@pytest.mark.parametrize("text", ["", "1 2 3", "1 2 3 x", "1 2 3 4 5"])
def test_file_stamp_refuses_other_texts(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        FileStamp.parse(text)


def test_file_stamp_is_settled_once_two_seconds_have_passed() -> None:
    assert FileStamp(1, 10**9, 5 * 10**9, 7).is_settled(seen=7.0)
    assert not FileStamp(1, 5 * 10**9, 10**9, 7).is_settled(seen=6.9)
