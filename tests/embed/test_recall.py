"""Facts of models that an earlier run opened: when they hold, and when they don't any more."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcls.embed import model_facts
from clipcls.embed.cache.store import Cache
from clipcls.embed.session import Session
from clipcls.models import catalog
from clipcls.models.catalog import EMBEDDED
from clipcls.models.changes import look_at
from clipcls.records import ModelFacts, ModelSpec, Preprocessing

PREPROCESS = Preprocessing((32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear", "longest", 127)
FACTS = ModelFacts("tiny", bytes(range(32)), "cpu", "bf16", PREPROCESS, 4.6052, -10.0, 16, 32, None)


@pytest.fixture
def cache(tmp_path: Path) -> Any:
    opened = Cache(tmp_path / "cache")
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files as a model has them; nobody reads what is in them here."""
    made = tmp_path / "models" / "tiny"
    made.mkdir(parents=True)
    for name in ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json", "words.txt"):
        (made / name).write_text(name)
    return made


def files_of(folder: Path) -> list[Path]:
    return [folder / name for name in ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer.json")]


def keep(cache: Cache, spec: ModelSpec, files: list[Path]) -> None:
    model_facts.remember(cache, spec, FACTS, look_at(files))
    assert model_facts.recall(cache, spec) == FACTS


# ------------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    "facts",
    [
        FACTS,
        replace(FACTS, logit_bias=None, words="/some/folder", device="cuda:1"),
        replace(FACTS, name="ünï ☃", preprocess=Preprocessing((1, 2), (0.0,) * 3, (1.0,) * 3)),
        replace(FACTS, logit_scale=0.1 + 0.2, logit_bias=-1e-30),
    ],
)
def test_recall_gives_what_was_remembered(cache: Cache, folder: Path, facts: ModelFacts) -> None:
    model_facts.remember(cache, ModelSpec(str(folder)), facts, look_at(files_of(folder)))
    assert model_facts.recall(cache, ModelSpec(str(folder))) == facts


def test_recall_in_a_later_run(folder: Path, tmp_path: Path) -> None:
    first = Cache(tmp_path / "cache")
    keep(first, ModelSpec(str(folder)), files_of(folder))
    first.close()
    second = Cache(tmp_path / "cache")
    assert model_facts.recall(second, ModelSpec(str(folder))) == FACTS
    second.close()


def test_recall_without_a_cache_knows_nothing(folder: Path) -> None:
    cache = Cache(None)
    model_facts.remember(cache, ModelSpec(str(folder)), FACTS, look_at(files_of(folder)))
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


# ------------------------------------------------------------------------------------------- what was asked


@pytest.mark.parametrize(
    "other",
    [
        {"device": "cpu"},
        {"device": "cuda:1"},
        {"precision": "bf16"},
        {"precision": "fp32"},
        {"arch": "ViT-B-32"},
        {"preprocess": "openai"},
        {"name": "pictogram"},
    ],
    ids=str,
)
def test_recall_of_another_question_knows_nothing(cache: Cache, folder: Path, other: dict[str, str]) -> None:
    spec = ModelSpec(str(folder))
    keep(cache, spec, files_of(folder))
    assert model_facts.recall(cache, replace(spec, **other)) is None


