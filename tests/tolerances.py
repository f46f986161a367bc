"""What two computations of the same may differ by: the rounding of their precision, and no more.

Sums of the same terms differ with the order that they are added in, which hangs on the processor, the number of
threads and the library's version. So results are compared with a reference in float64, and what is allowed follows
from the precision rather than from what one machine has shown.
"""

import math
from typing import Any

import torch


def sum_tolerance(length: int, magnitude: float, dtype: torch.dtype = torch.float32) -> float:
    """Return how far two sums of the same terms in a precision may lie apart.

    Rounding errors add up like a random walk, to about the root of their number; 4 makes an excess all but impossible.
    Source: Higham and Mary 2019, https://doi.org/10.1137/18M1226312

    Args:
        length: the number of roundings on the way to a value: of terms in a sum, or all sums of a chain together.
        magnitude: the size of the partial sums; for values that cancel, the sum of the terms' absolute values.
    """
    return 4 * math.sqrt(length) * torch.finfo(dtype).eps * magnitude


def assert_as_exact(ours: Any, theirs: Any, reference: Any, name: str = "") -> None:
    """Fail if the largest error of `ours` is more than 4 times that of `theirs`, which may be small by chance.

    So one epsilon of the precision that both come in is added to theirs.

    Args:
        ours, theirs: tensors or arrays of one shape and precision.
        reference: the same computed in float64.
        name: what is compared, for the message.
    """
    ours, theirs, reference = (torch.as_tensor(values).detach() for values in (ours, theirs, reference))
    assert ours.dtype == theirs.dtype != reference.dtype == torch.float64
    assert ours.shape == theirs.shape == reference.shape
    error, their_error = (float((values.double() - reference).abs().max()) for values in (ours, theirs))
    allowed = 4 * (their_error + torch.finfo(ours.dtype).eps * float(reference.abs().max()))
    assert error <= allowed, f"{name} off by {error:.3g}; {allowed:.3g} allowed, the other's error is {their_error:.3g}"
