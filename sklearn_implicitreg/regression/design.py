"""The columns of the regression at one place: gradients of a family's terms, tensor by tensor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_implicitreg.penalties.base import Leaf, Penalty, name_terms
from sklearn_implicitreg.penalties.columns import LeafColumns, columns_of_leaves
from sklearn_implicitreg.penalties.frames import Frame
from sklearn_implicitreg.problem import Params, Problem
from sklearn_implicitreg.regression.chunks import Chunks

# Coordinates in one chunk of a tensor: its columns and target stay in the cache.
_CHUNK = 2**17


class Piece(NamedTuple):
    """Some coordinates of a tensor with their columns, in float64."""

    start: int  # of the first coordinate
    columns: Tensor  # (m, k), or of the columns in the tensor's support only
    known: Tensor | None  # (m,)
    smooth: Tensor | None  # (m,); None: everywhere
    instruments: Tensor | None
    room: Tensor | None = None  # (k + 1, m), the columns and a row for their target
    frame: Frame | None = None  # bases that the coordinates are in, of a whole tensor


@dataclass(frozen=True, eq=False)
class Design:
    """Columns of a family at one place, in float64: evaluated there, or held as means."""

    term_names: tuple[str, ...]
    leaves: tuple[tuple[Leaf, int], ...]
    known_terms: tuple[str, ...]
    params: Params
    parts: tuple[LeafColumns, ...] = ()
    designs: Params = field(default_factory=dict)
    knowns: Params = field(default_factory=dict)
    masks: Params = field(default_factory=dict)
    instruments: Params = field(default_factory=dict)

    @classmethod
    def at(cls, penalty: Penalty, problem: Problem) -> Design:
        """Columns of a penalty at a problem's parameters."""
        leaves = penalty.leaves(problem.params, problem)
        parts = tuple(columns_of_leaves(leaves, problem.params, problem))
        free = [part for part in parts if part.leaf.coef is None]
        if not free:
            raise ValueError("Expected at least one penalty with an unknown coefficient, got none.")
        fixed = [part for part in parts if part.leaf.coef is not None]
        sizes = tuple([(part.leaf, len(part.terms)) for part in free])
        found = cls(_names(free), sizes, _names(fixed), problem.params, parts)
        if problem.ranks is not None:
            terms = [*found.term_names, *found.known_terms]
            problem.ranks.agree({"terms": f"[{', '.join(terms)}]"})
        return found

    @property
    def closed_form(self) -> bool:
        """Whether all gradients can be evaluated at other values of one tensor."""
        return bool(self.parts) and all(part.closed_form for part in self.parts)

    def weights(self, name: str) -> Tensor:
        """One tensor at the place, in float64."""
        return self.params[name].detach().double()

    def support(self, name: str) -> tuple[int, ...]:
        """The columns that can differ from zero at one tensor."""
        if not self.parts:
            return tuple(range(len(self.term_names)))
        return self._support.get(name, ())

    def reaching(self, names: Sequence[str]) -> set[int]:
        """The columns that can differ from zero at some tensors, or of means those that do."""
        if self.parts:
            return {j for name in names for j in self.support(name)}
        found = [self.designs[name].any(dim=0) for name in names]
        return {j for own in found for j in torch.nonzero(own).reshape(-1).tolist()}

    def on(self, names: Sequence[str], columns: list[int]) -> Design:
        """The same at some tensors, in the columns that reach them; without the penalties."""
        seen = set(names)

        def at(held: Params) -> Params:
            return {name: own for name, own in held.items() if name in seen}

        return replace(
            self,
            term_names=tuple(self.term_names[j] for j in columns),
            leaves=(),
            params=at(self.params),
            parts=tuple(p for p in self.parts if p.everywhere or seen.intersection(p.leaf.names)),
            designs={name: own[:, columns] for name, own in at(self.designs).items()},
            knowns=at(self.knowns),
            masks=at(self.masks),
            instruments={name: own[:, columns] for name, own in at(self.instruments).items()},
        )

    def pieces(self, name: str) -> list[Piece] | Chunks[Piece]:
        """One tensor's columns in its support: a chunk at a time where all are elementwise."""
        if not self.parts:
            held = (self.designs[name], self.knowns.get(name), self.masks.get(name))
            return [Piece(0, *held, self.instruments.get(name))]
        tensor = self.params[name].detach()
        parts = self._reaching.get(name, [])
        if tensor.numel() <= _CHUNK or not all([part.elementwise for part in parts]):
            return [self._piece(name, 0, tensor.double(), parts)]
        flat = tensor.reshape(-1)

        def piece(start: int) -> Piece:
            return self._piece(name, start, flat[start : start + _CHUNK].double(), parts)

        return Chunks(range(0, len(flat), _CHUNK), piece)

    def full_pieces(self, name: str) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Start, all columns and smooth coordinates of one tensor, in chunks of one size.

        Columns in a frame are in the tensor's own coordinates, without their part at the kink.
        """
        for start, columns, _, smooth, _, _, frame in self.pieces(name):
            full = self._widened(name, columns)
            if frame is not None:
                inside = full.T.reshape(-1, *frame.mask.shape) * frame.mask
                full, smooth = frame.restored(inside).reshape(len(inside), -1).T, None
            for at in range(0, max(len(full), 1), _CHUNK):
                rows = slice(at, at + _CHUNK)
                yield start + at, full[rows], None if smooth is None else smooth[rows]

    def columns(self, name: str) -> Tensor:
        """All columns for one tensor, (numel, k)."""
        if not self.parts:
            return self.designs[name]
        room, _ = self._evaluated(name, self.weights(name), self._reaching.get(name, []))
        return self._widened(name, room[:-1].T)

    def known(self, name: str) -> Tensor | None:
        """Gradient of the penalties with known coefficients, (numel,)."""
        if not self.parts:
            return self.knowns.get(name)
        fixed = [part for part in self._reaching.get(name, []) if part.leaf.coef is not None]
        return self._evaluated(name, self.weights(name), fixed)[1]

    def beside(self, name: str, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """All columns for one tensor and its known part, a tiny step away from the kinks."""
        parts = self._reaching.get(name, [])
        room, known = self._evaluated(name, self.weights(name), parts, step)
        return self._widened(name, room[:-1].T), known

    def smooth(self, name: str) -> Tensor | None:
        """Mask of the coordinates at which all terms are differentiable; None: all of them.

        The coordinates are those in the tensor's frame, where it has one.
        """
        if not self.parts:
            return self.masks.get(name)
        return self._kinks(name, self.weights(name), self._reaching.get(name, []))[0]

    def frame(self, name: str) -> Frame | None:
        """Bases in which one tensor's kinks are coordinates; None: its own."""
        # What can be evaluated on any piece of a tensor has none.
        parts = [part for part in self._reaching.get(name, []) if not part.elementwise]
        return self._kinks(name, self.weights(name), parts)[1] if parts else None

    @property
    def elementwise(self) -> bool:
        """Whether every column can be evaluated on a stack of tensors."""
        return bool(self.parts) and all([part.elementwise for part in self.parts])

    def averaged(self, stacks: Callable[[str], Iterable[tuple[Tensor, Tensor]]]) -> Design:
        """Means held tensor by tensor, over stacks of its weights with their shares."""
        designs: Params = {}
        knowns: Params = {}
        masks: Params = {}
        for name in self.params:
            parts, total = self._reaching.get(name, []), None
            for stack, shares in stacks(name):
                n = len(shares)
                _, columns, known, smooth, *_ = self._piece(name, 0, stack, parts)
                stacked = columns.T.reshape(columns.shape[1], n, len(columns) // n)
                mean = torch.tensordot(shares, stacked, ([0], [1]))
                total = mean if total is None else total + mean
                if known is not None:
                    own = shares @ known.reshape(n, -1)
                    knowns[name] = knowns[name] + own if name in knowns else own
                if smooth is not None:
                    mask = smooth.reshape(n, -1).all(dim=0)
                    masks[name] = masks[name] & mask if name in masks else mask
            if total is None:  # no iterates
                total = self.weights(name).new_zeros(
                    (len(self.support(name)), self.params[name].numel())
                )
            designs[name] = self._widened(name, total.T)
        own_names = (self.term_names, self.leaves, self.known_terms, self.params)
        return Design(*own_names, designs=designs, knowns=knowns, masks=masks)

    def joined(self, name: str, column: Params) -> Design:
        """The same with one more held column, which is its own instrument."""
        designs, instruments = (
            {n: torch.cat([own, column[n].reshape(-1, 1)], dim=1) for n, own in held.items()}
            for held in (self.designs, self.instruments)
        )
        names = (*self.term_names, name)
        return replace(self, term_names=names, designs=designs, instruments=instruments)

    def _widened(self, name: str, own: Tensor) -> Tensor:
        """Columns of a tensor's support among all columns."""
        k = len(self.term_names)
        if own.shape[1] == k:
            return own
        full = own.new_zeros((k, len(own))).T
        full[:, list(self.support(name))] = own
        return full

    def _piece(self, name: str, start: int, at: Tensor, parts: list[LeafColumns]) -> Piece:
        """Columns of one tensor or of a chunk of it."""
        room, known = self._evaluated(name, at, parts)
        smooth, frame = self._kinks(name, at, parts)
        if frame is not None:
            for row in room[:-1]:
                row.copy_(frame.rotated(row).reshape(-1))
            known = None if known is None else frame.rotated(known).reshape(-1)
        return Piece(start, room[:-1].T, known, smooth, None, room, frame)

    def _evaluated(
        self, name: str, at: Tensor, parts: list[LeafColumns], step: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Columns as rows, with one more row for the target, and the known part."""
        columns, known = [], None
        for part in parts:
            own = part.columns(name, at) if step is None else part.beside(name, at, step)
            if part.leaf.coef is None:
                for column in own:
                    columns.append(column.reshape(-1))
            else:
                for column in own:
                    more = part.leaf.coef * column.reshape(-1)
                    known = more if known is None else known + more
        # Column by column, as LAPACK wants it.
        room = at.new_empty((len(columns) + 1, at.numel()))
        for row, column in zip(room, columns, strict=False):
            row.copy_(column)
        return room, known

    def _kinks(
        self, name: str, at: Tensor, parts: list[LeafColumns]
    ) -> tuple[Tensor | None, Frame | None]:
        """Mask of where all terms are differentiable, and the bases that it is in."""
        smooth: Tensor | None = None
        frame: Frame | None = None
        for part in parts:
            kinks = getattr(part.leaf.penalty, "smooth", None)
            if kinks is None or name not in part.leaf.names:
                continue
            own = kinks(name, at)
            if isinstance(own, Tensor):
                mask = own.reshape(-1)
                smooth = mask if smooth is None else smooth & mask
            elif frame is None:
                frame = own
            elif not frame.is_like(own):
                raise ValueError(
                    f"Expected kinks of one kind at {name!r}, got two frames of bases, of "
                    f"{part.leaf.penalty!r} and of another penalty; give both the same tolerance, "
                    "or restrict them by .on(...) to different tensors."
                )
        if frame is None:
            return smooth, None
        if smooth is not None and not bool(smooth.all()):
            raise ValueError(
                f"Expected kinks of one kind at {name!r}, got zeros among its entries and among "
                "its singular values; fit the two penalties each alone, or restrict them by "
                ".on(...) to different tensors."
            )
        return frame.mask.reshape(-1), frame

    @cached_property
    def _reaching(self) -> dict[str, list[LeafColumns]]:
        """For each tensor the parts that have columns there."""
        found: dict[str, list[LeafColumns]] = {}
        for part in self.parts:
            for name in self.params if part.everywhere else part.leaf.names:
                found.setdefault(name, []).append(part)
        return found

    @cached_property
    def _support(self) -> dict[str, tuple[int, ...]]:
        """For each tensor the places of its columns."""
        found: dict[str, tuple[int, ...]] = {}
        place = 0
        for part in self.parts:
            if part.leaf.coef is None:
                own = tuple(range(place, place + len(part.terms)))
                place += len(own)
                for name in self.params if part.everywhere else part.leaf.names:
                    found[name] = (*found.get(name, ()), *own)
        return found


def _names(parts: Sequence[LeafColumns]) -> tuple[str, ...]:
    if not parts:
        return ()
    named = name_terms([part.leaf for part in parts], [part.terms for part in parts])
    return tuple(itertools.chain.from_iterable(named))
