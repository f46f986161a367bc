"""The wheel, the source distribution, an editable install and a checkout each hold the prompts, labels and models."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPECTED = {
    "clipcls/labels/sets/everyday.yaml",
    "clipcls/labels/sets/everyday-zh.yaml",
    "clipcls/labels/wordnet/LICENSE.txt",
    "clipcls/labels/wordnet/words.txt",
    "clipcls/models/everyday/open_clip_config.json",
    "clipcls/models/everyday/open_clip_model.safetensors",
    "clipcls/models/everyday/words.txt",
    "clipcls/models/pictogram/open_clip_config.json",
    "clipcls/models/pictogram/open_clip_model.safetensors",
    "clipcls/models/pictogram/words.txt",
    "clipcls/outputs/report/report.html",
    "clipcls/prompt_sets/default.yaml",
    "clipcls/py.typed",
    "clipcls/serve/page.html",
}
LIST = "import sys; sys.argv = ['clipcls', 'prompts', 'list']; from clipcls.cli import main; main()"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, so that building leaves nothing behind here."""
    folder = tmp_path_factory.mktemp("checkout")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, os.fsdecode(tracked).split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def pip(*arguments: str | Path, python: Path | str = sys.executable) -> None:
    subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", "-q", *map(str, arguments)],
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def empty_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment without clipcls that still sees the packages that clipcls needs."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    import yaml

    # packages, not the .pth files beside them: those would bring an editable clipcls along
    Path(found.stdout.strip(), "others.pth").write_text(str(Path(yaml.__file__).parent.parent))
    pip("install", "setuptools>=77", python=python)  # builds without an environment of their own take it
    return python


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "-w", folder, checkout)
    (path,) = folder.glob("*.whl")
    return path


def prompt_sets(python: Path, **options: object) -> str:
    done = subprocess.run([python, "-c", LIST], capture_output=True, text=True, check=True, **options)  # type: ignore[call-overload]
    return str(done.stdout)


def test_wheel_holds_all_modules_the_prompts_and_the_model(wheel: Path, checkout: Path) -> None:
    held = {member.filename: member.compress_size for member in zipfile.ZipFile(wheel).infolist()}
    modules = {path.relative_to(checkout).as_posix() for path in (checkout / "clipcls").rglob("*.py")}
    assert set(held) >= EXPECTED | modules
    assert wheel.stat().st_size <= 22e6
    assert sum(size for name, size in held.items() if "/everyday/" in name) <= 14e6


def test_wheel_predicts_in_another_environment(wheel: Path, empty_python: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--force-reinstall", wheel, python=empty_python)
    done = subprocess.run(
        [empty_python, "-m", "clipcls", "predict", ROOT / "examples" / "photos", "--model", "everyday",
         "--labels", "cat,coffee,hat,pen,rocket,shirt,shoes,tulips"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [Path(row[0]).stem for row in rows] == [row[1] for row in rows]
    assert "default\t" in prompt_sets(empty_python, cwd=tmp_path)
    shown = [empty_python, "-m", "clipcls", "labels", "show", "coco"]
    assert subprocess.run(shown, capture_output=True, cwd=tmp_path, check=True).stdout.startswith(b"person\nbicycle\n")


def test_checkout_finds_its_prompts_after_a_plain_install(wheel: Path, checkout: Path, empty_python: Path) -> None:
    """`python -m clipcls` in the checkout's root imports the checkout, which holds no clipcls/prompt_sets."""
    pip("install", "--no-deps", "--force-reinstall", wheel, python=empty_python)
    assert "default\t" in prompt_sets(empty_python, cwd=checkout)


def test_editable_install_finds_the_prompts(checkout: Path, empty_python: Path, tmp_path: Path) -> None:
    pip("install", "--no-deps", "--no-build-isolation", "--force-reinstall", "-e", checkout, python=empty_python)
    assert "default\t" in prompt_sets(empty_python, cwd=tmp_path)


def test_source_distribution_builds_the_same_wheel(
    checkout: Path, wheel: Path, empty_python: Path, tmp_path: Path
) -> None:
    build = [empty_python, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, checkout]
    subprocess.run(build, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "again", source, python=empty_python)
    (again,) = (tmp_path / "again").glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())
