"""The updates of a model in training, and what is saved of it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from webdataset import TarWriter

from clipcls.errors import StoppedError, UsageError
from clipcls.train.data.read import read_data
from clipcls.train.objective import Towers
from clipcls.train.settings import load_settings
from clipcls.train.start_model import start_model
from clipcls.train.trainer import Trainer, synchronised
from conftest import TINY_CONFIG, save_pictures
from tolerances import sum_tolerance

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH_NORM = TINY_CONFIG | {
    "vision_cfg": {
        "timm_model_name": "resnet10t",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 32,
    }
}
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = save_pictures(tmp_path / "pictures", 8)
    rows = [{"image": f"pictures/{path.name}", "caption": path.stem} for path in pictures]
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "arch.json").write_text(json.dumps(TINY_CONFIG), encoding="utf-8")
    return tmp_path


def trainer(folder: Path, config: dict[str, Any] = TINY_CONFIG, **given: Any) -> Trainer:
    (folder / "arch.json").write_text(json.dumps(config), encoding="utf-8")
    values = {"data": str(folder / "table.jsonl"), "arch": str(folder / "arch.json"), "output": str(folder / "run")}
    options = {"batch_size": 4, "epochs": 3.0, "precision": "fp32", "device": "cpu"}
    settings = load_settings(None, values | options | given)
    torch.manual_seed(0)
    return Trainer(settings, start_model(settings), read_data(settings.data))


def losses(trainer: Trainer) -> list[float]:
    return [progress.loss for progress in trainer.steps()]


def test_average_follows_the_weights_and_is_what_is_saved(folder: Path) -> None:
    made = trainer(folder, ema=0.6)
    expected: torch.Tensor | None = None
    for count, _ in enumerate(made.steps()):
        weight = made.model.visual.proj.detach().double()
        decay = min(0.6, (1 + count) / (10 + count))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    assert expected is not None
    made.save(folder / "model")
    saved = load_file(folder / "model" / WEIGHTS)
    # two products and a sum a step
    allowed = sum_tolerance(3 * made.done, float(expected.abs().max()))
    torch.testing.assert_close(saved["visual.proj"].double(), expected, atol=allowed, rtol=0)
    assert not torch.allclose(saved["visual.proj"], made.model.visual.proj, atol=1e-6)
    assert saved.keys() == made.model.state_dict().keys()


def test_average_goes_on_after_a_restart(folder: Path) -> None:
    whole = trainer(folder, ema=0.9)
    losses(whole)
    broken = trainer(folder, ema=0.9)
    steps = broken.steps()
    for _ in range(3):
        next(steps)
    state = broken.state()
    resumed = trainer(folder, ema=0.9)
    resumed.restore(state)
    losses(resumed)
    found = resumed.average.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in whole.average.state_dict().items())


def test_average_of_a_locked_tower_stays_bit_equal(folder: Path) -> None:
    base = trainer(folder)
    base.save(folder / "base")
    tuned = trainer(folder, model=str(folder / "base"), arch="", lock_image=True, ema=0.97, learning_rate=1e-3)
    losses(tuned)
    tuned.save(folder / "tuned")
    before, after = load_file(folder / "base" / WEIGHTS), load_file(folder / "tuned" / WEIGHTS)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name.startswith("visual."))
    assert not torch.equal(before["text_projection"], after["text_projection"])


def test_activations_computed_twice_give_the_same_losses(folder: Path) -> None:
    expected = losses(trainer(folder))
    made = trainer(folder, grad_checkpointing=True)
    assert made.model.visual.transformer.grad_checkpointing
    assert losses(made) == pytest.approx(expected, rel=1e-5)


def test_activations_computed_twice_count_once_in_batch_norm(folder: Path) -> None:
    statistics = []
    for twice in (False, True):
        made = trainer(folder, BATCH_NORM, grad_checkpointing=twice)
        next(made.steps())
        statistics.append(made.model.visual.trunk.bn1.running_mean.clone())
    torch.testing.assert_close(statistics[1], statistics[0])
    assert float(statistics[0].abs().max()) > 1e-4


def test_grad_checkpointing_says_which_tower_lacks_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    resnet = {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32}
    trainer(folder, TINY_CONFIG | {"vision_cfg": resnet}, grad_checkpointing=True)
    assert "open_clip's ResNets don't offer it" in caplog.text


@pytest.mark.parametrize("name", ["resnet10t", "cs3darknet_focus_s", "test_efficientnet"])
def test_synchronised_batch_norm_keeps_the_activations(folder: Path, name: str) -> None:
    vision = BATCH_NORM["vision_cfg"] | {"timm_model_name": name}
    model = trainer(folder, BATCH_NORM | {"vision_cfg": vision}).model.double().eval()
    pictures = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    expected = model.encode_image(pictures)
    converted = synchronised(model).eval()
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
    torch.testing.assert_close(converted.encode_image(pictures), expected, rtol=1e-9, atol=1e-12)


def test_zero_unused_tokens_is_refused_before_the_first_step(folder: Path) -> None:
    writer = TarWriter(str(folder / "0.tar"))
    for number, path in enumerate(sorted((folder / "pictures").iterdir())):
        writer.write({"__key__": str(number), "png": path.read_bytes(), "txt": path.stem})
    writer.close()
    with pytest.raises(UsageError, match="zero_unused_tokens: needs a table or class folders"):
        trainer(folder, data=str(folder / "0.tar"), zero_unused_tokens=True)


def test_captions_over_the_context_length_are_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = folder / "table.jsonl"
    table.write_text(table.read_text(encoding="utf-8").replace('"000"', '"' + "word " * 30 + '"'), encoding="utf-8")
    losses(trainer(folder))
    said = [record.getMessage() for record in caplog.records if "over the context length" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("captions over the context length are cut; the first: word word")


def test_grad_checkpointing_is_refused_where_a_tower_lacks_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Any, enable: bool = True) -> None:
        assert not enable, "not offered"

    monkeypatch.setattr("open_clip.transformer.VisionTransformer.set_grad_checkpointing", refuse)
    with pytest.raises(UsageError, match=r"grad_checkpointing: a tower of this model doesn't offer it \(not offered"):
        trainer(folder, grad_checkpointing=True)


def test_compiled_towers_give_the_same_losses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    plain = Towers.compile

    def trace_only(self: Towers) -> None:
        compiled.append(self)
        plain(self, backend="aot_eager")  # all of torch.compile but the code generation, which takes a minute

    expected = losses(trainer(folder))
    monkeypatch.setattr(Towers, "compile", trace_only)
    made = trainer(folder, compile=True)
    assert losses(made) == pytest.approx(expected, rel=1e-5)
    assert compiled == [made.objective.towers]


def test_gradient_that_is_not_finite_stops_before_the_weights_change(folder: Path) -> None:
    made = trainer(folder)
    made.model.visual.proj.register_hook(lambda gradient: gradient * math.nan)
    before = made.model.visual.proj.detach().clone()
    with pytest.raises(StoppedError, match="the norm of the gradients is nan at step 1; a lower learning_rate"):
        losses(made)
    assert torch.equal(made.model.visual.proj, before)


def test_weights_that_are_not_finite_are_not_saved(folder: Path) -> None:
    made = trainer(folder)
    made.save(folder / "model")
    before = (folder / "model" / WEIGHTS).read_bytes()
    with torch.no_grad():
        made.model.visual.proj[0, 0] = math.inf
    with pytest.raises(StoppedError, match="the weights aren't finite after step 0"):
        made.save(folder / "model")
    assert (folder / "model" / WEIGHTS).read_bytes() == before


def test_clipping_bounds_the_update(folder: Path) -> None:
    made = trainer(folder, grad_clip=1e-3)
    next(made.steps())
    norm = torch.stack([weight.grad.norm() for weight in made.parameters if weight.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_model_of_the_open_world_gets_no_list_of_words(folder: Path) -> None:
    trainer(folder).save(folder / "base")
    assert (folder / "base" / "words.txt").read_text(encoding="utf-8").split() == [f"00{n}" for n in range(8)]
    (folder / "base" / "words.txt").unlink()
    trainer(folder, model=str(folder / "base"), arch="").save(folder / "tuned")
    assert not (folder / "tuned" / "words.txt").exists()
