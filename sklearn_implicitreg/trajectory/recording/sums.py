"""Running sums of tensors in float64, cheap enough for every step of a training run."""

from __future__ import annotations

import torch
from torch import Tensor

from sklearn_implicitreg.problem import Params

__all__ = ["RunningSums", "zeros"]

_COLLECTED = 16  # terms that are added up in float32 before they join the sum
_CHUNK = 2**16  # entries that are worked on at once on a CPU, so that they stay in its cache


class RunningSums:
    """Sums by name, in float64.

    Up to 16 float32 terms are added up in float32 first, an eighth of the cost; that is off by
    less than one part in a million, and by the rounding of the terms themselves in the mean.

    Parameters
    ----------
    totals : dict of str to Tensor
        float64; changed in place.
    """

    def __init__(self, totals: Params):
        self.totals = totals
        self._recent: Params = {}
        self._n_recent: dict[str, int] = {}

    def add(self, name: str, term: Tensor, sign: int = 1) -> None:
        """Add a term to one sum."""
        if term.dtype != torch.float32 or term.is_sparse:
            self.totals[name].add_(term, alpha=sign)
        elif self._begins(name):
            self._place(name, term).copy_(term)
            if sign < 0:
                self._recent[name].neg_()
        else:
            self._recent[name].add_(term, alpha=sign)

    def add_quotient(self, name: str, above: Tensor, below: Tensor, factor: float) -> None:
        """Add ``factor * above / below`` to one sum, without a tensor of it."""
        if above.dtype != torch.float32:
            self.totals[name].add_(above / below, alpha=factor)
        elif self._begins(name):
            torch.div(above, below, out=self._place(name, above)).mul_(factor)
        else:
            self._recent[name].addcdiv_(above, below, value=factor)

    def _begins(self, name: str) -> bool:
        """Whether the next term is the first of those that are added up in float32."""
        n = self._n_recent.get(name, 0)
        first = n in (0, _COLLECTED)
        if first:
            self._flush(name)
        self._n_recent[name] = 1 if first else n + 1
        return first

    def _place(self, name: str, like: Tensor) -> Tensor:
        """Memory of the terms that are added up."""
        if name not in self._recent:
            kind = torch.contiguous_format
            self._recent[name] = torch.empty_like(like, memory_format=kind, requires_grad=False)
        return self._recent[name]

    def flush(self) -> Params:
        """The sums, with all terms in."""
        for name in self._recent:
            self._flush(name)
        return self.totals

    def clear(self) -> None:
        """Begin again at zero."""
        for total in self.totals.values():
            total.zero_()
        self._n_recent = {}

    def _flush(self, name: str) -> None:
        if self._n_recent.get(name):
            _add(self.totals[name], self._recent[name])
            self._n_recent[name] = 0


def zeros(p: Tensor) -> Tensor:
    """Sum of nothing yet, in float64."""
    return torch.zeros_like(p, dtype=torch.float64, memory_format=torch.contiguous_format)


def _add(total: Tensor, part: Tensor) -> None:
    """Add float32 numbers in place, in pieces that stay in the cache."""
    sums, flat = total.view(-1), part.reshape(-1)
    if part.device.type != "cpu":
        sums += flat
        return
    wide = torch.empty(min(_CHUNK, len(flat)), dtype=torch.float64)
    for start in range(0, len(flat), _CHUNK):
        narrow = flat[start : start + _CHUNK]
        own = wide[: len(narrow)]
        sums[start : start + _CHUNK].add_(own.copy_(narrow))
