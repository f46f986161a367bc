"""Aliases that name models which exist, with facts that have sources."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from huggingface_hub import constants

from clipcls.cli.models import _presence
from clipcls.models.catalog import CATALOG, DEFAULT_MODEL, EMBEDDED, CatalogEntry, find, suggestions
from tiny_models import put_into_hub_cache

ROOT = Path(__file__).parents[2]


def test_catalog_aliases_are_unique_and_plain() -> None:
    aliases = [entry.alias for entry in CATALOG]
    assert len(set(aliases)) == len(aliases)
    assert all(alias.isidentifier() for alias in aliases)
    assert {DEFAULT_MODEL, "fast", "accurate", "multilingual", "pictogram"} <= set(aliases)


def test_find_knows_aliases_alone() -> None:
    photo = find(DEFAULT_MODEL)
    assert photo is not None and photo.model == "ViT-B-32-256:datacomp_s34b_b86k"
    assert find("nosuch") is None
    assert find(photo.model) is None


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.alias)
def test_catalog_accuracy_has_a_source_and_extras_exist(entry: CatalogEntry) -> None:
    assert (entry.imagenet is None) == (entry.source == "")
    assert entry.purpose and entry.licence and entry.speed
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert entry.extra is None or entry.extra in extras


def test_catalog_models_are_open_clips() -> None:
    import open_clip

    known = {f"{name}:{tag}" for name, tag in open_clip.list_pretrained()}
    assert {entry.model for entry in CATALOG if entry.repo} <= known


@pytest.mark.parametrize("entry", [entry for entry in CATALOG if entry.repo], ids=lambda entry: entry.alias)
def test_catalog_knows_where_models_are_and_whether_they_are_here(
    entry: CatalogEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    name, tag = entry.model.split(":")
    assert open_clip.pretrained.get_pretrained_cfg(name, tag)["hf_hub"] == f"{entry.repo}/"
    text = open_clip.get_model_config(name)["text_cfg"]
    assert text.get("hf_tokenizer_name", "") == entry.tokenizer_repo
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert _presence(entry) == f"{entry.gigabytes:.1f} GB, not downloaded"
    tokenizer = {"tokenizer_config.json": b"{}"} if entry.tokenizer_repo else {}
    put_into_hub_cache(tmp_path, entry.repo, {"open_clip_model.safetensors": b"", **tokenizer})
    assert _presence(entry) == f"{entry.gigabytes:.1f} GB, downloaded"


def test_catalog_pictogram_is_honest() -> None:
    entry = find("pictogram")
    assert entry is not None and entry.model == str(EMBEDDED / "pictogram")
    assert "not photographs" in entry.purpose and entry.imagenet is None


def test_suggestions_resemble() -> None:
    known = [entry.alias for entry in CATALOG]
    assert suggestions("photos", known) == ["photo"]
    assert suggestions("pictograms", known)[0] == "pictogram"
    assert suggestions("zzz", known) == []
    assert len(suggestions("a", ["a1", "a2", "a3", "a4"])) == 3


def test_catalog_imports_no_torch() -> None:
    code = "import sys, clipcls.models.catalog; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
