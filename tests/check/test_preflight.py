"""What `clipcls check` finds: each fault by its name, several in one run, and nothing where nothing is wrong."""

import hashlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip import pretrained as open_clip_pretrained
from safetensors.torch import load_file
from torch import Tensor

from clipcls.check.findings import Finding, exit_code
from clipcls.check.labels import Wording
from clipcls.check.preflight import preflight
from clipcls.embed.execution import Execution
from clipcls.models.hub import reachable
from clipcls.records import ModelSpec
from conftest import TINY_CONFIG, save_model
from tiny_models import SIGLIP_CONFIG, SIGLIP_PREPROCESS, change, put_into_hub_cache, save_tokenizer, train

OPENAI_KEYS = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(9)}
TWO_LABELS = Wording(labels="cat,delivery truck", templates=("a photo of a {}",))
SIGLIP_LIKE = TINY_CONFIG | {"init_logit_bias": -10}


def configure(folder: Path, **settings: Any) -> Path:
    """Edit the configuration of a model folder."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"] |= settings
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A model folder that nothing is wrong with."""
    return change(save_model(tmp_path / "trained", TINY_CONFIG), train)


def check(
    model: Path | str, wording: Wording = TWO_LABELS, execution: Execution | None = None, **options: Any
) -> list[Finding]:
    spec = ModelSpec(str(model), **({"device": "cpu", "precision": "fp32"} | options))
    return list(preflight(spec, wording, execution or Execution()))


def find(findings: list[Finding], level: str, subject: str, *parts: str) -> Finding:
    """The one finding of that level and subject whose message has all the parts."""
    found = [f for f in findings if (f.level, f.subject) == (level, subject) and all(p in f.message for p in parts)]
    assert len(found) == 1, "\n".join(map(str, findings))
    return found[0]


def worst(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.level in ("warning", "error")]


# ------------------------------------------------------------------------------------------- the model


def test_preflight_reads_labels_and_prompts_before_a_model_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.check.model.locate_despite", lambda spec: pytest.fail("a model was downloaded first"))
    wording = Wording(labels_file=Path("none.txt"), prompts="nosuch")
    findings = preflight(ModelSpec("photo"), wording, Execution())
    assert [next(findings).subject for _ in range(2)] == ["labels", "prompts"]


def test_preflight_finds_nothing_wrong_with_a_sound_model(trained: Path) -> None:
    findings = check(trained)
    assert not worst(findings)
    assert exit_code(findings) == 0
    assert str(trained / "open_clip_model.safetensors") in find(findings, "ok", "model").message
    assert "GELU, says" in find(findings, "ok", "activation").message
    assert "32×32, shortest, bicubic" in find(findings, "ok", "preprocessing").message
    assert "49,408 tokens; a prompt may have 16" in find(findings, "ok", "tokenizer").message
    assert "multiplied by 100.00" in find(findings, "ok", "temperature").message
    assert "cpu, in fp32" in find(findings, "ok", "device").message
    tensors = load_file(trained / "open_clip_model.safetensors")
    visual = sum(tensor.numel() for name, tensor in tensors.items() if name.startswith("visual."))
    assert f"{visual:,} parameters" in find(findings, "ok", "image tower").message
    rest = sum(tensor.numel() for tensor in tensors.values()) - visual - 1
    assert f"{rest:,} parameters" in find(findings, "ok", "text tower").message


def test_preflight_names_a_quickgelu_mismatch_of_openais_tensors(trained: Path) -> None:
    change(trained, lambda state: state.update(OPENAI_KEYS))
    found = find(check(trained), "error", "activation", "says GELU", "QuickGELU", "input_resolution")
    assert found.exit_code == 3
    assert '"quick_gelu": true' in found.remedy
    findings = check(configure(trained, quick_gelu=True))
    assert not worst(findings)
    find(findings, "ok", "activation", "QuickGELU", "OpenAI")


@pytest.fixture
def tagged(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained model whose weights open_clip's table knows as `tiny:own`, trained with QuickGELU."""
    digest = hashlib.sha256((trained / "open_clip_model.safetensors").read_bytes()).hexdigest()
    entry = open_clip_pretrained._pcfg(
        f"https://github.com/mlfoundations/open_clip/releases/tiny-{digest[:8]}.pt", "someone/tiny/", quick_gelu=True
    )
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED, "tiny", {"own": entry})
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_CONFIG)
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny-quickgelu", TINY_CONFIG | {"quick_gelu": True})
    return trained


