"""The processes of one run, as torchrun starts them: each has its share of a batch and its own random states, the
features are gathered.
"""

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from clipcls.errors import ClipclsError, StoppedError
from clipcls.train.data.corpus import Share

_T = TypeVar("_T")
# the first process validates and saves while the others wait
PATIENCE = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Processes(Share):
    """This process among those of the run; with one alone nothing is exchanged.

    Attributes:
        messages: the group that exchanges Python objects, on the CPU whatever the device.
    """

    messages: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module, device: torch.device, apart: Sequence[nn.Parameter] = ()) -> nn.Module:
        """Return a module whose gradients, but for those of some weights, are averaged as they are computed."""
        if self.count == 1:
            return module
        # buffers are BatchNorm's statistics, of which the first process's are saved; the option has two names
        names = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        own_buffers: dict[str, Any] = {option: False}
        devices = [device] if device.type == "cuda" else None
        for weight in apart:
            weight.requires_grad_(False)
        wrapped = DistributedDataParallel(module, device_ids=devices, **own_buffers)
        for weight in apart:
            weight.requires_grad_(True)
        return wrapped

    def gather(self, features: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """Return the features of all processes, in the order of their ranks, with gradients.

        Args:
            features: `(n, embed_dim)`; n may differ from process to process.
            counts: n of each process.
        """
        if self.count == 1:
            return features
        padded = functional.pad(features, (0, 0, 0, max(counts) - len(features)))
        parts: Sequence[torch.Tensor] = _Gather.apply(padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def gather_objects(self, value: Any) -> list[Any]:
        """Return what each process gives, in the order of their ranks; it has to be picklable.

        Raises:
            StoppedError: another process has ended.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(values, value, group=self.messages)
        except RuntimeError as exc:  # gloo has no kind of its own
            raise StoppedError(f"process {self.rank}: another process of the run has ended") from exc
        return values

    def average(self, tensors: Iterable[torch.Tensor]) -> None:
        """Replace tensors by their mean over the processes."""
        if self.count == 1:
            return
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= self.count

    @torch.no_grad()
    def copy_from_first(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the weights and buffers of the first."""
        if self.count == 1:
            return
        for module in modules:
            for tensor in module.state_dict().values():
                distributed.broadcast(tensor, 0)

    def on_first(self, action: Callable[[], object]) -> None:
        """Do something in the first process while the others wait; what it raises is raised in all."""
        self.together(action if self.is_first else lambda: None)

    def together(self, action: Callable[[], _T]) -> _T:
        """Do something that can fail in each process alone, and go on when all have done it.

        Raises:
            ClipclsError: an action's; in all processes, so that none waits for another in vain.
        """
        error: ClipclsError | None = None
        try:
            result = action()
        except ClipclsError as exc:
            error = exc
        errors = self.gather_objects(error)
        messages = [None if failure is None else str(failure) for failure in errors]
        if any(messages):
            error = error or next(failure for failure in errors if failure is not None)
            error.told = messages.index(str(error)) != self.rank
            raise error
        return result


class _Gather(torch.autograd.Function):
    """The tensors of all processes; a tensor's gradient is the sum of those that each process has for it."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, tensor.contiguous())
        return tuple(parts)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:
        whole = torch.stack(gradients)
        distributed.all_reduce(whole)
        return whole[distributed.get_rank()]


@contextmanager
def join_processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes that torchrun started; alone, where it didn't."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    messages = distributed.new_group(backend="gloo", timeout=PATIENCE)
    yield Processes(distributed.get_rank(), distributed.get_world_size(), messages)
    # not after an error: the others may be waiting for this process, and torchrun ends them
    distributed.destroy_process_group()


def own_device(name: str) -> str:
    """Return the device of this process: where torchrun started several, each has a GPU of its own."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and (name == "cuda" or (name == "auto" and torch.cuda.is_available())):
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the CPU and of the device, to be given to `restore_random_states`."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(device: torch.device, states: dict[str, torch.Tensor]) -> None:
    """Set the states that `random_states` gave; those of a device that isn't used now are passed over."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