def test_recall_by_a_relative_path_depends_on_where_one_is(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder.parent / "elsewhere" / "tiny"
    shutil.copytree(folder, other)
    for name in ("tiny", "local-dir:tiny", "./tiny"):
        monkeypatch.chdir(folder.parent)
        keep(cache, ModelSpec(name), [Path("tiny") / file.name for file in files_of(folder)])
        monkeypatch.chdir(other.parent)
        assert model_facts.recall(cache, ModelSpec(name)) is None
        monkeypatch.chdir(folder.parent)
        assert model_facts.recall(cache, ModelSpec(name)) == FACTS


def test_recall_by_an_alias_depends_on_what_it_stands_for(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache, ModelSpec("pictogram"), files_of(EMBEDDED / "pictogram")[:2])
    assert model_facts.recall(cache, ModelSpec(str(EMBEDDED / "pictogram"))) is None  # the name is one of the facts
    entry = catalog.find("pictogram")
    assert entry is not None
    monkeypatch.setattr(catalog, "find", lambda name: replace(entry, model=str(folder)))
    assert model_facts.recall(cache, ModelSpec("pictogram")) is None


@pytest.mark.parametrize("name", ["HF_HOME", "HF_HUB_CACHE", "CUDA_VISIBLE_DEVICES", "XDG_CACHE_HOME"])
def test_recall_depends_on_the_environment(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    keep(cache, ModelSpec(str(folder)), files_of(folder))
    monkeypatch.setenv(name, "other")
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


@pytest.mark.parametrize("package", ["torch", "open_clip"])
def test_recall_depends_on_the_installed_packages(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    keep(cache, ModelSpec(str(folder)), files_of(folder))
    stamp = model_facts._stamp_text
    other = Path(package) / "version.py"
    monkeypatch.setattr(
        model_facts, "_stamp_text", lambda path: "new" if str(path).endswith(str(other)) else stamp(path)
    )
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


def test_recall_depends_on_the_processor(cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, ModelSpec(str(folder)), files_of(folder))
    monkeypatch.setattr(model_facts, "_processor", lambda: "flags: fpu")
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


def test_recall_without_torch_installed_is_no_error(
    cache: Cache, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache, ModelSpec(str(folder)), files_of(folder))
    monkeypatch.setattr(model_facts.importlib.util, "find_spec", lambda name: None)
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


# ------------------------------------------------------------------------------------------- files that change


def replaced(path: Path) -> None:
    """Another file of the same size and time, put in its place."""
    facts = path.stat()
    other = path.parent.parent / "new"
    other.write_bytes(path.read_bytes()[::-1])
    os.utime(other, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    other.rename(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "grown": lambda path: path.write_text("longer than it was before"),
    "touched": lambda path: os.utime(path, (10**9, 10**9)),
    "replaced": replaced,
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json", "tokenizer.json"])
def test_recall_after_a_file_changed_knows_nothing(cache: Cache, folder: Path, name: str, change: str) -> None:
    keep(cache, ModelSpec(str(folder)), files_of(folder))
    CHANGES[change](folder / name)
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "words.txt", "tokenizer.json", "vocab.txt"])
def test_recall_after_a_file_appeared_beside_the_weights_knows_nothing(cache: Cache, folder: Path, name: str) -> None:
    """It may rank before the one that was taken."""
    (folder / name).unlink(missing_ok=True)
    (folder / "pytorch_model.bin").write_text("weights")
    os.utime(folder, (10**9, 10**9))
    keep(cache, ModelSpec(str(folder)), [folder / "open_clip_config.json", folder / "pytorch_model.bin"])
    (folder / name).write_text("new")
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


def test_recall_after_the_preprocessing_file_changed_knows_nothing(cache: Cache, folder: Path, tmp_path: Path) -> None:
    stated = tmp_path / "preprocess.json"
    stated.write_text("{}")
    spec = ModelSpec(str(folder / "open_clip_model.safetensors"), "ViT-B-32", str(stated))
    keep(cache, spec, [folder / "open_clip_model.safetensors", stated])
    stated.write_text('{"mean": 0}')
    assert model_facts.recall(cache, spec) is None


def test_recall_after_the_folder_moved_knows_nothing(cache: Cache, folder: Path, tmp_path: Path) -> None:
    keep(cache, ModelSpec(str(folder)), files_of(folder))
    folder.rename(tmp_path / "moved")
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None
    assert model_facts.recall(cache, ModelSpec(str(tmp_path / "moved"))) is None
    # another one at the old place, of the same files' content
    shutil.copytree(tmp_path / "moved", folder)
    assert model_facts.recall(cache, ModelSpec(str(folder))) is None


@pytest.mark.usefixtures("one_thread")
def test_recall_sees_every_file_of_a_real_model(cache: Cache, tiny_model: Path, tmp_path: Path) -> None:
    """What `remember` is told by the encoder: weights, configuration and the file of --preprocess."""
    from clipcls.embed.lazy_encoder import find_model

    weights, config = tmp_path / "model" / "weights.safetensors", tmp_path / "model" / "open_clip_config.json"
    weights.parent.mkdir()
    shutil.copy(tiny_model / "open_clip_model.safetensors", weights)
    stated = json.loads((tiny_model / config.name).read_text())
    (tmp_path / "stated.json").write_text(json.dumps(stated.pop("preprocess_cfg")))
    config.write_text(json.dumps(stated))
    spec = ModelSpec(str(config.parent), preprocess=str(tmp_path / "stated.json"), device="cpu", precision="fp32")
    for path in (weights, config, tmp_path / "stated.json"):
        facts = find_model(spec, cache).facts
        assert model_facts.recall(cache, spec) == facts
        path.write_bytes(path.read_bytes())
        assert model_facts.recall(cache, spec) is None, path
    assert find_model(spec, cache).facts == facts


def test_recall_has_words_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They decide what is warned of, not what is computed."""
    from clipcls import Classifier, Execution

    folder = shutil.copytree(EMBEDDED / "pictogram", tmp_path / "model")

    def warns() -> bool:
        caplog.clear()
        execution = Execution(cache_dir=tmp_path / "cache")
        _ = Classifier(Session(str(folder), execution), ["cat", "xylotomous"]).label_features
        return "xylotomous" in caplog.text

    assert warns() and warns()
    with (folder / "words.txt").open("a") as words:
        words.write("xylotomous\n")
    assert not warns()


# ------------------------------------------------------------------------------------------- the hub's cache


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A repository in the hub's layout, at commit `one`."""
    repository = tmp_path / "hub" / "models--org--name"
    for part in ("blobs", "refs", "snapshots/one", "snapshots/two"):
        (repository / part).mkdir(parents=True)
    (repository / "refs" / "main").write_text("one")
    for i, name in enumerate(("open_clip_config.json", "open_clip_model.safetensors")):
        (repository / "blobs" / str(i)).write_text(name)
        (repository / "snapshots" / "one" / name).symlink_to(f"../../blobs/{i}")
    return repository / "snapshots" / "one"


def test_recall_of_a_model_of_the_hub_holds_until_a_newer_commit(cache: Cache, snapshot: Path) -> None:
    spec = ModelSpec("hf-hub:org/name")
    keep(cache, spec, files_of(snapshot)[:2])
    (snapshot.parent.parent / "refs" / "main").write_text("two")
    assert model_facts.recall(cache, spec) is None


def test_recall_of_a_model_of_the_hub_sees_its_blobs(cache: Cache, snapshot: Path) -> None:
    spec = ModelSpec("hf-hub:org/name")
    keep(cache, spec, files_of(snapshot)[:2])
    (snapshot.parent.parent / "blobs" / "1").write_text("a download that went on")
    assert model_facts.recall(cache, spec) is None


def test_recall_of_a_model_of_the_hub_sees_a_better_file(cache: Cache, snapshot: Path) -> None:
    spec = ModelSpec("hf-hub:org/name")
    os.utime(snapshot, (10**9, 10**9))
    keep(cache, spec, files_of(snapshot)[:2])
    (snapshot / "other.safetensors").write_text("weights")
    assert model_facts.recall(cache, spec) is None


# ------------------------------------------------------------------------------------------- rows of other hands


def damaged_rows(kept: dict[str, Any]) -> dict[str, str]:
    facts = kept["facts"]
    rows: dict[str, Any] = {
        "empty": {},
        "list": [],
        "number": 7,
        "null": None,
        "no_files": {"facts": facts},
        "no_facts": {"files": {}},
        "files_of_another_type": kept | {"files": ["a", "b"]},
        "facts_of_another_type": kept | {"facts": "facts"},
        "fingerprint_of_another_type": kept | {"facts": facts | {"fingerprint": 7}},
        "fingerprint_of_other_signs": kept | {"facts": facts | {"fingerprint": "xyz"}},
        "unknown_fact": kept | {"facts": facts | {"more": 1}},
        "dim_of_another_type": kept | {"facts": facts | {"embed_dim": "32"}},
        "scale_of_another_type": kept | {"facts": facts | {"logit_scale": None}},
        "device_of_another_type": kept | {"facts": facts | {"device": None}},
        "preprocess_of_another_type": kept | {"facts": facts | {"preprocess": [1]}},
        "size_of_another_type": kept | {"facts": facts | {"preprocess": facts["preprocess"] | {"size": 224}}},
        "sides_of_another_type": kept | {"facts": facts | {"preprocess": facts["preprocess"] | {"size": ["a", 1]}}},
    }
    rows |= {f"no_{name}": kept | {"facts": {k: facts[k] for k in facts if k != name}} for name in facts}
    return {"cut": json.dumps(kept)[:-9], "text": "what?"} | {name: json.dumps(row) for name, row in rows.items()}


def test_recall_of_a_damaged_row_knows_nothing(cache: Cache, folder: Path) -> None:
    spec = ModelSpec(str(folder))
    keep(cache, spec, files_of(folder))
    kept = cache.get_model(model_facts._key(spec))
    assert kept is not None
    for name, row in damaged_rows(json.loads(kept)).items():
        if name in ("no_words", "no_runtime", "no_calibration", "no_weights"):  # have a default
            continue
        cache.put_model(model_facts._key(spec), row)
        assert model_facts.recall(cache, spec) is None, name
    keep(cache, spec, files_of(folder))
