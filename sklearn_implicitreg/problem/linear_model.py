"""Given coefficients as a trained model."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from sklearn_implicitreg.problem.parameters import as_array, as_numbers, shown

_OF_CLASSES = {"bce_with_logits", "cross_entropy", "log_loss"}
_OF_CLASSES |= {"hinge", "modified_huber", "perceptron", "squared_hinge"}
_LOG_LINK = {"gamma", "poisson", "poisson_nll"}


class LinearModel(BaseEstimator):
    """A coefficient vector as a trained model: ``X coef' + intercept`` with a loss.

    For coefficients from a solver, a checkpoint or a table; ``fit`` does nothing.

    Parameters
    ----------
    coef : array-like of shape (p,) or (K, p)
        Trained coefficients, a row per output or class; the index of a Series names the features.
    intercept : float, array-like of shape (K,) or None, default=None
        Trained intercept, even a zero: it is profiled out of the Hessian. None if there is none.
    loss : str, nn loss or callable(output, target), default="squared_error"
        The loss of the training, by the names that ``loss=`` of the estimators takes for linear
        models; ``"poisson"`` and ``"gamma"`` are half-deviances with a log link.
    classes : array-like of shape (n_classes,), default=None
        Labels in the order of the rows of ``coef``; by default 0, 1, ... of a classifier's loss.

    Attributes
    ----------
    coef_, intercept_ : ndarray of shape (p,) or (K, p), float or ndarray of shape (K,)
        As given; the intercept is 0.0 if the model has none.
    classes_ : ndarray of shape (n_classes,)
        Labels of a classifier.
    n_features_in_, feature_names_in_ : int, ndarray of shape (p,)
        Number of features, and their names where ``coef`` has them.

    Examples
    --------
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator, LinearModel
    >>> X, y = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([4.0, 3.0])
    >>> theta = np.linalg.solve(X.T @ X / 2 + 0.5 * np.eye(2), X.T @ y / 2)  # alpha/n = .5
    >>> est = ImplicitRegularizationEstimator(LinearModel(theta)).fit(X, y)
    >>> est.coef_.round(12).tolist()
    [0.5]
    """

    def __init__(
        self, coef: Any, intercept: Any = None, *, loss: Any = "squared_error", classes: Any = None
    ):
        self.coef = coef
        self.intercept = intercept
        self.loss = loss
        self.classes = classes

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> LinearModel:
        """Do nothing: the coefficients are given.

        Parameters
        ----------
        X, y, sample_weight
            Ignored.

        Returns
        -------
        self
        """
        return self

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """Mean of the target by the inverse link of the loss, or the label.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.

        Returns
        -------
        ndarray of shape (n,) or (n, K)
        """
        eta = self._predictor(X)
        if self._of_classes:
            codes = eta.argmax(axis=1) if eta.ndim == 2 else (eta > 0).astype(np.intp)
            return np.asarray(self.classes_[codes])
        named = isinstance(self.loss, str) and self.loss in _LOG_LINK
        logs = named or getattr(self.loss, "log_input", False)  # of torch's PoissonNLLLoss
        return np.asarray(np.exp(eta) if logs else eta)

    @available_if(lambda self: self._of_classes)  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> npt.NDArray[Any]:
        """Linear predictor of a classifier.

        Parameters
        ----------
        X : array-like of shape (n, p)
            Features.

        Returns
        -------
        ndarray of shape (n,) or (n, K)
        """
        return self._predictor(X)

    def _predictor(self, X: Any) -> npt.NDArray[Any]:
        X = validate_data(self, X, reset=False, accept_sparse="csr")
        eta: npt.NDArray[Any] = np.asarray(X @ self.coef_.T) + self.intercept_
        return eta[:, 0] if self._of_classes and eta.ndim == 2 and eta.shape[1] == 1 else eta

    @property
    def coef_(self) -> npt.NDArray[Any]:
        """Coefficients as an array of floats, of shape (p,) or (K, p)."""
        coef = as_array(self.coef)
        if coef.ndim not in (1, 2) or coef.dtype.kind not in "fiub":
            raise ValueError(
                f"Expected coef as numbers of shape (p,) or (K, p), got {coef.dtype} of shape "
                f"{coef.shape}."
            )
        return coef if coef.dtype.kind == "f" else coef.astype(np.float64)

    @property
    def intercept_(self) -> Any:
        """Intercept, a number or one per row of coef; 0.0 if there is none."""
        if self.intercept is None:
            return 0.0
        shape = self.coef_.shape[:-1]
        intercept = as_numbers("intercept", self.intercept)
        if intercept.size != max(1, int(np.prod(shape))):
            raise ValueError(
                f"Expected one intercept for each row of coef of shape {self.coef_.shape}, got "
                f"{intercept.size}."
            )
        return intercept.reshape(shape) if shape else float(intercept.reshape(()))

    @property
    def fit_intercept(self) -> bool:
        """Whether the model has an intercept."""
        return self.intercept is not None

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """Labels of a classifier."""
        if not self._of_classes:
            raise AttributeError("A LinearModel without classes is a regressor.")
        n_rows = self.coef_.shape[0] if self.coef_.ndim == 2 else 1
        n_classes = max(2, n_rows)
        if self.classes is None:
            return np.arange(n_classes)
        classes = np.asarray(self.classes)
        if classes.shape != (n_classes,):
            raise ValueError(
                f"Expected {n_classes} classes for coef of shape {self.coef_.shape}, got "
                f"{shown(self.classes)}."
            )
        return classes

    @property
    def n_features_in_(self) -> int:
        """Number of features."""
        return int(self.coef_.shape[-1])

    @property
    def feature_names_in_(self) -> npt.NDArray[np.object_]:
        """Names of the features, from a Series or a DataFrame of coefficients."""
        labels = {pd.Series: "index", pd.DataFrame: "columns"}
        names = getattr(self.coef, labels.get(type(self.coef), ""), ())
        if not len(names) or not all(isinstance(name, str) for name in names):
            raise AttributeError("The coefficients have no names.")
        return np.asarray(names, dtype=object)

    @property
    def _of_classes(self) -> bool:
        named = isinstance(self.loss, str) and self.loss in _OF_CLASSES
        return self.classes is not None or named

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier" if self._of_classes else "regressor"
        tags.input_tags.sparse = True
        return tags
