"""What is loaded before anything is done, and what is exported."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

import clipcls
from conftest import EXAMPLES

HEAVY = ("torch", "open_clip", "numpy", "PIL", "huggingface_hub", "transformers", "rich", "yaml")


def loaded_by(*arguments: str) -> set[str]:
    """Top-level modules loaded once `clipcls ARGUMENTS` has run."""
    code = (
        "import sys\n"
        f"sys.argv = ['clipcls', *{arguments!r}]\n"
        "from clipcls.cli import main\n"
        "try:\n    main()\nexcept SystemExit as exc:\n    assert not exc.code, exc.code\n"
        "print('\\nMODULES', *{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("MODULES")[2].split())


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("predict", "--help"), ("train", "--help"), ("models", "--help")]
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("models",),
        ("prompts", "list"),
        ("prompts", "show", "openai-imagenet-80"),
        ("labels", "list"),
        ("labels", "show", "imagenet"),
    ],
)
def test_listing_loads_no_torch(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & {"torch", "open_clip"}


def test_predict_over_cached_images_and_labels_loads_no_torch(clipcls: Callable[..., Any]) -> None:
    arguments = ("predict", str(EXAMPLES), "--model", "pictogram", "--labels", "cat,dog,truck")
    assert clipcls(*arguments).returncode == 0
    heavy = {"torch", "open_clip", "torchvision", "huggingface_hub", "safetensors", "transformers"}
    assert not loaded_by(*arguments) & heavy
    assert not loaded_by(*arguments, "--score", "cosine", "--format", "jsonl") & heavy


def test_import_of_the_package_loads_nothing_heavy() -> None:
    code = "import sys, clipcls; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


@pytest.mark.parametrize("name", clipcls.__all__)
def test_exported_name_exists(name: str) -> None:
    assert getattr(clipcls, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nosuch"):
        _ = clipcls.nosuch
