"""Trained modules: the gradient of their loss by reverse mode, on a copy of the structure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sklearn_implicitreg.adapters.torch import functions
from sklearn_implicitreg.adapters.torch.calls import without_cudnn
from sklearn_implicitreg.adapters.torch.curvature import (
    gauss_newton,
    mean_and_spread,
    quadratic_hessian,
    spread_about,
)
from sklearn_implicitreg.adapters.torch.data import (
    SCALE_ROWS,
    Batch,
    Rows,
    few_rows,
    merged_last,
    of_equal_weight,
    rows_in,
)
from sklearn_implicitreg.adapters.torch.derivatives import by_backward, gradients_of
from sklearn_implicitreg.adapters.torch.facts import facts_of
from sklearn_implicitreg.adapters.torch.few_rows import (
    warn_if_random,
)
from sklearn_implicitreg.adapters.torch.generators import (
    all_states,
    generator_states,
    preserved_rng,
    reset_generators,
)
from sklearn_implicitreg.adapters.torch.labels import with_labels
from sklearn_implicitreg.adapters.torch.loaders import rows_of_batch
from sklearn_implicitreg.adapters.torch.losses import RowLoss, warn_of_probabilities
from sklearn_implicitreg.adapters.torch.moving import ReadAhead, cut, moved, within_memory
from sklearn_implicitreg.adapters.torch.reads import depends_on, moved_with_loss
from sklearn_implicitreg.adapters.torch.structure import restore, skeleton
from sklearn_implicitreg.problem import (
    BlockGradient,
    Indices,
    LossGradient,
    ModuleCall,
    Params,
    Problem,
    RowBatch,
    Weights,
    norm_of,
)
from sklearn_implicitreg.problem.masks import draw_masks
from sklearn_implicitreg.problem.problem import BatchLoss
from sklearn_implicitreg.problem.row_models import ERRORS, input_of, raise_in_words, shapes_of


@dataclass(frozen=True, kw_only=True)
class TorchProblem(Problem):
    """A module, its rows and its loss; ``module`` is a skeleton that shares tensors only."""

    module: nn.Module
    rows: Rows
    row_loss: RowLoss
    batch_size: int
    device: torch.device
    dtype: torch.dtype
    seed: int | None = None
    forward: Any  # a CopyCall; of a module that runs itself, a function
    kept: tuple[bool, ...] = ()  # integer inputs that the module takes as such
    label_args: tuple[str, ...] = ()  # arguments for the target of a module that returns its loss
    stream: int = 0  # which of several processes' random numbers penalties on rows draw
    mass_of_row: float | None = None  # mean weight of a row, where other processes have some
    memory: list[Any] = field(default_factory=list)  # masses of rows, read once for all places

    def blocks(self, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """One block per batch; batches are made smaller where more blocks are asked for."""
        return self._blocks_from(0, n_blocks)

    def blocks_after(self, n_done: int, n_blocks: int = 1) -> Iterator[BlockGradient]:
        """The same blocks without the first ones, whose rows are read but not passed on."""
        if self._drawn is not None:  # what they draw, the next ones do not
            return super().blocks_after(n_done, n_blocks)
        return self._blocks_from(n_done, n_blocks)

    def facts(self) -> dict[str, Any]:
        """What the gradient depends on without the rows."""
        return super().facts() | facts_of(self)

    def _blocks_from(self, n_done: int, n_blocks: int) -> Iterator[BlockGradient]:
        row_scale, at_once = 0.0, None
        batches = ReadAhead(self.batches_read(n_blocks), self.dtype, self.kept)
        with preserved_rng(self.device, self._drawn), torch.enable_grad(), self.own_kernels():
            for index, batch in enumerate(batches):
                before = all_states(self.device) if index == 0 else []
                if index >= n_done:
                    ahead = batches.ahead if index and self.device.type != "cpu" else None
                    block, at_once = within_memory(self, batch, at_once, not index, ahead)
                if index == 0:
                    with preserved_rng(self.device):  # the next batch goes on with the numbers
                        part = batch if at_once is None else cut(batch, at_once)[0]
                        if not n_done:
                            warn_if_random(self, part, before)
                        row_scale = 0.0 if self.batch_normalized else self._row_scale(part)
                if index >= n_done:
                    yield replace(block, scale=max(row_scale * block.n_rows, block.scale))
                    del block  # freed before the next is made

    def batches_read(self, n_blocks: int = 1) -> Iterator[Batch]:
        """The rows in at least so many batches, if there are as many."""
        size = self.batch_size
        split = n_blocks > 1 and not self.batch_normalized
        if split and self.rows.n_rows:
            size = min(size, max(1, self.rows.n_rows // n_blocks))
        return merged_last(self.rows.batches(size, self._order(split)), self.merging)

    @property
    def merging(self) -> bool:
        """Whether a last batch of one row joins the one before it."""
        return self.batch_normalized and not self.row_loss.elements

    @property
    def n_rows(self) -> int | None:
        """Number of rows; None for a stream."""
        return self.rows.n_rows

    @property
    def has_paths(self) -> bool:
        """A module gives the loss at any weights."""
        return True

    @property
    def masses(self) -> Weights | None:
        """Weight of every row in the mean loss; None where all count as one."""
        # They take a pass over the rows, and are asked for at the weights of every step.
        rows, row_loss, reading, masses = self.memory or [None] * 4
        if rows is not self.rows or row_loss is not self.row_loss or reading != self.reading:
            masses = functions.masses_of(self)
            self.memory[:] = self.rows, self.row_loss, self.reading, masses
        found: Weights | None = masses
        return found

    def at(self, params: Params) -> TorchProblem:
        """The same problem at other values of some parameters, buffers and attributes."""
        own = skeleton(self.module, self.device, None)
        restore(own, params)
        named = dict(own.named_parameters())
        return replace(self, module=own, params={n: named[n].detach() for n in self.params})

    def reads(self, names: Sequence[str]) -> bool:
        """Whether the gradient depends on frozen parameters, buffers or attributes."""
        return depends_on(self, names)

    def moved_with_loss(self) -> list[str]:
        """What the loss reads beside outputs and targets, and a training may have moved."""
        return moved_with_loss(self)

    def take(self, rows: Indices, weights: Weights) -> TorchProblem:
        """The same problem on some of the rows, with weights of their own."""
        return replace(self, rows=self.rows.take(rows, weights), memory=[])

    def seeing(self, batch: Any) -> TorchProblem:
        """The same problem on one batch, which passes at once as it did in training."""
        return replace(self, rows=rows_of_batch(batch), n_passes=1, memory=[])

    def whole(self) -> TorchProblem:
        """The same problem with all trained tensors in scope."""
        if not self.left_out:
            return self
        trained = {*self.params, *self.left_out}
        named = self.module.named_parameters()
        every = {name: t.detach() for name, t in named if name in trained}
        return replace(self, params=every, left_out=())

    def with_dropout(self, rate: float | None, seed: int) -> TorchProblem:
        """The same problem with its dropout layers at work, at a rate or at their own."""
        own = skeleton(self.module, self.device, None)
        draw_masks(own, rate)
        return replace(self, module=own, seed=seed, draw=0)

    def row_batches(self, params: Params) -> Iterator[RowBatch]:
        """Batches as they are read, the module at these parameters in its own type."""
        for reading in range(self.reading, self.reading + self.n_passes):
            yield from replace(self, reading=reading)._batches_once(params)

    def _batches_once(self, params: Params) -> Iterator[RowBatch]:
        model = ModuleCall(self.module, self.forward, self.row_loss)
        mean_mass = cache(lambda: functions.mean_mass(self))
        place = [self.reading] * (self.reading > 0 or self.stream > 0)
        place += [self.stream] * (self.stream > 0)
        rng = np.random.default_rng([0, self.draw, *place])
        with preserved_rng(self.device, self._drawn), self.own_kernels():
            for read in merged_last(self.rows.batches(self.batch_size), self.merging):
                batch = self.to_device(read)
                at = {name: t.to(self.device, self.dtype) for name, t in params.items()}
                yield RowBatch(model, at, *batch, rng, mean_mass)

    def losses(self) -> Iterator[BatchLoss]:
        """The loss on each batch of rows, as a differentiable function of the parameters."""
        return functions.losses(self)

    def outputs(self, params: Params) -> tuple[Weights, Weights]:
        """Outputs of the model at some parameters, of shape (n, K), and weights of the rows."""
        return functions.outputs_at(self, params)

    def fresh(self, seed: int) -> Params:
        """Parameters before a training, as the model's layers draw them."""
        return functions.fresh_params(self, seed)

    def hvp(self, vector: Params) -> Params:
        """Hessian of the mean loss times a vector, in one pass."""
        return functions.hessian_product(self, vector)

    def spread_gradient(
        self, batches: list[Indices], center: Params, scale: Params | None = None
    ) -> Params:
        """Gradient of ``mean_k |g_k - g|^2`` in the tensors of ``center``."""
        # 2 mean_k H_k (g_k - g)
        if max(map(len, batches)) <= self.batch_size:
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return spread_about(self, batches, center, scale=scale)
        # Batches that do not fit at once, and what has only a forward rule for its derivative.
        return super().spread_gradient(batches, center, scale)

    def mean_and_spread(
        self, batches: list[Indices], scale: Params | None = None
    ) -> tuple[LossGradient, Params] | None:
        """Mean of the batch gradients, and ``spread_gradient`` about it, in one pass."""
        drawn = self.batch_normalized or self.seed is not None
        if not drawn and max(map(len, batches)) <= self.batch_size:
            with contextlib.suppress(RuntimeError, NotImplementedError):
                return mean_and_spread(self, batches, scale)
        return None

    def graphs(self, batches: Sequence[Indices]) -> Iterator[BlockGradient]:
        """Gradients of the loss on batches, which can be differentiated once more."""
        seed = self._drawn
        with preserved_rng(self.device, seed), torch.enable_grad(), self.own_kernels():
            start = generator_states(self.device)
            for index, batch in enumerate(self.rows.picked(batches)):
                reset_generators(self.device, start, seed)
                with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
                    block = self._block(self.to_device(batch), index == 0, twice=True)
                if not block.weight > 0:
                    raise ValueError(
                        "Expected batches whose rows count in the loss, got one in which all are "
                        "ignored or of weight zero."
                    )
                if index == 0 and not self.batch_normalized:
                    size = self._row_scale(batch) * block.n_rows
                    block = replace(block, scale=max(size, block.scale))
                yield block
                del block

    def hessian(self) -> npt.NDArray[np.float64]:
        """Hessian of a module that is linear, with squared error."""
        return quadratic_hessian(self)

    def gauss_newton(self) -> npt.NDArray[np.float64]:
        """Hessian of the loss of outputs that are linear in the parameters, as they are here."""
        return gauss_newton(self, functions.batch_calls(self))

    def _block(
        self,
        batch: Batch,
        first: bool = False,
        twice: bool = False,
        ahead: Callable[[], None] | None = None,
    ) -> BlockGradient:
        """Gradient of the loss on a batch; if ``twice`` it can be differentiated once more."""
        parts = of_equal_weight(batch) if self.row_loss.counted is not None else [batch]
        if parts[0] is not batch:
            found = BlockGradient.joined([self._block(part, first, twice) for part in parts])
            return replace(found, n_rows=rows_in(batch))  # with those of weight zero
        total, weight, n_kinks = self.loss_on(batch, first, twice)
        grads = self._gradients(total, batch, twice)
        if ahead is not None:  # before the numbers are waited for
            ahead()
        sums: Params = {}
        absent = set()
        for (name, t), g in zip(self.params.items(), grads, strict=True):
            sums[name] = torch.zeros_like(t) if g is None else g.to_dense()
            if g is None:
                absent.add(name)
        n_rows, loss, scale = rows_in(batch), float(total.detach()), norm_of(sums)
        return BlockGradient(sums, loss, weight, n_rows, scale, n_kinks, frozenset(absent))

    def loss_on(
        self, batch: Batch, first: bool = False, twice: bool = False
    ) -> tuple[Tensor, float, int]:
        """Sum of the losses of a batch, weight of its rows, and how many are at a kink."""
        # Where a second derivative is asked for, callers look at the errors of torch.
        try:
            output = self.forward(self.module, batch.inputs)
        except ERRORS as error:
            if twice:
                raise
            raise_in_words(error, input_of(self.module, batch.inputs))
        if first:
            warn_of_probabilities(self.row_loss.criterion, output)
            self.forward.warn_of_hooks()
            self.forward.warn_of_states(self.module, batch.inputs)
        try:
            target = self.row_loss.prepare(output, batch.target)
            total, weight = self.row_loss(output, target, batch.weight)
            n_kinks = self.row_loss.n_kinks(output, target)
        except ERRORS as error:
            raise_in_words(error, self._loss_takes(output, batch.target))
        if not total.requires_grad:
            if torch.is_inference_mode_enabled():
                raise ValueError(
                    "Expected gradients of the loss, got torch.inference_mode(), where there are "
                    "none; call fit outside of it."
                )
            raise ValueError(
                "Expected a loss that depends on the trained parameters, got one without a "
                "gradient; does the model or the loss detach?"
            )
        return total, weight, n_kinks

    def _gradients(self, total: Tensor, batch: Batch, twice: bool) -> Sequence[Tensor | None]:
        call = self.forward
        # Checkpoints call the layers once more.
        with call.state_of(self.module) if call.borrows else contextlib.nullcontext():
            grads = gradients_of(total, self.leaves, twice)
        if grads is not None:
            return grads
        output = self.forward(self.module, batch.inputs)  # the graph was used up
        target = self.row_loss.prepare(output, batch.target)
        total, _ = self.row_loss(output, target, batch.weight)
        with self.forward.state_of(self.module):
            return by_backward(total, self.module, self.leaves)

    def _loss_takes(self, output: Any, target: Any) -> str:
        words = f"outputs and y as the loss {self.row_loss.words!r} takes them"
        return f"{words}, got {shapes_of(output)} and {shapes_of(target)}"

    @cached_property
    def leaves(self) -> list[Tensor]:
        """The skeleton's own tensors, in the order of the parameters."""
        named = dict(self.module.named_parameters())
        return [named[name] for name in self.params]

    def _row_scale(self, batch: Batch) -> float:
        """Norm of the mean gradient of a few rows: the size of what the mean over all cancels."""
        rows = few_rows(batch, SCALE_ROWS)
        if rows is None and not self.rows.together:
            return 0.0
        with contextlib.suppress(RuntimeError, ValueError, IndexError, TypeError):
            if rows is not None:
                block = self._block(self.to_device(rows))
                return block.scale / block.n_rows
        return self._scale_together(self.to_device(batch))

    def _scale_together(self, batch: Batch) -> float:
        """The same where rows pass through the module together only, as a graph's nodes."""
        output = self.forward(self.module, batch.inputs)
        few = few_rows(Batch(output, batch.target, batch.weight), SCALE_ROWS)
        if few is None:
            return 0.0
        target = self.row_loss.prepare(few.inputs, few.target)
        total, _ = self.row_loss(few.inputs, target, few.weight)
        grads = torch.autograd.grad(total, self.leaves, allow_unused=True)
        named = zip(self.params, grads, strict=True)
        return norm_of({n: g for n, g in named if g is not None}) / rows_in(few)

    def to_device(self, batch: Batch) -> Batch:
        """A copy of a batch on the device, in the type that the module takes."""
        own = moved(batch, self.device, self.dtype, self.kept)
        if not self.label_args:
            return own
        return own._replace(
            inputs=with_labels(self.module, own.inputs, own.target, self.label_args)
        )

    def numbered_like(self, fitted: Problem) -> TorchProblem:
        """The same problem with labels numbered as they are in the fitted rows."""
        if not isinstance(fitted, TorchProblem):
            return self
        row_loss = replace(self.row_loss, classes=fitted.row_loss.classes)
        return replace(self, rows=self.rows.named_like(fitted.rows), row_loss=row_loss)

    @property
    def _drawn(self) -> int | None:
        """Seed of the random modules in the draw that is taken."""
        if self.seed is None or not (self.draw or self.reading):
            return self.seed
        place = [self.seed, self.draw, *[self.reading] * (self.reading > 0)]
        return int(np.random.SeedSequence(place).generate_state(1)[0])

    def _order(self, split: bool) -> int | None:
        """Seed of a random order of the rows: for readings that differ, and for random blocks."""
        # What a collate_fn mixes, and the statistics of a batch, are of rows in random order.
        return self._drawn if self.n_passes > 1 else (0 if split else None)

    def own_kernels(self) -> contextlib.AbstractContextManager[None]:
        """Without cuDNN where it has no backward pass: recurrent layers in eval state."""
        recurrent = any(isinstance(m, nn.RNNBase) for m in self.module.modules())
        on_cuda = self.device.type == "cuda"
        return without_cudnn() if on_cuda and recurrent else contextlib.nullcontext()
