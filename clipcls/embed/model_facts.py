"""Remember the facts of a model, so that a later run with only cached features needn't open it.

Their key covers all that the user asked for and all that decides what `auto` means: the machine's processor and GPUs,
the installed torch and open_clip. They hold until a file that they were read from changes, appears or disappears.
"""

import hashlib
import importlib.util
import json
import os
import platform
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from clipcls.embed.cache.store import Cache
from clipcls.models import catalog
from clipcls.models.runtime.engine import release as openvino_release
from clipcls.records import FileStamp, ModelFacts, ModelSpec, Preprocessing

# to be raised whenever what is kept, or how a model is read, changes
_VERSION = 3
# what decides where the Hugging Face Hub's files are, and which GPUs are seen
_ENVIRONMENT = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
_GPU_ENVIRONMENT = (
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
    *("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
)


def recall(cache: Cache, spec: ModelSpec) -> ModelFacts | None:
    """Return the facts of a model that an earlier run opened; None if none did, or anything has changed since."""
    kept = cache.get_model(_key(spec)) if cache.is_on else None
    if kept is None:
        return None
    try:
        known = json.loads(kept)
        if any(_stamp_text(path) != text for path, text in known["files"].items()):
            return None
        return _as_facts(known["facts"])
    except (ValueError, TypeError, KeyError, AttributeError):
        # a row that `remember` didn't write; the model is opened, and the row replaced
        return None


def _as_facts(kept: dict[str, Any]) -> ModelFacts | None:
    """Return the facts that `remember` kept; None if they can't be used."""
    preprocess = dict(kept["preprocess"])
    preprocess |= {name: tuple(preprocess[name]) for name in ("size", "mean", "std")}  # JSON has no tuples
    made = {"fingerprint": bytes.fromhex(kept["fingerprint"]), "preprocess": Preprocessing(**preprocess)}
    facts = ModelFacts(**kept | made)
    numbers = (*facts.preprocess.size, *facts.preprocess.mean, *facts.preprocess.std, facts.context_length)
    texts = (facts.name, facts.device, facts.precision, facts.runtime)
    sound = all(isinstance(value, str) for value in texts) and isinstance(facts.embed_dim, int)
    return facts if sound and all(isinstance(value, int | float) for value in (*numbers, facts.logit_scale)) else None


def remember(cache: Cache, spec: ModelSpec, facts: ModelFacts, seen: dict[str, FileStamp | None]) -> None:
    """Keep the facts of an opened model, unless they lack a fingerprint.

    Args:
        seen: the stamps of its files from before they were read, by path; None for a file that didn't exist.
    """
    if cache.is_on and facts.fingerprint:
        files = {path: str(stamp) if stamp else None for path, stamp in seen.items()}
        kept = {"files": files, "facts": asdict(facts) | {"fingerprint": facts.fingerprint.hex()}}
        cache.put_model(_key(spec), json.dumps(kept))


def absolute(spec: ModelSpec) -> ModelSpec:
    """Return the spec with absolute paths, so that it doesn't depend on the working directory."""
    name = spec.name if catalog.find(spec.name) else _absolute(spec.name) or ""
    return replace(spec, name=name, arch=_absolute(spec.arch), preprocess=_absolute(spec.preprocess))


def _key(spec: ModelSpec) -> bytes:
    spec = absolute(spec)
    entry = catalog.find(spec.name)
    asked = [entry.model if entry else "", spec.arch, spec.preprocess]
    asked += [spec.device, spec.precision, spec.runtime]
    here = [openvino_release(), *_machine(), *(os.environ.get(name) for name in _ENVIRONMENT)]
    return hashlib.sha256(json.dumps([_VERSION, spec.name, *asked, *here]).encode()).digest()


def _absolute(name: str | None) -> str | None:
    """Return an existing path made absolute, anything else unchanged."""
    path = (name or "").removeprefix("local-dir:")
    return os.path.abspath(path) if path and os.path.exists(path) else name  # noqa: PTH100, PTH110, names may be odd


def _machine() -> list[str | None]:
    """Return what the meaning of `auto` depends on, read without torch."""
    gpus = sorted(str(path) for pattern in ("nvidia[0-9]*", "kfd", "dxg") for path in Path("/dev").glob(pattern))
    packages = [_package_stamp(name) for name in ("torch", "open_clip", "timm", "transformers")]
    visible = [os.environ.get(name) for name in _GPU_ENVIRONMENT]
    return [platform.machine(), _processor(), *packages, *visible, *gpus]


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123, one line is wanted
            return next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


def _package_stamp(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    return None if spec is None or spec.origin is None else _stamp_text(Path(spec.origin).with_name("version.py"))


def _stamp_text(path: str | Path) -> str | None:
    stamp = FileStamp.at(path)
    return str(stamp) if stamp else None
