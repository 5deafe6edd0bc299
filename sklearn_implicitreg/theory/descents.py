"""Spectral filters of gradient descent, stopped or averaged.

Every argument is in the units of ``L = (1/n) |y - X theta|^2``: ``lr`` is torch's on
:class:`torch.nn.MSELoss`, a time is ``lr`` times steps.
"""

from __future__ import annotations

from functools import partial

from sklearn_implicitreg.theory.checks import check_positive, check_steps, check_whole
from sklearn_implicitreg.theory.responses import averaged, descent, smoothed, stepped
from sklearn_implicitreg.theory.spectral import SpectralFilter

__all__ = ["exponential_average", "gradient_descent", "gradient_flow"]


def gradient_descent(
    lr: float,
    n_steps: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    average: bool = False,
) -> SpectralFilter:
    """Gradient descent on L, stopped: ``f = 1 - (1 - 2 lr s)^t``.

    With momentum m what is left is ``e_1 = 1 - h`` and ``e_(k+1) = (1 + m - h) e_k - m e_(k-1)``
    where ``h = 2 lr s``; with Nesterov's, ``e_1 = 1 - (1 + m) h`` and
    ``e_(k+1) = (1 - h) ((1 + m) e_k - m e_(k-1))``; for an average, the mean of ``e_1 .. e_t``.

    Parameters
    ----------
    lr : float
        Step size that multiplies the gradient of L, as in :class:`torch.optim.SGD`.
    n_steps : float
        Number of steps t; a whole number where momentum or an average is asked for.
    momentum : float, default=0.0
        Of the heavy ball, as in torch, without dampening.
    nesterov : bool, default=False
        Whether it is Nesterov's, as in torch.
    average : bool, default=False
        Whether the weights are the mean of the iterates 1 to t, the start left out.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty`.

    Raises
    ------
    ValueError
        If an argument is out of its range; for no step at all no penalty is finite.

    References
    ----------
    Ali, Kolter and Tibshirani (2019), *A continuous-time view of early stopping for least squares
    regression*, AISTATS. They step on half of L: their step size is ``2 lr``.

    Examples
    --------
    Against torch:

    >>> import numpy as np, torch
    >>> from sklearn_implicitreg.theory import gradient_descent, implicit_penalty
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    >>> theta = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    >>> optimizer = torch.optim.SGD([theta], lr=0.02, momentum=0.5)
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.mse_loss(torch.tensor(X) @ theta, torch.tensor(y))
    ...     loss.backward()
    ...     optimizer.step()
    >>> procedure = gradient_descent(lr=0.02, n_steps=10, momentum=0.5)
    >>> found = implicit_penalty(X, procedure, y=y).theta()
    >>> bool(np.max(np.abs(found - theta.detach().numpy())) < 1e-14)
    True
    """
    _check_steps(lr, n_steps, momentum, nesterov)
    extra = _momentum_told(momentum, nesterov)
    name = f"gradient_descent(lr={lr:g}, n_steps={n_steps}{extra}{', average=True' * average})"
    limit = _largest_stable(lr, momentum, nesterov)
    if not (momentum or average):
        return SpectralFilter(name, partial(descent, lr=lr, n_steps=n_steps), limit)
    check_whole("n_steps", n_steps)
    response = partial(
        averaged if average else stepped,
        lr=lr,
        n_steps=int(n_steps),
        momentum=momentum,
        nesterov=nesterov,
    )
    return SpectralFilter(name, response, limit)


def exponential_average(
    lr: float, n_steps: int, decay: float, momentum: float = 0.0, nesterov: bool = False
) -> SpectralFilter:
    """Moving average ``a_k = decay a_(k-1) + (1 - decay) theta_k`` of gradient descent on L.

    It begins at the start of the weights, ``a_0 = theta_0``.

    Parameters
    ----------
    lr : float
        Step size that multiplies the gradient of L.
    n_steps : int
        Number of steps.
    decay : float
        Share of the old average, at least 0 and below 1.
    momentum : float, default=0.0
        Of the descent, as for :func:`gradient_descent`.
    nesterov : bool, default=False
        Whether it is Nesterov's.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty`.

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import exponential_average
    >>> exponential_average(lr=0.1, n_steps=2, decay=0.5).values([1.0])  # 1 - (1 + .8 + 2 .64)/4
    array([0.23])
    """
    _check_steps(lr, n_steps, momentum, nesterov)
    check_whole("n_steps", n_steps)
    if not 0 <= decay < 1:
        raise ValueError(f"Expected 0 <= decay < 1, got {decay!r}.")
    extra = _momentum_told(momentum, nesterov)
    response = partial(
        smoothed,
        lr=lr,
        n_steps=int(n_steps),
        momentum=momentum,
        nesterov=nesterov,
        decay=decay,
    )
    name = f"exponential_average(lr={lr:g}, n_steps={n_steps}, decay={decay:g}{extra})"
    return SpectralFilter(name, response, _largest_stable(lr, momentum, nesterov))


def gradient_flow(time: float) -> SpectralFilter:
    """The flow ``d theta / d time = -grad L``, stopped: ``f = 1 - exp(-2 s time)``.

    Parameters
    ----------
    time : float
        Time of the flow; gradient descent in small steps takes ``lr * n_steps``.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty`.

    Raises
    ------
    ValueError
        If the time is not positive and finite.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import gradient_flow
    >>> gradient_flow(0.5).values([1.0]).round(6)
    array([0.632121])
    """
    check_positive("time", time)
    return SpectralFilter(f"gradient_flow(time={time:g})", partial(descent, lr=None, n_steps=time))


def _check_steps(lr: float, n_steps: float, momentum: float, nesterov: bool) -> None:
    """Arguments of a descent."""
    check_positive("lr", lr)
    check_steps(n_steps)
    if not 0 <= momentum < 1:
        raise ValueError(f"Expected 0 <= momentum < 1, got {momentum!r}.")
    if nesterov and not momentum:
        raise ValueError("Expected a momentum for nesterov=True, got 0.")


def _momentum_told(momentum: float, nesterov: bool) -> str:
    """Arguments of the momentum in the name of a filter."""
    return f", momentum={momentum:g}" * (momentum > 0) + ", nesterov=True" * nesterov


def _largest_stable(lr: float, momentum: float, nesterov: bool) -> float:
    """Eigenvalue from which on a descent diverges: ``1 / lr`` without momentum."""
    return (1 + momentum) / (lr * (1 + 2 * momentum if nesterov else 1))
