"""Bases in which the kinks of a penalty are coordinates of a tensor."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Frame(NamedTuple):
    """Bases of a tensor in which a penalty has derivatives but for a block of zeros.

    The tensor is a matrix W, (m, n), its first axis by the others. ``left' W right`` is zero
    in a block of some rows and columns, where R has a kink.

    Parameters
    ----------
    left : Tensor of shape (m, m)
        Orthonormal columns.
    right : Tensor of shape (n, n)
        Orthonormal columns.
    mask : Tensor of bool of shape (m, n)
        False in the block.

    See Also
    --------
    Penalty : Its ``smooth`` may return a frame.

    Examples
    --------
    >>> frame = Frame(torch.eye(2), torch.eye(2), torch.tensor([[True, True], [True, False]]))
    >>> frame.projected(torch.ones(2, 2))
    tensor([[1., 1.],
            [1., 0.]])
    """

    # Rows without a part in the block are turned back to the tensor's own columns, in which a
    # penalty's gradient is spread out: in singular bases one equation may determine a coefficient.

    left: Tensor
    right: Tensor
    mask: Tensor

    def rotated(self, tensor: Tensor) -> Tensor:
        """A tensor of the same shape, or all its coordinates, in these bases, (m, n)."""
        turned = self.left.T @ tensor.reshape(self.mask.shape).to(self.left)
        return torch.where(self.mask.all(dim=1, keepdim=True), turned, turned @ self.right)

    def restored(self, matrix: Tensor) -> Tensor:
        """A matrix in these bases in the tensor's own coordinates, (m, n)."""
        own = torch.where(self.mask.all(dim=1, keepdim=True), matrix, matrix @ self.right.T)
        return self.left @ own

    def projected(self, tensor: Tensor) -> Tensor:
        """A tensor without its part in the block."""
        inside = self.rotated(tensor).masked_fill(~self.mask, 0.0)
        return self.restored(inside).reshape(tensor.shape)

    def block(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the block; ValueError if what ``mask`` leaves out is none."""
        out = ~self.mask
        rows, columns = (torch.nonzero(out.any(dim=axis)).reshape(-1) for axis in (1, 0))
        if not bool(out[rows][:, columns].all()):
            raise ValueError("Expected the mask of a frame to leave out rows by columns, a block.")
        return rows, columns

    def is_like(self, other: Frame) -> bool:
        """Whether another has the same bases and block."""
        return all(torch.equal(*pair) for pair in zip(self, other, strict=True))
