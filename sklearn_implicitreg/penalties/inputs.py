"""Penalties on how a model answers to changes of its inputs, each a mean over rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sklearn_implicitreg.penalties.base import Leaf, Penalty
from sklearn_implicitreg.penalties.columns import columns_of_leaves
from sklearn_implicitreg.problem import BatchProblem, Params, Problem, RowBatch, closing
from sklearn_implicitreg.problem.frozen import tensors_in
from sklearn_implicitreg.problem.parameters import NOTHING, SEED, integer, number
from sklearn_implicitreg.problem.row_models import map_leaves

_NODES = 40  # of the quadrature over noise in the output of a linear model


class Jacobian(Penalty):
    """Squared derivatives of the outputs in the inputs, ``R = mean_i sum_kj (df_k / dx_ij)^2``.

    Exact by one backward pass per output; for many outputs by random projections,
    ``E |v' df/dx|^2`` over normal vectors v [1]_.

    Parameters
    ----------
    n_projections : int, default=None
        Random projections that are averaged; None takes every output.

    References
    ----------
    .. [1] Hoffman, Roberts and Yaida (2019), Robust Learning with Jacobian Regularization.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1)
    >>> net.weight.data = torch.tensor([[1.0, 2.0]])
    >>> Jacobian().rows(RowBatch.of(net, torch.ones(1, 2)))["jacobian"].tolist()
    [5.0]
    """

    _allowed: ClassVar = {"n_projections": NOTHING | integer(1)}

    def __init__(self, n_projections: int | None = None):
        self.n_projections = n_projections

    @property
    def stochastic(self) -> bool:
        """Whether projections are drawn."""
        return self.n_projections is not None

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """Sum of squares of every row."""
        inputs = map_leaves(_leaf, batch.inputs)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            outputs = batch.call(inputs).reshape(batch.n_rows, -1)
            sums = [outputs[:, k].sum() for k in range(outputs.shape[1])]
            if self.n_projections is not None:
                shape = batch.n_rows, self.n_projections, outputs.shape[1]
                vectors = torch.from_numpy(batch.rng.standard_normal(shape)).to(outputs)
                sums = [(outputs * vectors[:, j]).sum() for j in range(self.n_projections)]
            total = sum((_squares(slopes) for slopes in _slopes(sums, inputs)), start=0.0)
        return {"jacobian": total / (self.n_projections or 1)}  # type: ignore[dict-item]


class InputNoise(Penalty):
    """What noise in the inputs adds to the loss, ``R = mean_i E l(f(x_i + sigma xi)) - l(f(x_i))``.

    The noise xi is standard normal and fresh at each step, so a network that was trained with it
    follows ``L + R`` with coefficient 1. For squared error of a linear model ``R = sigma^2 sum
    theta^2`` [1]_; linear models whose outputs do not meet in the loss have the exact expectation,
    all others a mean over draws, each with its mirror image.

    Parameters
    ----------
    sigma : float or "fit", default=0.1
        Standard deviation of the noise, in the units of the inputs; "fit" estimates it, between
        .01 and 3, with the same draws at all values. Of a linear model with squared error the
        coefficient and ``sigma^2`` are one number, and of others nearly so where it is small.
    n_draws : int, default=8
        Pairs of draws for each row that are averaged.

    References
    ----------
    .. [1] Bishop (1995), Training with Noise is Equivalent to Tikhonov Regularization.

    Examples
    --------
    >>> net = torch.nn.Linear(1, 1)
    >>> loss = torch.nn.MSELoss(reduction="none")
    >>> batch = RowBatch.of(net, torch.ones(9, 1), torch.ones(9, 1), loss=loss)
    >>> InputNoise(0.1).rows(batch)["input_noise"].shape
    torch.Size([9])
    """

    stochastic = True
    _allowed: ClassVar = {"sigma": number(above=0), "n_draws": integer(1)}
    shapes: ClassVar = {"sigma": (0.01, 3.0)}

    def __init__(self, sigma: Any = 0.1, n_draws: int = 8):
        self.sigma = sigma
        self.n_draws = n_draws

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """Mean loss over the draws less the loss of every row."""
        exact = batch.coef is not None and _separable(batch)
        noisy = self._exact(batch) if exact else self._drawn(batch)
        return {"input_noise": noisy - batch.losses()}

    def _exact(self, batch: RowBatch) -> Tensor:
        """The noise of a linear predictor is normal: Gauss-Hermite quadrature."""
        assert batch.coef is not None
        nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
        size = self.sigma * batch.coef.norm(dim=1)
        pairs = zip(nodes, weights / weights.sum(), strict=True)
        parts = [w * batch.losses(batch.outputs + float(x) * size) for x, w in pairs]
        return torch.stack(parts).sum(0)

    def _drawn(self, batch: RowBatch) -> Tensor:
        places = [t for t in tensors_in((batch.inputs,)) if t.is_floating_point()]
        if not places:
            raise ValueError(
                "Expected inputs of floating-point numbers for noise in them, got integers alone."
            )
        sizes = [t[0].numel() for t in places]
        # Row after row, so that blocks of any size have the same noise.
        drawn = batch.rng.standard_normal((batch.n_rows, self.n_draws, sum(sizes)))
        total: Any = 0.0
        for noise in torch.from_numpy(drawn).unbind(1):
            for sign in (self.sigma, -self.sigma):
                parts = iter(torch.split(sign * noise, sizes, dim=1))

                def shifted(t: Tensor, parts: Iterator[Tensor] = parts) -> Tensor:
                    dense = t.to_dense() if t.is_sparse else t
                    return dense + next(parts).reshape(t.shape).to(dense)

                inputs = map_leaves(
                    lambda t: shifted(t) if t.is_floating_point() else t, batch.inputs
                )
                total = total + batch.losses(batch.call(inputs))
        mean: Tensor = total / (2 * self.n_draws)
        return mean


class Mixup(Penalty):
    """What mixup adds to the loss, ``R = E l(f(x_mix), y_mix) - L`` over partners and shares [1]_.

    Every row is mixed with a random partner, ``x_mix = s x + (1 - s) x'`` with s from a beta
    distribution, and its loss is ``s l(f(x_mix), y) + (1 - s) l(f(x_mix), y')``; so a network that
    was trained so follows ``L + R`` with coefficient 1. Partners are from all rows; from those of
    the batch in a training loop. For torch modules and skorch nets.

    Parameters
    ----------
    alpha : float, default=0.2
        Parameter of the beta distribution of the shares.
    n_draws, random_state : int, default=8 and 0
        Partners of each row that are averaged, and seed of partners and shares.

    References
    ----------
    .. [1] Zhang, Cisse, Dauphin and Lopez-Paz (2018), mixup: Beyond Empirical Risk Minimization.

    Examples
    --------
    >>> loss = torch.nn.MSELoss(reduction="none")
    >>> batch = RowBatch.of(torch.nn.Linear(1, 1), torch.ones(9, 1), torch.ones(9, 1), loss=loss)
    >>> abs(Mixup().terms(batch.params, batch)["mixup"].item()) < 1e-6  # all rows are alike
    True
    """

    stochastic = True
    _allowed: ClassVar = {"alpha": number(above=0), "n_draws": integer(1), "random_state": SEED}

    def __init__(self, alpha: float = 0.2, n_draws: int = 8, random_state: int = 0):
        self.alpha = alpha
        self.n_draws = n_draws
        self.random_state = random_state

    def terms(self, params: Params, problem: Problem | None) -> dict[str, Tensor]:
        """Mean loss of mixed rows less that of the rows."""
        self.check_parameters()
        found = self._problem(problem)
        values = []
        for k in range(self.n_draws):
            with self._mixed(params, found, k) as mixed:
                values.append(mixed.terms(params, found)["mixup"])
        return {"mixup": torch.stack(values).mean(0)}

    def full_gradient(self, params: Params, problem: Problem) -> dict[str, Params]:
        """Gradient of the term, in two passes over the rows for each draw."""
        found = self._problem(problem)
        total = {name: torch.zeros_like(t) for name, t in params.items()}
        for k in range(self.n_draws):
            with self._mixed(params, found, k) as mixed:
                (columns,) = columns_of_leaves([Leaf(mixed, tuple(params))], params, found)
                for name, t in params.items():
                    total[name] += columns.columns(name, t)[0] / self.n_draws
        return {"mixup": total}

    def _problem(self, problem: Problem | None) -> Problem:
        if problem is None:
            raise ValueError(
                "Mixup is a mean over rows of data, and got the parameters alone; give X and y."
            )
        found: Problem = BatchProblem.of(problem, drawn=True)
        if found.n_rows is None or not found.is_net:
            raise ValueError(
                f"Expected a torch module or skorch net on rows that can be picked by number for "
                f"mixup, got {found.model_name}; give arrays or a Dataset with a length."
            )
        return found

    @contextlib.contextmanager
    def _mixed(self, params: Params, problem: Problem, k: int) -> Iterator[_Mixed]:
        """The loss of mixed rows as a penalty on rows, which reads the partners beside them."""
        n_rows = problem.n_rows or 0
        rng = np.random.default_rng([int(self.random_state), problem.draw, k])
        partners, shares = rng.permutation(n_rows), rng.beta(self.alpha, self.alpha, n_rows)
        others = problem.take(partners.astype(np.int64), np.ones(n_rows))
        with closing(others.row_batches(params)) as batches:
            yield _Mixed(batches, torch.from_numpy(shares))


class _Mixed(Penalty):
    """Loss of rows that are mixed with others, read along with them."""

    def __init__(self, others: Iterator[RowBatch], shares: Tensor):
        self.others = others
        self.shares = shares

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        other = next(self.others)
        share, self.shares = self.shares[: batch.n_rows], self.shares[batch.n_rows :]
        share = share.to(batch.weight)
        partners: list[Tensor] = []
        map_leaves(partners.append, other.inputs)
        rest = iter(partners)

        def mixed(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                raise ValueError(f"Expected floating-point inputs for mixup, got {t.dtype}.")
            own = share.reshape(-1, *[1] * (t.ndim - 1)).to(t)
            return own * t + (1 - own) * next(rest)

        outputs = batch.call(map_leaves(mixed, batch.inputs))
        losses = share * batch.losses(outputs)
        losses = losses + (1 - share) * batch.losses(outputs, other.target)
        return {"mixup": losses - batch.losses()}


class DropoutQuadratic(Penalty):
    """Quadratic approximation of dropout of the inputs [1]_, of one quadratic form per row.

    ``R = q / (2 (1 - q)) mean_i sum_j x_ij^2 sum_kl J_kj l''_kl J_lj``, J the derivatives of the
    outputs in the inputs and ``l''`` those of the loss in the outputs. For generalized linear
    models J is the coefficients; for squared error R is exact, for others as q goes to zero. The
    penalty of dropout itself is :class:`Dropout`.

    Parameters
    ----------
    q : float, default=0.5
        Rate at which inputs are dropped.

    References
    ----------
    .. [1] Wager, Wang and Liang (2013), Dropout Training as Adaptive Regularization.

    Examples
    --------
    >>> net = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(net.weight, 2.0)
    >>> loss = torch.nn.MSELoss(reduction="none")
    >>> batch = RowBatch.of(net, torch.ones(1, 1), torch.ones(1, 1), loss=loss)
    >>> DropoutQuadratic(0.5).rows(batch)["dropout_quadratic"].tolist()  # q / (1 - q) theta^2
    [4.0]
    """

    _allowed: ClassVar = {"q": number(least=0, below=1)}

    def __init__(self, q: float = 0.5):
        self.q = q

    def rows(self, batch: RowBatch) -> dict[str, Tensor]:
        """The quadratic form of every row."""
        inputs = map_leaves(_leaf, batch.inputs)
        flat_inputs = [t.detach().square() for t in tensors_in((inputs,)) if t.requires_grad]
        with sdpa_kernel(SDPBackend.MATH):
            outputs = batch.call(inputs)
            z = outputs.reshape(batch.n_rows, -1)
            losses = batch.losses(outputs)
            (slope,) = torch.autograd.grad(losses.sum(), outputs, create_graph=True)
            slope = slope.reshape(z.shape)
            columns = range(z.shape[1])
            curved = slope.requires_grad
            jacobian = list(_slopes([z[:, k].sum() for k in columns], inputs))
            total: Any = torch.zeros_like(losses)
            for k in columns if curved else ():
                (second,) = torch.autograd.grad(slope[:, k].sum(), outputs, create_graph=True)
                second = second.reshape(z.shape)
                for m in columns:
                    parts = zip(flat_inputs, jacobian[k], jacobian[m], strict=True)
                    form = sum((x * a * b).flatten(1).sum(1) for x, a, b in parts)
                    total = total + second[:, m] * form
        return {"dropout_quadratic": self.q / (2 * (1 - self.q)) * total}


def _leaf(tensor: Tensor) -> Tensor:
    """A copy of the inputs that a derivative is taken in."""
    if not tensor.is_floating_point():
        return tensor
    dense = tensor.to_dense() if tensor.is_sparse else tensor
    return dense.detach().clone().requires_grad_()


def _slopes(sums: list[Tensor], inputs: Any) -> Iterator[tuple[Tensor, ...]]:
    """Derivatives of sums over rows in all inputs."""
    leaves = [t for t in tensors_in((inputs,)) if t.requires_grad]
    if not leaves:
        raise ValueError(
            "Expected inputs of floating-point numbers for derivatives in them, got integers alone."
        )
    for value in sums:
        yield torch.autograd.grad(value, leaves, create_graph=True, materialize_grads=True)


def _squares(slopes: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([s.reshape(len(s), -1).square().sum(1) for s in slopes]).sum(0)


def _separable(batch: RowBatch) -> bool:
    """Whether the outputs of a linear model do not meet in the loss."""
    losses = batch.model.loss
    return losses is not None and getattr(losses, "kind", None) != "cross_entropy"
