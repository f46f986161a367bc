"""torch's global random states: what dropout draws from."""

import torch


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the CPU and of the device, to be given to `restore_random_states`."""
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
