"""What a benchmark ran on, in words; imports nothing heavy."""

import datetime
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "open_clip_torch", "transformers", "pybioclip", "pillow", "simplejpeg")
EXTENSIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}


def describe(gpu: str | None) -> list[str]:
    """Lines with the date, the hardware and the versions."""
    python = f"Python {platform.python_version()}"
    versions = [f"{name} {found}" for name in PACKAGES if (found := installed(name))]
    return [
        f"{datetime.date.today().isoformat()}; {_processor()}, {os.cpu_count()} cores; {gpu or 'no GPU used'}",
        ", ".join([python, *versions]),
    ]


def load() -> str:
    """How much else the machine does; models on all cores suffer from it more than in proportion."""
    if not hasattr(os, "getloadavg"):
        return "load before the start unknown"
    return f"load before the start {os.getloadavg()[0]:.1f} (average of a minute; a quiet machine has less than 0.5)"


def installed(package: str) -> str | None:
    """The version of a package, or None where it isn't installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    info = _cpuinfo()
    flags = info.get("flags", "").split()
    extensions = [name for flag, name in EXTENSIONS.items() if flag in flags]
    name = info.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(extensions) or 'neither AMX nor AVX512-BF16'})"


def _cpuinfo() -> dict[str, str]:
    """What Linux says about the first core."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first, _, _ = path.read_text(encoding="utf-8").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
