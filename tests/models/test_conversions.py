"""Converted towers are kept, found, and thrown away: whatever happens to them, no answer is wrong."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_runtime import Model, file_sha256, notices, pictures

from clipcls.embed.cache.prune import clear, info, prune
from clipcls.embed.cache.store import MEGABYTE, Cache
from clipcls.errors import NOTICE
from clipcls.models.runtime.conversions import Conversions, _write_manifest, drop_conversions, stored_conversions
from clipcls.models.runtime.engine import openvino
from conftest import TINY_CONFIG, save_model

pytestmark = pytest.mark.usefixtures("one_thread")

DAY = 24 * 3600.0
FILES = ["manifest.json", "tower.bin", "tower.xml"]


@pytest.fixture(scope="module")
def whole(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model with both towers converted; not to be changed."""
    model = Model(tiny_model, tmp_path_factory.mktemp("whole"))
    model.compiled().describe()
    return model


@pytest.fixture
def kept(whole: Model, tmp_path: Path) -> Model:
    """A copy of it that may be damaged."""
    shutil.copytree(whole.cache, tmp_path / "cache")
    return Model(whole.folder, tmp_path / "cache")


def place(model: Model, tower: Any = "visual", precision: Any = "fp32") -> Path:
    """The folder of a converted tower."""
    found = model.conversions().find(tower, precision)
    assert found is not None and found.path is not None
    return found.path.parent


def is_right(model: Model, encoder: Any = None) -> bool:
    found = (encoder or model.compiled()).encode_image(pictures(3))
    return bool(np.abs(found - model.torch().encode_image(pictures(3))).max() <= 1e-5)


# ------------------------------------------------------------------------------------------- kept and found


def test_conversion_is_found_again_without_torch(kept: Model) -> None:
    assert is_right(kept, kept.converted())
    assert sorted(path.name for path in place(kept).iterdir()) == FILES


def test_conversion_is_found_where_the_cache_was_copied_to(kept: Model, tmp_path: Path) -> None:
    moved = Model(kept.folder, Path(shutil.move(kept.cache, tmp_path / "moved")))
    assert is_right(moved, moved.converted())


def test_conversion_of_anything_else_is_not_found(kept: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    conversions = kept.conversions()
    assert conversions.find("visual", "bf16") is None and conversions.find("visual", "int8") is None
    other = Conversions(kept.cache / "openvino", kept.limit, b"of other weights", file_sha256)
    assert other.find("visual", "fp32") is None
    with monkeypatch.context() as patch:
        patch.setattr("clipcls.models.runtime.conversions.release", lambda: "2030.1")
        assert conversions.find("visual", "fp32") is None
    with monkeypatch.context() as patch:
        patch.setattr("clipcls.models.runtime.conversions._VERSION", 999)
        assert conversions.find("visual", "fp32") is None
    assert conversions.find("visual", "fp32") is not None


def test_use_is_noted_once_a_day(kept: Model) -> None:
    manifest = place(kept) / "manifest.json"
    for age, noted in [(0.5 * DAY, False), (2 * DAY, True)]:
        moment = time.time() - age
        os.utime(manifest, (moment, moment))
        place(kept)
        assert (manifest.stat().st_mtime > moment + 1) == noted


# ------------------------------------------------------------------------------------------- damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_the_way(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flipped,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "folder": in_the_way,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_conversion_is_made_again(
    kept: Model, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = place(kept)
    DAMAGES[damage](folder / name)
    assert kept.conversions().find("visual", "fp32") is None
    assert is_right(kept) and is_right(kept, kept.converted())
    assert sorted(path.name for path in folder.iterdir()) == FILES
    warnings = [line for line in notices(caplog) if "can't be used" in line]
    assert len(warnings) == (damage != "missing") and all(str(folder) in line for line in warnings)


def test_any_flipped_byte_of_a_manifest_is_noticed(kept: Model) -> None:
    path, conversions = place(kept) / "manifest.json", kept.conversions()
    whole = path.read_bytes()
    for i in range(len(whole)):
        for bit in (1, 64):
            path.write_bytes(whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :])
            assert conversions.find("visual", "fp32") is None, (i, bit)
    path.write_bytes(whole)
    assert conversions.find("visual", "fp32") is not None


@pytest.mark.parametrize("manifest", [None, 3, "of", [], {}, {"of": []}], ids=repr)
def test_manifest_of_another_form_is_not_used(kept: Model, manifest: Any) -> None:
    """As another program may write it, under a digest that is right."""
    _write_manifest(place(kept), manifest)
    assert is_right(kept) and is_right(kept, kept.converted())


