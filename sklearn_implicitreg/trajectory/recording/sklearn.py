"""Recorder for scikit-learn's callbacks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sklearn_implicitreg.trajectory.trajectory import Trajectory


class IterateRecorder:
    """Callback that keeps the iterates that a scikit-learn estimator hands out.

    Those of ``LogisticRegression(solver="lbfgs")`` are fitted models; an iteration of L-BFGS is no
    gradient step, so analyze each as an endpoint. :meth:`path` is for gradient steps.

    Attributes
    ----------
    iterates_ : list of estimators
        In their order, as if ``fit`` had stopped there.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> recorder = IterateRecorder()
    >>> model = LogisticRegression(max_iter=500)
    >>> model = model.set_callbacks(recorder)  # in scikit-learn 1.9 or later
    >>> _ = model.fit(*load_iris(return_X_y=True))
    >>> bool((recorder.iterates_[-1].coef_ == model.coef_).all())
    True
    """

    def __init__(self) -> None:
        self.iterates_: list[Any] = []

    def setup(self, estimator: Any, context: Any) -> None:
        """Forget the iterates of another fit."""
        self.iterates_ = []

    def teardown(self, estimator: Any, context: Any) -> None:
        """Nothing is left to do."""

    def on_fit_task_begin(self, estimator: Any, context: Any, **kwargs: Any) -> None:
        """Nothing is known yet."""

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, fitted_estimator: Any = None, **kwargs: Any
    ) -> bool:
        """Keep the iterate of a task; some tasks have none, the whole fit repeats the last."""
        is_iteration = not getattr(context, "max_subtasks", 0)
        if is_iteration and hasattr(fitted_estimator, "coef_"):
            self.iterates_.append(fitted_estimator)
        return False

    def path(self, lr: float | Iterable[float]) -> Trajectory:
        """Trajectory through the iterates, as gradient steps.

        Parameters
        ----------
        lr : float or iterable of floats
            Step size.

        Returns
        -------
        trajectory : Trajectory
        """
        return Trajectory.from_iterates(self.iterates_, lr)
