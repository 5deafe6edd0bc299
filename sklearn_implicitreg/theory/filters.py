"""Spectral filters of procedures: ridge, components, boosting, conjugate gradients, descent.

Every argument is in the units of ``L = (1/n) |y - X theta|^2``: a coefficient multiplies
``|theta|^2``, ``lr`` is torch's on :class:`torch.nn.MSELoss`, a time is ``lr`` times steps.
"""

from __future__ import annotations

from functools import partial

from sklearn_implicitreg.problem.parameters import FLAG, check, checked, integer, number, shown
from sklearn_implicitreg.theory.spectral import (
    SpectralFilter,
    averaged,
    boosted,
    descent,
    kept,
    krylov,
    shrunk,
    solved,
)

_POSITIVE, _SHARE, _COUNT = number(above=0), number(least=0, below=1), integer(1)


@checked(coef=_POSITIVE)
def ridge(coef: float) -> SpectralFilter:
    """Ridge regression: ``f = s / (s + coef)``.

    Parameters
    ----------
    coef : float
        Coefficient of ``|theta|^2`` added to L; ``alpha / n`` of scikit-learn's ``Ridge``.

    Returns
    -------
    SpectralFilter

    Raises
    ------
    ValueError
        If the coefficient is not positive and finite.

    Examples
    --------
    >>> ridge(0.5).values([1.5]), ridge(0.5).penalty([1.5])
    (array([0.75]), array([0.5]))
    """
    return SpectralFilter(f"ridge(coef={coef:g})", partial(shrunk, coef=coef))


@checked(k=_COUNT)
def principal_components(k: int) -> SpectralFilter:
    """Regression on the k leading principal components of X, taken as it is.

    The components are the eigenvectors of ``X'X/n``. The implied penalty is a constraint: none on
    the space kept, and weights held at the start in the directions dropped.

    Parameters
    ----------
    k : int
        Number of components.

    Returns
    -------
    SpectralFilter

    Raises
    ------
    ValueError
        If k is not a whole number of at least 1.

    Examples
    --------
    >>> principal_components(1).values([2.0, 1.0])
    array([1., 0.])
    """
    return SpectralFilter(f"principal_components(k={k})", partial(kept, k=int(k)), drops=True)


@checked(rate=number(above=0, most=1), n_steps=_COUNT)
def l2_boosting(rate: float, n_steps: int, learner: str | SpectralFilter = "ols") -> SpectralFilter:
    """L2 boosting of a linear base learner: ``f = 1 - (1 - rate * f_learner)^t``.

    Parameters
    ----------
    rate : float
        Share of a learner's fit that is added, above 0 and at most 1.
    n_steps : int
        Number of learners.
    learner : "ols" or SpectralFilter, default="ols"
        Base learner: least squares of minimum norm, or a filter such as ``ridge(coef)``.

    Returns
    -------
    SpectralFilter

    Raises
    ------
    ValueError
        If an argument is out of its range, or the learner has no filter.

    References
    ----------
    Bühlmann and Yu (2003), *Boosting with the L2 loss*, JASA 98.

    Examples
    --------
    >>> l2_boosting(0.5, 2).values([3.0]), l2_boosting(1.0, 2, ridge(1.0)).values([3.0])
    (array([0.75]), array([0.9375]))
    """
    named = isinstance(learner, str)
    if named and learner == "componentwise":
        raise ValueError(
            "Expected a learner that has a spectral filter, got 'componentwise': which column it "
            "takes depends on y, and no quadratic penalty gives its weights."
        )
    base = SpectralFilter("'ols'", solved) if named and learner == "ols" else learner
    if not isinstance(base, SpectralFilter):
        raise ValueError(
            f"Expected learner='ols' or a filter such as ridge(coef), got {shown(learner)}."
        )
    if base.needs_y or base.drops:
        raise ValueError(f"Expected a learner that is smooth in X alone, got {base.name}.")
    response = partial(boosted, rate=rate, n_steps=int(n_steps), base=base.response)
    return SpectralFilter(f"l2_boosting({rate:g}, {n_steps}, {base.name})", response, base.limit)


