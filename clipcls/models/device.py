"""Chooses the device and the precision that a model runs with."""

import torch

from clipcls.errors import UsageError
from clipcls.records import Precision


def choose_device(name: str) -> torch.device:
    """Return the named device; `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise UsageError(f"--device {name}: use auto, cpu, cuda, cuda:N or mps.") from exc
    here = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here.get(device.type, False):
        raise UsageError(f"--device {name}: this machine, or this build of torch, has no such device.")
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the named precision; `auto` is bf16 where it is native to the hardware, else fp16 on CUDA, else fp32.

    Raises:
        UsageError: the precision is unknown, fp16 on a CPU, or int8, which torch doesn't compute.
    """
    match name:
        case "fp32" | "bf16":
            return name
        case "fp16":
            if device.type == "cpu":
                raise UsageError("--precision fp16 needs a GPU; a CPU takes bf16 or fp32.")
            return "fp16"
        case "int8":
            raise UsageError("--precision int8 is computed by OpenVINO, not by torch.")
        case "auto":
            if device.type == "cuda":
                return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
            return "bf16" if device.type == "cpu" and _cpu_multiplies_bf16() else "fp32"
    raise UsageError(f"--precision {name}: use auto, fp32, bf16, fp16 or int8.")


def _cpu_multiplies_bf16() -> bool:
    """Return whether the CPU has AMX or AVX512-BF16; elsewhere bf16 is emulated, and slower than fp32."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
