"""What noise along one path costs the penalty that was fitted to it: a bound."""

from __future__ import annotations

import numpy as np

from sklearn_implicitreg.problem.parameters import FLAG, checked, integer, number

_SIZE = number(least=0)


@checked(
    n_steps=integer(1),
    variation=_SIZE,
    increment=_SIZE,
    alpha=number(above=0, below=1),
    log_covering=_SIZE,
    radius=_SIZE,
    noise=_SIZE,
    fixed_target=FLAG,
)
def trajectory_bound(  # noqa: PLR0913
    n_steps: int,
    *,
    variation: float,
    increment: float,
    alpha: float = 0.05,
    log_covering: float = 0.0,
    radius: float = 0.0,
    noise: float = 0.0,
    fixed_target: bool = True,
) -> float:
    r"""Bound on what noise along one path costs the penalty that was fitted to it.

    With targets :math:`Y_t` of mean :math:`m_t` given the past and noise
    :math:`\xi_t = Y_t - m_t`, let E be the mean over T steps of
    :math:`\|m_t - \nabla R(\theta_t)\|^2_{W_t}`, and ``R^`` the penalty of a class that fits the
    targets best. With probability at least ``1 - alpha``, E of ``R^`` is above E of a penalty
    ``R*`` of the class by at most

    .. math::
        \tfrac1T \Big[\sqrt{2 v (N + \log\tfrac1\alpha)}
        + \tfrac b3 (N + \log\tfrac1\alpha)\Big]
        + 2 \epsilon \tfrac1T \sum_t \|W_t \xi_t\| .

    R* must be fixed in advance, such as the penalty that was put in on purpose; for the minimizer
    of E pairs of penalties are covered, by 2N, and the last term counts twice.

    Parameters
    ----------
    n_steps : int
        Steps of the path, T.
    variation : float
        v: no penalty of the class has a sum over the steps of the variances, given the past, of
        ``D_t = 2 <W xi_t, grad R - grad R*>`` above it.
    increment : float
        b: no ``|D_t|`` is above it.
    alpha : float, default=0.05
        Probability that the bound may fail with.
    log_covering : float, default=0.0
        N: log of the number of penalties whose gradients come within ``radius`` of all others.
    radius, noise : float, default=0.0
        epsilon, 0 for a finite class, and mean over the steps of the norm of ``W xi_t``.
    fixed_target : bool, default=True
        Whether R* was fixed in advance.

    Returns
    -------
    bound : float

    Raises
    ------
    ValueError
        For a number that is out of its range.

    References
    ----------
    Rudoler, Tan, Hooker, Kording (2026), Theorem 3; Freedman (1975), Annals of Probability 3.

    Examples
    --------
    >>> round(trajectory_bound(100, variation=4.0, increment=0.5), 4)
    0.0539
    >>> round(trajectory_bound(100, variation=4.0, increment=0.5, log_covering=3.0), 4)
    0.0793
    """
    covered = 1 if fixed_target else 2  # penalties at a time
    exponent = covered * log_covering + np.log(1 / alpha)
    sums = np.sqrt(2 * variation * exponent) + increment / 3 * exponent
    return float(sums / n_steps + covered * 2 * radius * noise)