@checked(k=_COUNT)
def conjugate_gradient(k: int) -> SpectralFilter:
    """Steps of conjugate gradients on L, which are partial least squares with k components.

    What is left is ``prod_j (1 - s / ritz_j)`` over the Ritz values for the given y.

    Parameters
    ----------
    k : int
        Number of steps, or of components.

    Returns
    -------
    filter : SpectralFilter
        For :func:`implicit_penalty` with ``y=``.

    Raises
    ------
    ValueError
        If k is not a whole number of at least 1.

    Examples
    --------
    >>> from sklearn_implicitreg.theory import implicit_penalty
    >>> implicit_penalty([[1.0, 0.0], [0.0, 2.0]], conjugate_gradient(2), y=[1.0, 1.0]).theta()
    array([1. , 0.5])
    """
    return SpectralFilter(f"conjugate_gradient(k={k})", partial(krylov, k=int(k)), needs_y=True)


@checked(lr=_POSITIVE, n_steps=_POSITIVE, momentum=_SHARE, nesterov=FLAG, average=FLAG)
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
        Number of steps t; a whole number with momentum or an average.
    momentum, nesterov : float and bool, default=0.0 and False
        Momentum of the heavy ball or Nesterov's, as in torch, without dampening.
    average : bool, default=False
        Whether the weights are the mean of the iterates 1 to t, the start left out.

    Returns
    -------
    SpectralFilter

    Raises
    ------
    ValueError
        If an argument is out of its range; after no step no penalty is finite.

    References
    ----------
    Ali, Kolter and Tibshirani (2019), AISTATS; their step size, on half of L, is ``2 lr``.

    Examples
    --------
    >>> gradient_descent(lr=0.1, n_steps=2).values([1.0]).round(12)  # 1 - .8^2
    array([0.36])
    """
    text = ", average=True" * average
    if momentum or nesterov or average:
        share = None if average else 1.0
        return _iterated("gradient_descent", text, lr, n_steps, momentum, nesterov, share)
    response = partial(descent, lr=lr, n_steps=n_steps)
    return SpectralFilter(f"gradient_descent(lr={lr:g}, n_steps={n_steps})", response, 1 / lr)


@checked(lr=_POSITIVE, n_steps=_COUNT, decay=_SHARE, momentum=_SHARE, nesterov=FLAG)
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
    momentum, nesterov : float and bool, default=0.0 and False
        Of the descent, as for :func:`gradient_descent`.

    Returns
    -------
    SpectralFilter

    Raises
    ------
    ValueError
        If an argument is out of its range.

    Examples
    --------
    >>> exponential_average(lr=0.1, n_steps=2, decay=0.5).values([1.0])  # 1 - (1 + .8 + 2 .64)/4
    array([0.23])
    """
    text = f", decay={decay:g}"
    return _iterated("exponential_average", text, lr, n_steps, momentum, nesterov, 1 - decay)


@checked(time=_POSITIVE)
def gradient_flow(time: float) -> SpectralFilter:
    """The flow ``d theta / d time = -grad L``, stopped: ``f = 1 - exp(-2 s time)``.

    Parameters
    ----------
    time : float
        Time of the flow; gradient descent in small steps takes ``lr * n_steps``.

    Returns
    -------
    SpectralFilter

    Raises
    ------
    ValueError
        If the time is not positive and finite.

    Examples
    --------
    >>> gradient_flow(0.5).values([1.0]).round(6)
    array([0.632121])
    """
    response = partial(descent, lr=None, n_steps=time)
    return SpectralFilter(f"gradient_flow(time={time:g})", response)


def _iterated(
    name: str,
    text: str,
    lr: float,
    n_steps: float,
    momentum: float,
    nesterov: bool,
    share: float | None,
) -> SpectralFilter:
    if nesterov and not momentum:
        raise ValueError("Expected a momentum for nesterov=True, got 0.")
    check(name, {"n_steps": n_steps}, {"n_steps": _COUNT})
    extra = f", momentum={momentum:g}" * (momentum > 0) + ", nesterov=True" * nesterov
    return SpectralFilter(
        f"{name}(lr={lr:g}, n_steps={n_steps}{extra}{text})",
        partial(
            averaged, lr=lr, n_steps=int(n_steps), momentum=momentum, nesterov=nesterov, share=share
        ),
        limit=(1 + momentum) / (lr * (1 + 2 * momentum if nesterov else 1)),
    )
