"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from clipcls.errors import StoppedError
from clipcls.outputs.atomic import Draft, write_atomically


def test_write_atomically_leaves_the_old_file_where_writing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def fail(file: object) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_atomically(tmp_path / "file", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_write_atomically_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    for content in (b"one", b"two"):
        write_atomically(tmp_path / "link", lambda file, content=content: file.write(content))  # type: ignore[misc]
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_bytes() == content


def test_write_atomically_takes_no_devices_place(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    write_atomically(tmp_path / "link", lambda file: file.write(b"x"))
    assert (tmp_path / "link").is_symlink() and not Path("/dev/null").is_file()


def test_draft_is_one_processs_at_a_time(tmp_path: Path) -> None:
    with Draft(tmp_path / "file") as first:
        with pytest.raises(StoppedError, match="another run"):
            Draft(tmp_path / "file")
        first.file.write(b"first")
        first.publish()
        # what comes next is another draft, which the end of this one leaves alone
        second = Draft(tmp_path / "file")
    with second:
        second.file.write(b"second")
        second.publish()
    assert (tmp_path / "file").read_bytes() == b"second"


def test_write_atomically_keeps_the_mode(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    write_atomically(tmp_path / "file", lambda file: file.write(b"x"))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