def test_another_models_tower_under_the_right_name_is_not_used(
    kept: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = Model(save_model(tmp_path / "other", TINY_CONFIG, seed=1), tmp_path / "other-cache")
    other.compiled().build_image_tower()
    folder = place(kept)
    shutil.rmtree(folder)
    shutil.copytree(place(other), folder)
    assert is_right(kept) and is_right(kept, kept.converted())
    assert "it is another model's" in caplog.text


# ------------------------------------------------------------------------------------------- several processes


def convert_and_say(model: Model, said: Path) -> None:
    """In a process of its own: convert the image tower, and write down whether it was."""
    import logging

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("clipcls").addHandler(handler)
    logging.getLogger("clipcls").setLevel(NOTICE)
    assert is_right(model)
    said.write_text(json.dumps(lines))


def convert_and_die(model: Model) -> None:
    """In a process of its own: be killed once the weights are written."""
    from clipcls.models.runtime import convert

    def die(*_: object) -> float:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0.0

    convert._check = die
    model.compiled().build_image_tower()


def ended(process: Any) -> int:
    process.join(60)
    code: int = process.exitcode
    return code


def test_two_processes_at_once_convert_once(tiny_model: Path, tmp_path: Path, forks: Any) -> None:
    model = Model(tiny_model, tmp_path / "cache")
    said = [tmp_path / name for name in ("one", "two")]
    processes = [forks.Process(target=convert_and_say, args=(model, path)) for path in said]
    for process in processes:
        process.start()
    assert [ended(process) for process in processes] == [0, 0]
    assert sorted(len(json.loads(path.read_text())) for path in said) == [0, 1]
    assert len(stored_conversions(model.cache)) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX's signal")
def test_killed_conversion_leaves_nothing_that_harms(tiny_model: Path, tmp_path: Path, forks: Any) -> None:
    model = Model(tiny_model, tmp_path / "cache")
    process = forks.Process(target=convert_and_die, args=(model,))
    process.start()
    assert ended(process) == -signal.SIGKILL
    (draft,) = (tmp_path / "cache" / "openvino").glob("draft-*")
    assert (draft / "tower.bin").exists()
    assert stored_conversions(model.cache) == [] and not info(model.cache).exists
    assert is_right(model) and is_right(model, model.converted())
    assert not draft.exists()


@pytest.mark.parametrize("step", ["TorchScriptPythonDecoder.as_constant", "save_model"])
def test_interrupted_conversion_is_begun_anew(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Also where C++ calls Python, and an exception would end the process."""
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    model = Model(tiny_model, tmp_path / "cache")
    handler = signal.getsignal(signal.SIGINT)
    owner: Any = openvino() if step == "save_model" else TorchScriptPythonDecoder
    name = step.rpartition(".")[2]
    whole = getattr(owner, name)

    def interrupted(*args: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return whole(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.compiled().build_image_tower()
    assert signal.getsignal(signal.SIGINT) is handler
    assert [path.name for path in (model.cache / "openvino").iterdir()] == [".lock"]
    assert is_right(model) and is_right(model, model.converted())


# ------------------------------------------------------------------------------------------- no room


def test_least_recently_used_conversions_go_first(kept: Model) -> None:
    ages = {"visual": 5, "text": 3}
    sizes = {}
    for tower, age in ages.items():
        folder = place(kept, tower)
        os.utime(folder / "manifest.json", (time.time() - age * DAY,) * 2)
        sizes[tower] = sum(path.stat().st_size for path in folder.iterdir())
    text = place(kept, "text")
    assert drop_conversions(kept.cache, sum(sizes.values())) == []
    (dropped,) = drop_conversions(kept.cache, sum(sizes.values()) - 1)
    assert dropped.size == sizes["visual"]
    assert [stored.folder for stored in stored_conversions(kept.cache)] == [text]
    assert drop_conversions(kept.cache, 0, keep=text) == []


def test_unused_conversions_can_be_dropped_by_age(kept: Model) -> None:
    folder = place(kept)
    os.utime(folder / "manifest.json", (time.time() - 10 * DAY,) * 2)
    assert [stored.folder for stored in drop_conversions(kept.cache, 2**40, time.time() - 9 * DAY)] == [folder]


def test_new_conversion_drives_out_an_older_models(kept: Model, tmp_path: Path) -> None:
    limit = sum(stored.size for stored in stored_conversions(kept.cache)) + 1000
    other = Model(save_model(tmp_path / "other", TINY_CONFIG, seed=1), kept.cache, limit)
    other.compiled().describe()
    assert is_right(other, other.converted())
    assert kept.conversions().find("text", "fp32") is None
    assert sum(stored.size for stored in stored_conversions(kept.cache)) <= limit


def test_tower_without_room_is_left_to_torch_until_there_is(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Beside its model's other tower, so that the two don't drive each other out at each run."""
    small = Model(tiny_model, tmp_path / "cache", limit=6_500_000)
    visual, text = small.compiled().describe().values()
    assert visual.startswith("OpenVINO, fp32") and text.startswith("torch, since ")
    (warning,) = [line for line in notices(caplog) if "can't be kept" in line]
    assert "the text tower takes 6 MB" in warning and "a larger --cache-size helps" in warning
    assert small.compiled().describe()["image tower"] == visual
    assert small.compiled().encode_text(["cat"]).shape == (1, 32)
    large = Model(tiny_model, tmp_path / "cache")
    assert large.compiled().describe()["text tower"].startswith("OpenVINO, fp32")


def unkept(model: Model, caplog: pytest.LogCaptureFixture) -> str:
    """The one warning of a run that can't keep what it converts, and computes with torch."""
    encoder = model.compiled()
    assert is_right(model, encoder)
    expected = model.torch().encode_text(["cat"])
    assert np.abs(encoder.encode_text(["cat"]) - expected).max() <= 1e-5
    assert encoder.truncated(["cat", "dog " * 100]) == [False, True]
    assert stored_conversions(model.cache) == []
    (warning,) = [line for line in notices(caplog) if "can't be kept" in line]
    assert warning.startswith(f"a converted model can't be kept in {model.cache / 'openvino'}: ")
    return warning


def test_unwritable_folder_leaves_all_to_torch(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "openvino").write_text("in the way")
    assert "exists" in unkept(Model(tiny_model, tmp_path / "cache"), caplog)


def test_full_disk_leaves_all_to_torch_until_there_is_room(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("basic_ios::clear: iostream error")  # all that OpenVINO says

    model = Model(tiny_model, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(openvino(), "save_model", full)
        assert "as on a full disk" in unkept(model, caplog)
    caplog.clear()

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("clipcls.models.runtime.conversions._write_manifest", no_space)
        assert "No space left" in unkept(model, caplog)
    assert is_right(model) and is_right(model, model.converted())


def test_too_little_memory_to_convert_is_not_remembered(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    model = Model(tiny_model, tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(openvino(), "convert_model", exhausted)
        unkept(model, caplog)
    assert is_right(model) and is_right(model, model.converted())


# ------------------------------------------------------------------------------------------- clipcls cache


def test_cache_info_counts_conversions_and_their_size(kept: Model) -> None:
    alone = info(kept.cache)
    assert (alone.exists, alone.conversions) == (True, 2) and alone.size > 6_000_000
    Cache(kept.cache).close()
    both = info(kept.cache)
    assert both.conversions == 2 and both.size > alone.size


def test_cache_clear_removes_conversions_and_drafts(kept: Model) -> None:
    size = info(kept.cache).size
    (kept.cache / "openvino" / "draft-of-a-killed-process").mkdir()
    assert clear(kept.cache) == size
    assert list(kept.cache.iterdir()) == []
    assert is_right(kept)


def test_cache_clear_leaves_a_conversion_that_is_being_made(kept: Model) -> None:
    with kept.conversions().making() as draft:
        clear(kept.cache)
        assert draft.is_dir() and (kept.cache / "openvino" / ".lock").exists()
    assert stored_conversions(kept.cache) == []


def test_cache_prune_removes_conversions_by_size_age_and_leftovers(kept: Model) -> None:
    (kept.cache / "openvino" / "draft-of-a-killed-process").mkdir()
    assert prune(kept.cache).conversions == 0
    assert not (kept.cache / "openvino" / "draft-of-a-killed-process").exists()
    size = info(kept.cache).size
    os.utime(place(kept, "text") / "manifest.json", (time.time() - 10 * DAY,) * 2)
    pruned = prune(kept.cache, older_than=9)
    assert pruned.conversions == 1 and 6_000_000 < pruned.freed < size
    assert prune(kept.cache, size=0).conversions == 1
    assert info(kept.cache).conversions == 0


def test_conversions_leave_the_other_half_to_rows(kept: Model) -> None:
    from clipcls.embed.cache.store import room_for_rows

    assert 1900 * MEGABYTE < room_for_rows(kept.cache, 2000 * MEGABYTE) < 1996 * MEGABYTE
    assert room_for_rows(kept.cache, 4 * MEGABYTE) == 2 * MEGABYTE
