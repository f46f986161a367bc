"""The rooms of the house, read from the import statements, those inside functions included."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "clipcls"

# a room may import itself and the rooms that stand before it
ROOMS = [
    *("records", "errors", "text_files"),
    *("outputs", "labels", "inputs"),
    *("models", "images"),
    "embed",
    *("predict", "check"),
    "evaluate",
    *("train", "distributed", "serve"),
    "cli",
]
OPEN_CLIP_ROOMS = {"models", "train"}
# what looks into weights, by open_clip's tables
OPEN_CLIP_MODULES = {"check/weights"}
# what asks for GPUs
TORCH_MODULES = {"distributed/run", "distributed/work"}
# what may only be imported inside functions, for start-up's sake
HEAVY = {"torch", "torchvision", "open_clip", "numpy", "PIL", "huggingface_hub", "rich", "yaml", "safetensors"}


def unit_of(path: Path) -> str:
    """The module or package, of those in ROOMS, that a file belongs to."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__main__.py",))


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Names of the modules that a file imports, `from clipcls import x` as `clipcls.x`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "clipcls" else {node.module}
            )
    return found


RANK = {name: position for position, name in enumerate(ROOMS)}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_what_stands_below_it(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":  # the package's front door names what it exports
        return
    assert unit in RANK, f"{unit} is no room"
    for name in imports(path):
        if name.startswith("clipcls."):
            other = name.split(".")[1]
            assert other in RANK, f"{path.name} imports {name}, which is in no room"
            below = RANK[other] < RANK[unit]
            assert below or other == unit, f"{unit} imports {other}, which stands above it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_open_clip_and_torch_only_where_models_are(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    module = path.relative_to(PACKAGE).with_suffix("").as_posix()
    if unit_of(path) in OPEN_CLIP_ROOMS or module in OPEN_CLIP_MODULES:
        return
    assert "open_clip" not in roots
    if module not in TORCH_MODULES:
        assert not roots & {"torch", "torchvision", "timm", "transformers"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.name)
def test_command_line_imports_nothing_heavy_at_the_top(path: Path) -> None:
    names = imports(path, top_level_only=True)
    assert not {name.split(".")[0] for name in names} & HEAVY
    allowed = {"errors", "records", "models.catalog", "outputs.formats", "predict.scores"}
    own = {name.removeprefix("clipcls.") for name in names if name.startswith("clipcls.")}
    assert all(name in allowed or name.split(".")[0] == "cli" for name in own)


def test_every_room_exists() -> None:
    for name in RANK:
        assert (PACKAGE / f"{name}.py").is_file() or (PACKAGE / name / "__init__.py").is_file()


def test_top_level_holds_nothing_else() -> None:
    allowed = {"pyproject.toml", "README.md", "LICENSE", "clipcls", "prompts", "tests", "examples"}
    built = {"build", "dist", "out", "clipcls.egg-info"}
    found = {path.name for path in PACKAGE.parent.iterdir() if not path.name.startswith(".")}
    assert found - built <= allowed
