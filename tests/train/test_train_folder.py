"""Model folders are replaced whole."""

from pathlib import Path

import pytest

from clipcls.errors import StoppedError
from clipcls.train.model_folder import copy_model, remove_drafts


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A new folder, and an old one that it is to replace."""
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name, encoding="utf-8")
    return tmp_path / "new", tmp_path / "old"


def test_copy_model_replaces_the_folder(folders: tuple[Path, Path]) -> None:
    copy_model(*folders)
    assert (folders[1] / "file").read_text(encoding="utf-8") == "new"
    assert sorted(path.name for path in folders[1].parent.iterdir()) == ["new", "old"]


def test_copy_model_that_fails_between_its_renames_brings_the_old_one_back(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Path.replace

    def fail_on_drafts(self: Path, target: Path) -> Path:
        if self.name.startswith(".old-") and not self.name.endswith("-old"):
            raise OSError(5, "Input/output error")
        return plain(self, target)

    monkeypatch.setattr(Path, "replace", fail_on_drafts)
    with pytest.raises(StoppedError, match=r"can't be written: .*Input/output error"):
        copy_model(*folders)
    assert (folders[1] / "file").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in folders[1].parent.iterdir()) == ["new", "old"]


def test_remove_drafts_brings_back_what_was_moved_aside(folders: tuple[Path, Path]) -> None:
    new, old = folders
    new.rename(new.with_name(".old-abc"))
    old.rename(old.with_name(".old-abc-old"))
    remove_drafts(old)
    assert [path.name for path in old.parent.iterdir()] == ["old"]
    assert (old / "file").read_text(encoding="utf-8") == "old"