def test_preflight_names_a_quickgelu_mismatch_of_known_weights(tagged: Path) -> None:
    found = find(check(tagged), "error", "activation", "says GELU", "tiny:own", "SHA-256", "trained with QuickGELU")
    assert found.exit_code == 3
    assert not worst(check(configure(tagged, quick_gelu=True)))


def test_preflight_names_a_quickgelu_mismatch_of_a_repository(tagged: Path, tmp_path: Path) -> None:
    change(tagged, lambda state: state.update(logit_scale=torch.tensor(4.0)))  # another checksum
    snapshot = tmp_path / "models--someone--tiny" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    tagged.rename(snapshot)
    find(check(snapshot), "error", "activation", "its repository is someone/tiny")


def test_preflight_names_the_architecture_for_a_bare_file_of_the_other_activation(tagged: Path) -> None:
    weights = tagged / "open_clip_model.safetensors"
    found = find(check(weights, arch="tiny", preprocess="openai"), "error", "activation", "--arch says GELU")
    assert "--arch tiny-quickgelu" in found.remedy
    assert not worst(check(weights, arch="tiny-quickgelu", preprocess="openai"))


@pytest.fixture
def on_hub(tagged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository of those weights, downloaded, and no connection."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reachable.cache_clear()
    files = {path.name: path.read_bytes() for path in tagged.iterdir()}
    put_into_hub_cache(tmp_path / "hub", "someone/tiny", files)


@pytest.mark.usefixtures("on_hub")
def test_preflight_takes_the_activation_of_a_tag(tmp_path: Path) -> None:
    findings = check("tiny:own")
    assert not worst(findings)
    find(findings, "ok", "activation", "QuickGELU, says open_clip's entry of the tag", "repository is someone/tiny")
    find(findings, "ok", "preprocessing", "as open_clip states it for the weights of tiny:own")


@pytest.mark.usefixtures("on_hub")
def test_preflight_names_a_repository_whose_configuration_contradicts_its_tag() -> None:
    found = find(check("hf-hub:someone/tiny"), "error", "activation", "says GELU", "tiny:own", "QuickGELU")
    assert found.exit_code == 3


def test_preflight_does_not_claim_an_activation_that_cannot_be_told(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_CONFIG)
    weights = trained / "open_clip_model.safetensors"
    findings = check(weights, arch="tiny", preprocess="openai")
    assert "model card" in find(findings, "note", "activation", "tensors can't tell").remedy
    named = weights.rename(trained / "vit-quick_gelu-e31.safetensors")
    find(check(named, arch="tiny", preprocess="openai"), "warning", "activation", "the file is called")


def test_preflight_names_siglip_weights_with_clips_preprocessing(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "siglip", SIGLIP_LIKE)
    found = find(check(folder), "warning", "preprocessing", "logit_bias")
    assert "--preprocess siglip" in found.remedy
    right = save_model(tmp_path / "right", SIGLIP_LIKE, SIGLIP_PREPROCESS)
    find(check(right), "ok", "preprocessing", "siglip")


def test_preflight_names_clip_weights_with_siglips_preprocessing(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "clip", TINY_CONFIG, SIGLIP_PREPROCESS)
    assert "--preprocess openai" in find(check(folder), "warning", "preprocessing", "no logit_bias").remedy


def test_preflight_compares_preprocessing_with_what_open_clip_states(tagged: Path) -> None:
    weights = tagged / "open_clip_model.safetensors"
    findings = check(weights, arch="tiny-quickgelu", preprocess="imagenet")
    assert "--preprocess openai" in find(findings, "warning", "preprocessing", "of tiny:own", "openai").remedy


def test_preflight_names_a_missing_tokenizer_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    save_tokenizer(folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    findings = check(folder)
    assert find(findings, "error", "tokenizer", "pip install transformers sentencepiece").exit_code == 3
    find(findings, "ok", "image tower")
    find(findings, "ok", "labels", "2 labels")


def test_preflight_reads_a_hugging_face_tokenizer(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    save_tokenizer(folder)
    findings = check(folder, Wording(labels="cat,猫"))
    find(findings, "ok", "tokenizer", "Hugging Face's", str(folder))
    find(findings, "ok", "bias", "-10")
    find(findings, "warning", "labels", "knows no part of '猫'")
    find(
        check(configure(folder, text_cfg=SIGLIP_CONFIG["text_cfg"] | {"vocab_size": 20})),
        "error",
        "tokenizer",
        "20 only",
    )


def test_preflight_names_a_tokenizer_without_files(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    find(check(folder), "error", "tokenizer", str(folder))


def test_preflight_names_a_folder_without_weights_and_goes_on(trained: Path) -> None:
    (trained / "open_clip_model.safetensors").unlink()
    findings = check(trained, Wording(labels="cat," + "dog " * 20))
    assert find(findings, "error", "model", "no weights").exit_code == 3
    find(findings, "note", "activation", "aren't there")
    find(findings, "ok", "preprocessing")
    find(findings, "ok", "tokenizer")
    find(findings, "warning", "prompts", "first 16 tokens")


def test_preflight_collects_what_is_wrong_with_a_folder(trained: Path) -> None:
    (trained / "open_clip_model.safetensors").unlink()
    findings = check(trained, arch="ViT-B-32", preprocess="openai", device="toaster", wording=Wording(labels="a,,a"))
    errors = [finding.message for finding in findings if finding.level == "error"]
    parts = (
        "--arch belongs",
        "no weights",
        "states the preprocessing itself",
        "--device toaster",
        "empty label",
        "are the same",
    )
    assert len(errors) == len(parts)
    assert all(any(part in message for message in errors) for part in parts)


def test_preflight_names_a_folder_without_configuration_and_weights(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    findings = check(tmp_path / "empty")
    find(findings, "error", "model", "no open_clip_config.json")
    find(findings, "error", "model", "no weights")
    find(findings, "note", "prompts", "the model isn't there")


def test_preflight_of_a_model_that_cannot_be_had_still_checks_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    reachable.cache_clear()
    findings = check("photo", Wording(labels="cat,Cat"))
    assert find(findings, "error", "model", "HF_HUB_OFFLINE").exit_code == 3
    assert find(findings, "error", "labels", "'cat' and 'Cat'").exit_code == 2
    assert exit_code(findings) == 3


@pytest.mark.parametrize(
    ("edit", "subject", "part"),
    [
        (lambda state: state.pop("visual.proj"), "image tower", '"proj"'),
        (lambda state: state.pop("ln_final.weight"), "text tower", "ln_final.weight"),
        (lambda state: state.update({"visual.extra": torch.ones(2)}), "image tower", "extra"),
        (lambda state: state["visual.conv1.weight"].fill_(math.nan), "image tower", "aren't numbers: 'conv1.weight'"),
        (lambda state: state["text_projection"].zero_(), "text tower", "one value throughout: 'text_projection'"),
        (lambda state: state.pop("logit_scale"), "temperature", "no logit_scale"),
        (lambda state: state.update(logit_scale=torch.tensor(100.0)), "temperature", "logit_scale 100 can't be"),
        (lambda state: state.update(logit_scale=torch.tensor(math.nan)), "temperature", "can't be"),
        (lambda state: state.update(logit_scale=torch.ones(0)), "temperature", "logit_scale holds no number"),
        (lambda state: state.update(logit_bias=torch.tensor(math.inf)), "bias", "inf"),
    ],
)
def test_preflight_names_weights_that_are_wrong(
    trained: Path, edit: Callable[[dict[str, Tensor]], object], subject: str, part: str
) -> None:
    found = find(check(change(trained, edit)), "error", subject, part)
    assert found.exit_code == 3


@pytest.mark.parametrize("scale", [0.0, math.log(1 / 0.07), math.log(10), 6.0])
def test_preflight_warns_of_a_strange_temperature(trained: Path, scale: float) -> None:
    change(trained, lambda state: state.update(logit_scale=torch.tensor(scale)))
    assert [finding.subject for finding in worst(check(trained))] == ["temperature"]


def test_preflight_warns_of_weights_before_training(tmp_path: Path) -> None:
    found = worst(check(save_model(tmp_path / "random", TINY_CONFIG)))
    assert [finding.subject for finding in found] == ["image tower", "text tower", "temperature"]
    assert all(finding.level == "warning" for finding in found)


def test_preflight_names_a_bias_that_the_weights_lack(trained: Path) -> None:
    findings = check(configure(trained, init_logit_bias=-10))
    assert find(findings, "error", "bias", "the weights have none").exit_code == 3


def test_preflight_warns_of_weights_for_another_picture_size(trained: Path) -> None:
    configure(trained, vision_cfg=TINY_CONFIG["vision_cfg"] | {"image_size": 64})
    find(check(trained), "warning", "weights", "image size 32, not 64", "interpolated")


def test_preflight_says_by_which_sizes_weights_do_not_fit(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", TINY_CONFIG)
    configure(trained, vision_cfg=TINY_CONFIG["vision_cfg"] | {"width": 128, "layers": 3})
    findings = check(trained)
    find(findings, "error", "image tower", "don't fit")
    find(findings, "note", "weights", "image width 64, not 128", "image layers 2, not 3")
    find(findings, "note", "weights", "that they fit: tiny")


@pytest.mark.parametrize(
    ("section", "setting"),
    [("vision_cfg", {"layers": None}), ("text_cfg", {"context_length": "16"}), ("text_cfg", {"vocab_size": -1})],
)
def test_preflight_names_settings_that_are_no_sizes(trained: Path, section: str, setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    configure(trained, **{section: TINY_CONFIG[section] | setting})
    find(check(trained), "error", "architecture", f"{section}.{name} is {value!r}")


@pytest.mark.parametrize(
    ("settings", "subject"),
    [
        ({"vision_cfg": TINY_CONFIG["vision_cfg"] | {"layers": [1, 2]}}, "image tower"),
        ({"vision_cfg": TINY_CONFIG["vision_cfg"] | {"timm_model_name": 7}}, "image tower"),
        ({"vision_cfg": TINY_CONFIG["vision_cfg"] | {"head_width": 0}}, "image tower"),
        ({"text_cfg": TINY_CONFIG["text_cfg"] | {"hf_model_name": ["x"]}}, "model"),
        ({"text_cfg": TINY_CONFIG["text_cfg"] | {"tokenizer_kwargs": 7}}, "tokenizer"),
        ({"text_cfg": TINY_CONFIG["text_cfg"] | {"tokenizer_kwargs": {"x": 1}}}, "tokenizer"),
        ({"text_cfg": TINY_CONFIG["text_cfg"] | {"nonsense": 1}}, "text tower"),
    ],
)
def test_preflight_names_settings_that_open_clip_stumbles_over(
    trained: Path, settings: dict[str, Any], subject: str
) -> None:
    findings = check(configure(trained, **settings))
    errors = [finding for finding in findings if finding.level == "error"]
    assert [(finding.subject, finding.exit_code) for finding in errors] == [(subject, 3)]


def test_preflight_names_preprocessing_that_is_no_object(trained: Path) -> None:
    path = trained / "open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"preprocess_cfg": 7}))
    find(check(trained), "error", "model", "preprocess_cfg is 7")


def test_preflight_survives_tensors_of_other_dimensions(trained: Path) -> None:
    odd = ("visual.conv1.weight", "visual.positional_embedding", "token_embedding.weight", "text_projection")
    change(trained, lambda state: state.update({name: torch.ones(3) for name in odd}))
    findings = check(trained)
    find(findings, "error", "image tower", "don't fit")
    find(findings, "error", "text tower", "don't fit")


def test_preflight_names_a_text_tower_of_another_width(trained: Path) -> None:
    configure(trained, text_cfg=TINY_CONFIG["text_cfg"] | {"width": 64})
    findings = check(trained)
    find(findings, "error", "text tower", "don't fit")
    find(findings, "note", "weights", "text width 32, not 64")


def test_preflight_names_a_file_that_is_not_readable(trained: Path) -> None:
    (trained / "open_clip_model.safetensors").write_bytes(b"nothing")
    find(check(trained), "error", "weights", "not a readable weights file")


def test_preflight_names_features_that_do_not_tell_pictures_apart(trained: Path) -> None:
    # class token without any patch: every picture looks the same
    change(trained, lambda state: [state[name].mul_(1e-30) for name in ("visual.conv1.weight",)])
    find(check(trained), "error", "features", "different pictures have the same features")


@pytest.mark.parametrize(
    ("seed_state", "fitting"),
    [({}, "tiny, tiny-quickgelu"), (OPENAI_KEYS, "tiny-quickgelu")],
)
def test_preflight_says_how_a_bare_file_can_be_used(
    trained: Path, monkeypatch: pytest.MonkeyPatch, seed_state: dict[str, Tensor], fitting: str
) -> None:
    for name, config in {
        "tiny": TINY_CONFIG,
        "tiny-quickgelu": TINY_CONFIG | {"quick_gelu": True},
        "tiny-64": TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"image_size": 64}},
    }.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    change(trained, lambda state: state.update(seed_state))
    weights = (trained / "open_clip_model.safetensors").rename(trained.parent / "bare.safetensors")
    findings = check(weights)
    assert find(findings, "error", "model", "silently wrong").exit_code == 2
    find(findings, "note", "weights", f"that they fit: {fitting}")
    how = find(findings, "note", "weights", "tensors can't tell")
    assert ("activation and preprocessing" in how.message) == (not seed_state)
    assert f"--model {weights} --arch {fitting.replace(', ', '|')} --preprocess " in how.remedy


def test_preflight_knows_a_bare_file_by_its_checksum(tagged: Path) -> None:
    weights = tagged / "open_clip_model.safetensors"
    findings = check(weights)
    assert find(findings, "note", "weights", "tiny:own").remedy == "Use --model tiny:own."
    assert str(tagged) in find(findings, "note", "weights", "beside them is").remedy
    find(findings, "note", "weights", "that they fit: tiny-quickgelu")


def test_preflight_knows_one_of_openais_archives_though_it_does_not_open_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "RN50.pt"
    content = b"\x80\x02code"  # it begins as a pickle does
    archive.write_bytes(content)
    url = f"https://openaipublic.azureedge.net/clip/models/{hashlib.sha256(content).hexdigest()}/RN50.pt"
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED["RN50"]["openai"], "url", url)
    findings = check(archive)
    assert find(findings, "note", "weights", "RN50:openai").remedy == "Use --model RN50:openai."
    find(findings, "error", "weights", str(archive), "refused")


@pytest.mark.filterwarnings("ignore::Warning")  # torch has some for its archives
def test_preflight_refuses_a_torchscript_archive_without_torchs_advice(tmp_path: Path) -> None:
    archive = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), archive)
    found = find(check(archive), "error", "weights", "TorchScript", "refused")
    assert "weights_only" not in found.message


def test_preflight_collects_what_is_wrong_with_a_bare_file(trained: Path) -> None:
    findings = check(trained / "open_clip_model.safetensors", arch="ViT-B-3", preprocess="nothing")
    find(findings, "error", "model", "Did you mean ViT-B-32")
    find(findings, "error", "model", "--preprocess nothing")


# ------------------------------------------------------------------------------------------- labels and prompts


def test_preflight_names_labels_and_templates_that_predict_would_refuse(trained: Path) -> None:
    wording = Wording(labels="cat,dog,Dog", templates=("a photo", "a photo of a {}", "a {thing}"))
    findings = check(trained, wording)
    find(findings, "error", "labels", "'dog' and 'Dog' are the same")
    find(findings, "error", "template", "'a photo' has no placeholder")
    find(findings, "error", "template", "unknown placeholder {thing}")
    assert exit_code(findings) == 2


def test_preflight_names_a_prompt_that_is_too_long(trained: Path) -> None:
    wording = Wording(labels="cat", label=("dog " * 30,), templates=("a photo of a {}",))
    find(check(trained, wording), "warning", "prompts", "first 16 tokens", "dog dog")
    strict = check(trained, wording, Execution(strict_prompts=True))
    assert find(strict, "error", "prompts", "--strict-prompts").exit_code == 2


def test_preflight_warns_of_words_that_the_model_does_not_know() -> None:
    findings = check("pictogram", Wording(labels="cat,dog,xylograph"))
    find(findings, "warning", "labels", "'xylograph'", "mean nothing")
    assert len(worst(findings)) == 1


def test_preflight_warns_of_labels_that_the_model_takes_for_one(trained: Path) -> None:
    # CLIP's tokenizer sees no difference
    findings = check(trained, Wording(labels="cat &amp; dog,cat & dog,a bicycle in the rain", templates=("{}",)))
    find(findings, "warning", "labels", "'cat &amp; dog' and 'cat & dog' are nearly the same", "1.000")


def test_preflight_notes_a_template_without_effect(trained: Path) -> None:
    wording = Wording(labels="cat,dog,truck", templates=("{}", "{} &nbsp;", "my {} on a very rainy and dark day"))
    found = find(check(trained, wording), "note", "template")
    assert "1 of 2 change next to nothing" in found.message
    assert "'{} &nbsp;' 1.0000" in found.message


def test_preflight_does_not_call_the_bare_label_a_template_without_effect(trained: Path) -> None:
    findings = check(trained, Wording(labels="cat,dog,truck", templates=(" {label} ",)))
    assert not [finding for finding in findings if finding.subject == "template"]


def test_preflight_leaves_features_for_predict(trained: Path, tmp_path: Path) -> None:
    from clipcls.embed.cache.store import Cache
    from clipcls.embed.session import Session
    from clipcls.embed.texts import embed_texts

    cache_dir = tmp_path / "cache"
    check(trained, execution=Execution(cache_dir=cache_dir))
    cache = Cache(cache_dir)
    session = Session(ModelSpec(str(trained), device="cpu", precision="fp32"), cache=cache)
    done: list[int] = []
    embed_texts([("a photo of a cat",)], session, report=lambda _, count: done.append(count))
    assert not done
    assert np.isfinite(session.facts.logit_scale)
