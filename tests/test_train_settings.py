"""Settings from a file and from the command line."""

from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import UsageError
from clipcls.train.optimizer import learning_rate
from clipcls.train.settings import Settings, load_settings, write_settings

GIVEN: dict[str, Any] = {"data": "d.csv", "arch": "ViT-B-32", "output": "out"}


def config(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_load_settings_takes_paths_from_the_config_folder(tmp_path: Path) -> None:
    (tmp_path / "arch.json").write_text("{}", encoding="utf-8")
    settings = load_settings(config(tmp_path, "data: d.csv\narch: arch.json\noutput: run\nepochs: 2"), {})
    assert (settings.data, settings.arch) == (str(tmp_path / "d.csv"), str(tmp_path / "arch.json"))
    assert settings.epochs == 2


def test_load_settings_lets_options_override(tmp_path: Path) -> None:
    path = config(tmp_path, "epochs: 2\nbatch_size: 8\nlearning_rate: 1e-3")
    settings = load_settings(path, {**GIVEN, "epochs": 5.0, "seed": None})
    assert (settings.epochs, settings.batch_size, settings.learning_rate) == (5.0, 8, 1e-3)


def test_load_settings_refuses_unknown_key_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown setting epoch; there are: data,"):
        load_settings(config(tmp_path, "epoch: 2"), GIVEN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: many", "epochs: 'many' isn't a number"),
        ("batch_size: 1.5", "batch_size: 1.5 isn't a int"),
        ("augment: huge", "augment: 'huge' isn't one of none, light, heavy"),
        ("epochs: 0", "epochs: 0.0 must be above 0"),
        ("batch_size: 1", "at least 2"),
        ("batch_size: 4\naccumulate: 5", "between 1 and batch_size, 4"),
        ("accumulate: 0", "between 1 and batch_size"),
        ("templates: ['a photo']", "must hold one"),
        ("betas: [0.9]", "a list of 2"),
        ("warmup: 2", "between 0 and 1"),
        ("- a", "mapping"),
        ("a: [", "can't be read"),
    ],
)
def test_load_settings_refuses_bad_values(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_settings(config(tmp_path, text), GIVEN)


def test_load_settings_names_what_is_missing() -> None:
    with pytest.raises(UsageError, match="no data and no output given"):
        load_settings(None, {"arch": "ViT-B-32"})


def test_write_settings_reads_back_equal(tmp_path: Path) -> None:
    settings = Settings(str(tmp_path / "d.csv"), "ViT-B-32", str(tmp_path / "o"), templates=("{}", "一张{}"))
    write_settings(settings, tmp_path / "settings.yaml")
    assert load_settings(tmp_path / "settings.yaml", {}) == settings


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    settings = Settings("d", "a", "o", learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.001


def test_load_settings_reads_the_recipe_of_the_embedded_model() -> None:
    folder = Path(__file__).parents[1] / "examples" / "pictogram"
    settings = load_settings(folder / "config.yaml", {})
    assert (settings.arch, settings.model, settings.loss) == (str(folder / "arch.json"), "", "auto")
    assert (settings.positives, settings.initial_scale, settings.learning_rate) == ("listed", 16, 1.5e-3)
