"""Chooses the runtime that computes features."""

from clipcls.errors import UsageError
from clipcls.models.runtime.engine import is_installed
from clipcls.records import ModelSpec, Runtime


def choose_runtime(spec: ModelSpec, device: str, can_keep: bool) -> Runtime:
    """Return the runtime that a model asks for; `auto` is OpenVINO on a CPU where it can be used, else torch.

    Args:
        device: its type, such as `cpu`.
        can_keep: whether there is a cache to keep converted models in; without one each run would convert anew.

    Raises:
        UsageError: the runtime is unknown, isn't installed, or can't do what is asked.
    """
    if spec.runtime not in ("auto", "torch", "openvino"):
        raise UsageError(f"--runtime {spec.runtime}: use auto, torch or openvino.")
    if spec.runtime == "torch" and spec.precision == "int8":
        raise UsageError("--precision int8 is computed by OpenVINO: leave --runtime torch out.")
    if spec.runtime == "openvino" or spec.precision == "int8":
        option = "--runtime openvino" if spec.runtime == "openvino" else "--precision int8"
        if device != "cpu":
            raise UsageError(f"{option} is for CPUs, and this run is on {device}: give --device cpu.")
        if not is_installed():
            raise UsageError(f"{option} needs OpenVINO: pip install 'clipcls[openvino]'")
        if not can_keep:
            raise UsageError(f"{option} keeps the converted model in the cache, and this run has none.")
        return "openvino"
    return "openvino" if spec.runtime == "auto" and device == "cpu" and can_keep and is_installed() else "torch"
