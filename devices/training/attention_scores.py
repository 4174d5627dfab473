"""Tells the scores of attention from its projections, where both have one shape."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode


class ScoreWatch(TorchFunctionMode):
    """A score watch follows which operator saves tensors, and so which of them are scores.

    Softmax saves scores. The product after it saves the values, for the gradient of the scores, and
    then the scores once more.
    """

    def __init__(self) -> None:
        super().__init__()
        self._has_scores = False
        self._upcoming: list[bool] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ == "softmax":
            self._has_scores, self._upcoming = True, [True]
        elif func.__name__ == "matmul" and self._has_scores:
            scores, values = args
            self._upcoming = [False] * scores.requires_grad + [True] * values.requires_grad
        result = func(*args, **(kwargs or {}))
        self._upcoming = []
        return result

    def next_is_score(self) -> bool:
        """Return True if the tensor that is being saved now is a score."""
        return bool(self._upcoming) and self._upcoming.pop(0)
