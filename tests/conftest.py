"""What the tests share: a cache and a hub folder of their own, tiny models, the command line as a process."""

import json
import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from shell import Started, run_on_files

if "PYTEST_XDIST_WORKER" in os.environ:
    # torch isn't imported yet; several processes with a thread a core would wait for one another
    os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "images"

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
OPENAI_PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
# not clipcls.train, after whose import runs end in another way, and nothing that starts threads
PRELOADED = [
    "clipcls.cli",
    "clipcls.evaluate.calibrate",
    "clipcls.evaluate.teach",
    "clipcls.inputs.labelled.read",
    "clipcls.models.encoder",
    "clipcls.models.runtime.compiled",
    "clipcls.outputs.vectors.write",
    "clipcls.predict.heatmap",
    "clipcls.predict.search",
    "matplotlib.figure",
    "pytest",
    "rich.progress",
    "rich.table",
    "typer._adapters",
]


@pytest.fixture(autouse=True)
def isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's cache, hub folder or settings, or what another one does at Ctrl-C."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg-cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    for name in os.environ:
        if name.startswith("CLIPCLS_"):
            monkeypatch.delenv(name)
    # else each test would convert its tiny model anew; the tests of the runtime ask for it
    monkeypatch.setenv("CLIPCLS_RUNTIME", "torch")
    monkeypatch.setattr("clipcls.models.runtime.choice.is_installed", lambda: False)
    at_interrupt = signal.getsignal(signal.SIGINT)
    yield
    assert signal.getsignal(signal.SIGINT) is at_interrupt


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine the threads of small products only wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture of a run's curves, drawn at each checkpoint, takes longer than many steps of a tiny model."""
    monkeypatch.setattr("clipcls.train.history.draw_curves", lambda metrics, picture: picture.touch())


@pytest.fixture(scope="session")
def forks() -> Any:
    """Processes that begin with what runs need already imported, which takes longer than most tests."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


@pytest.fixture
def clipcls(tmp_path: Path, forks: Any) -> Callable[..., "subprocess.CompletedProcess[bytes]"]:
    """Run the command line in `tmp_path`, in a process of its own."""

    def run(*args: str | Path, input: bytes = b"", env: dict[str, str] | None = None) -> Any:
        folder = tmp_path / ".streams"
        folder.mkdir(exist_ok=True)
        (folder / "stdin").write_bytes(input)
        process = forks.Process(target=run_on_files, args=([*map(str, args)], folder, os.environ | (env or {})))
        process.start()
        process.join(120)
        assert process.exitcode is not None, "no end within 120 seconds"
        output, errors = ((folder / name).read_bytes() for name in ("stdout", "stderr"))
        return subprocess.CompletedProcess(args, process.exitcode, output, errors)

    return run


@pytest.fixture
def start(tmp_path: Path, forks: Any) -> Iterator[Callable[..., Started]]:
    """Start the command line in `tmp_path`; what is left of it at the end is ended."""
    started = []

    def begin(*args: str | Path, **options: Any) -> Started:
        started.append(Started(forks, tmp_path, *args, **options))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.close()


def save_model(folder: Path, config: dict[str, Any], preprocess: dict[str, Any] | None = None, seed: int = 0) -> Path:
    """A randomly initialised model as an open_clip `local-dir:` folder."""
    import open_clip
    import torch
    from open_clip import model as open_clip_model
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    settings = {key: value for key, value in config.items() if key != "custom_text"}
    build = open_clip.CustomTextCLIP if config.get("custom_text") else open_clip_model.CLIP
    build = open_clip.CoCa if "multimodal_cfg" in config else build
    model = build(**json.loads(json.dumps(settings)))
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    stated = {"model_cfg": config, "preprocess_cfg": OPENAI_PREPROCESS if preprocess is None else preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(stated))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose predictions cost milliseconds."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny", TINY_CONFIG)


def save_pictures(folder: Path, count: int, size: tuple[int, int] = (60, 40)) -> list[Path]:
    """Pictures that differ from one another, named in order."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    paths = []
    for i in range(count):
        noise = Image.fromarray(random.integers(0, 256, (4, 6, 3), dtype=np.uint8))
        paths.append(folder / f"{i:03d}.png")
        noise.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


class FakeEncoder:
    """An encoder that is right by construction: features are the picture's mean colour, or the colour a text names."""

    COLOURS: ClassVar = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}

    def __init__(self, logit_bias: float | None = None) -> None:
        import torch

        from clipcls.records import Preprocessing

        self.name = "fake"
        self.device = torch.device("cpu")
        self.precision = "fp32"
        self.words: str | None = None
        self.preprocess = Preprocessing((8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.context_length = 8
        self.embed_dim = 3
        self.logit_scale = float(np.log(10.0))
        self.logit_bias = logit_bias
        self.texts: list[str] = []
        self.batches: list[int] = []
        self.streams = 1

    def facts(self, sha256: Any) -> Any:
        from clipcls.records import ModelFacts

        fingerprint = b"" if sha256 is None else self.fingerprint(sha256)
        sizes = (self.logit_scale, self.logit_bias, self.context_length, self.embed_dim)
        return ModelFacts(self.name, fingerprint, str(self.device), self.precision, self.preprocess, *sizes, self.words)

    def build_image_tower(self, at_once: bool = False) -> None:
        pass

    def enter_stream(self) -> None:
        pass

    def encode_image(self, pixels: Any) -> np.ndarray[Any, Any]:
        self.batches.append(len(pixels))
        return self._normalised(np.stack(pixels).reshape(len(pixels), -1, 3).mean(axis=1) + 1e-3)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray[Any, Any]:
        self.texts += texts
        colours = [
            sum((np.array(self.COLOURS[w]) for w in text.split() if w in self.COLOURS), np.array([1.0, 1.0, 1.0]))
            for text in texts
        ]
        return self._normalised(np.array(colours))

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [len(text.split()) + 2 > self.context_length for text in texts]

    def fingerprint(self, sha256: object) -> bytes:
        return b"fake"

    def weights_sha256(self, sha256: object) -> str:
        return "00" * 32

    @staticmethod
    def _normalised(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def embed_images(images: Any, encoder: Any, cache: Any = None, **settings: Any) -> Any:
    """The batches of `clipcls.embed.images.embed_images` for a model that is open."""
    from clipcls.embed.cache.store import Cache
    from clipcls.embed.execution import Execution
    from clipcls.embed.images import embed_images
    from clipcls.embed.session import Session

    return embed_images(images, Session(encoder, Execution(**settings), cache or Cache(None)))


def embed_texts(prompts: Any, encoder: Any, cache: Any = None, report: Any = None) -> Any:
    """The texts of `clipcls.embed.texts.embed_texts` for a model that is open."""
    from clipcls.embed.cache.store import Cache
    from clipcls.embed.session import Session
    from clipcls.embed.texts import embed_texts

    return embed_texts(prompts, Session(encoder, cache=cache or Cache(None)), report=report)


@pytest.fixture
def fake_encoder() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A folder with one picture of each of FakeEncoder's colours."""
    folder = tmp_path / "colours"
    folder.mkdir()
    for name, colour in FakeEncoder.COLOURS.items():
        Image.new("RGB", (20, 10), colour).save(folder / f"{name}.png")
    return folder
