"""The more different the patterns of active ReLUs, the better."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from forgetless.baselines._images import why_no_images
from forgetless.baselines.base import BASELINES, Baseline, Subject
from forgetless.spaces.base import SearchSpace

if TYPE_CHECKING:
    from torch import Tensor


@BASELINES.register
class Naswot(Baseline):
    """How many patterns of active ReLUs a batch of images has.

    Image i has the binary code c_i of all N ReLUs, 1 where the output is positive. With Hamming distances d,

        K_ij = N − d(c_i, c_j),    score = log |det K|

    Source: Mellor et al. 2021, Neural Architecture Search without Training (ICML 2021), arXiv:2006.04647v3, equations
    1 and 2. Two images with one code make it −∞.
    """

    name: ClassVar[str] = "naswot"

    @classmethod
    def why_undefined(cls, space: SearchSpace) -> str:
        """Cells of a recurrent network may have no ReLU, and nodes of a graph share theirs.

        Args:
            space: With its supernet.
        """
        return why_no_images(space, "It compares the ReLUs of independent images")

    @classmethod
    def score(cls, subject: Subject) -> float:
        """The score.

        Args:
            subject: The architecture.
        """
        import torch

        with torch.no_grad(), _recording()() as seen:
            subject.supernet(subject.batch[0], subject.architecture)
        return code_score(torch.cat(seen.codes, 1)) if seen.codes else -math.inf


def code_score(codes: Tensor) -> float:
    """The formula of `Naswot`.

    Args:
        codes: (B, N) of 0 and 1.

    Returns:
        log |det K|; −∞ where K is singular.

    >>> import torch
    >>> round(code_score(torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])), 3)  # K = [[3, 1], [1, 3]]
    2.079
    """
    import torch

    codes = codes.double()
    kernel = codes @ codes.T + (1 - codes) @ (1 - codes).T  # equal places, of ones and of zeros
    return float(torch.linalg.slogdet(kernel).logabsdet)


def _recording() -> Any:
    """A class of contexts that keep the code of every ReLU, be it a module or a function."""
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    relus = (F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_)

    # Not TorchDispatchMode, which sees the same, but whose first use imports for seconds.
    class Recording(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.codes: list[Tensor] = []

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if function in relus:
                self.codes.append((found > 0).flatten(1).to(torch.float32))
            return found

    return Recording
