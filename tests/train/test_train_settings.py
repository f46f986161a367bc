"""Settings from a file and from the command line."""

import errno
from pathlib import Path
from typing import Any

import pytest

from clipcls.errors import UsageError
from clipcls.train.optimizer import learning_rate
from clipcls.train.settings import TrainSettings, load_settings, parse_assignments, read_config_file, write_settings

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
        ("epochs: many", "config.yaml: epochs: 'many': input should be a valid number"),
        ("batch_size: 1.5", "batch_size: 1.5: input should be a valid integer"),
        ("augment: huge", "augment: 'huge': input should be 'none', 'light' or 'heavy'"),
        ("epochs: 0", "epochs: 0: input should be greater than 0"),
        ("batch_size: 1", "batch_size: 1: input should be greater than or equal to 2"),
        ("batch_size: 4\naccumulate: 5", "accumulate: 5 must be at most batch_size, 4"),
        ("accumulate: 0", "accumulate: 0: input should be greater than or equal to 1"),
        ("templates: ['a photo']", "must hold one"),
        ("betas: [0.9]", r"betas: \[0.9\]: more values are needed"),
        ("templates: x", "templates: 'x': input should be a valid list"),
        ("warmup: 2", "warmup: 2: input should be less than or equal to 1"),
        ("epochs: .inf", "epochs: inf: input should be a finite number"),
        ("validate_epochs: .inf", "validate_epochs: inf: input should be a finite number"),
        ("epochs: 1e7", "epochs: '1e7': input should be less than or equal to 1000000"),
        ("learning_rate: .nan", "learning_rate: nan: input should be a finite number"),
        ("save_minutes: .inf", "save_minutes: inf: input should be a finite number"),
        ("initial_scale: .inf", "initial_scale: inf: input should be a finite number"),
        ("initial_bias: -.inf", "initial_bias: -inf: input should be a finite number"),
        ("max_scale: .nan", "max_scale: nan: input should be greater than 0"),
        (f"weight_decay: 1{'0' * 400}", "weight_decay: 10{99}: input should be a"),
        ("mean: [0, 0, .nan]", "mean: nan: input should be a finite number"),
        ("std: [0.5, 0, 0.5]", "std: 0: input should be greater than 0"),
        ("betas: [0.9, 2]", "betas: 2: input should be less than 1"),
        ("betas: [true, 0.9]", "betas: 'True': input should be a valid number"),
        ("seed: -1", "seed: -1: input should be greater than or equal to 0"),
        ("seed: 2147483648", "seed: 2147483648: input should be less than or equal to 2147483647"),
        ("samples: 10000000000000", "samples: 10000000000000: input should be less than or equal to 1000000000000"),
        ("output: 3", "output: 3: input should be a valid string; put it in quotes"),
        ("output: 2024-01-01", "output: .*: input should be a valid string; put it in quotes"),
        ("output: [a]", r"output: \['a'\]: input should be a valid string$"),
        ('output: "a\\0b"', "output: .*: string should match pattern"),
        ("output:", "output: no value; give it one, or leave the setting out"),
        ("output: 2024-99-99", "config.yaml: the config can't be read"),
        ("output: " + "[" * 9999, "config.yaml: the config can't be read"),
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


def test_load_settings_allows_the_ends_of_ranges(tmp_path: Path) -> None:
    text = "betas: [0, 9e-1]\nseed: 2147483647\nmax_scale: .inf\nsamples: 1000000000000\nsave_minutes: 0"
    settings = load_settings(config(tmp_path, text), GIVEN)
    assert (settings.betas, settings.seed, settings.max_scale) == ((0, 0.9), 2**31 - 1, float("inf"))


def test_load_settings_bears_names_longer_than_a_path(tmp_path: Path) -> None:
    name = "x" * 5000
    settings = load_settings(config(tmp_path, f"data: {name}\narch: {name}\noutput: run"), {})
    assert settings.arch == name


def test_read_config_file_says_shortly_that_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.yaml: can't be read: no such file or directory\.$"):
        read_config_file(tmp_path / "gone.yaml")


def test_parse_assignments_reads_values_as_yaml() -> None:
    assignments = ["epochs=3", "betas=[0.9, 0.99]", "templates=['a {}']", "output='3'", "zero_shot=''"]
    expected = {"epochs": 3.0, "betas": (0.9, 0.99), "templates": ("a {}",), "output": "3", "zero_shot": ""}
    assert parse_assignments(assignments) == expected


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "--set epochs: expected NAME=VALUE"),
        ("epoch=3", "--set: unknown setting epoch"),
        ("output=3", "output: 3: input should be a valid string; put it in quotes"),
        ("validation=", "validation: no value"),
        ("epochs=", "epochs: no value"),
        ("seed=1.5", "--set: seed: 1.5: input should be a valid integer"),
        ("output=2024-99-99", "--set output=2024-99-99: the value can't be read: month must be"),
    ],
)
def test_parse_assignments_refuses_bad_ones(assignment: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_assignments([assignment])


def test_write_settings_reads_back_equal(tmp_path: Path) -> None:
    settings = TrainSettings(str(tmp_path / "d.csv"), "ViT-B-32", str(tmp_path / "o"), templates=("{}", "一张{}"))
    write_settings(settings, tmp_path / "settings.yaml")
    assert load_settings(tmp_path / "settings.yaml", {}) == settings


def test_write_settings_leaves_the_file_whole_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("old", encoding="utf-8")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_settings(TrainSettings("d", "a", "o"), path)
    assert [file.name for file in tmp_path.iterdir()] == ["settings.yaml"]
    assert path.read_text(encoding="utf-8") == "old"


def test_learning_rate_warms_up_then_falls_to_zero() -> None:
    settings = TrainSettings("d", "a", "o", learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] < 0.001


def test_load_settings_says_where_the_settings_of_the_recipe_have_gone(tmp_path: Path) -> None:
    message = r"config.yaml: proxy_weight isn't a setting of `clipcls train` any more.*examples/pictogram.*recipe\.py"
    with pytest.raises(UsageError, match=message):
        load_settings(config(tmp_path, "proxy_weight: 0.5"), GIVEN)
    with pytest.raises(UsageError, match="--set: spread_init isn't a setting"):
        parse_assignments(["spread_init=true"])


def test_load_settings_bears_files_of_earlier_versions_that_did_not_use_the_recipe(tmp_path: Path) -> None:
    unused = "curriculum: 0.0\nproxy_weight: 0.0\nspread_init: false\nzero_unused_tokens: false\nseed: 5"
    assert load_settings(config(tmp_path, unused), GIVEN).seed == 5


def test_load_settings_reads_the_recipe_of_the_embedded_model() -> None:
    folder = Path(__file__).parents[2] / "examples" / "pictogram"
    settings = load_settings(folder / "config.yaml", {})
    assert (settings.arch, settings.model, settings.loss) == (str(folder / "arch.json"), "", "auto")
    assert (settings.positives, settings.initial_scale, settings.learning_rate) == ("listed", 16, 1.5e-3)
