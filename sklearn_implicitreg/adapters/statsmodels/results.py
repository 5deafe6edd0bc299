"""Results of statsmodels: what each of its models minimizes over its own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_implicitreg.adapters.linear.fitted import fitted_problem
from sklearn_implicitreg.adapters.linear.given import adapt_given
from sklearn_implicitreg.adapters.linear.losses import LOSSES, Array, Loss
from sklearn_implicitreg.adapters.linear.problems import LinearProblem
from sklearn_implicitreg.adapters.linear.rows import Rows, regression_rows
from sklearn_implicitreg.adapters.registry import Data, Options
from sklearn_implicitreg.adapters.statsmodels.families import deviance_of, with_offset
from sklearn_implicitreg.adapters.statsmodels.likelihoods import (
    binary_or_count,
    dispersion_of,
    multinomial,
    quantile,
    robust,
)
from sklearn_implicitreg.problem.conventions import CONVENTIONS
from sklearn_implicitreg.problem.linear_model import LinearModel

_CONSTANT_SCALE = ("Binomial", "NegativeBinomial", "Poisson")


@dataclass(frozen=True)
class _Given:
    """Validated rows, and whether they are those that the model was made with."""

    X: Array  # (n, p)
    y: Array  # (n, 1)
    sample_weight: Array  # (n,), ones where none were given
    weighted: bool
    own: bool


def _coefficients(results: Any) -> LinearModel:
    """Coefficients without a dispersion behind them; one row for each class but the first."""
    params = np.asarray(results.params)
    return LinearModel(params[: len(params) - _n_behind(results.model)].T)


def _n_behind(model: Any) -> int:
    """Number of parameters behind the coefficients, which have names as well."""
    return int(getattr(model, "k_extra", 0))


def _names(model: Any) -> list[str]:
    """Names of the columns; none after ``remove_data``."""
    names = list(map(str, model.exog_names or ()))
    return names[: len(names) - _n_behind(model)]


def _rows(results: Any, data: Data) -> _Given:
    """Rows in the order of the parameters."""
    model = results.model
    ordered = replace(data, X=_ordered(data.X, model))
    X, y, weight = regression_rows(_coefficients(results), ordered)
    exog, endog = (np.asarray(getattr(model, name, None)) for name in ("exog", "endog"))
    own = np.array_equal(exog, X) and np.array_equal(endog.reshape(-1), y[:, 0])
    return _Given(X, y, weight, data.sample_weight is not None, own)


def _ordered(X: Any, model: Any) -> Any:
    """Columns of a DataFrame in the order of the parameters, as an array."""
    if not isinstance(X, pd.DataFrame):
        return X[:, None] if isinstance(X, np.ndarray) and X.ndim == 1 else X
    names = _names(model)
    missing = [name for name in names if name not in X.columns]
    if not missing and len(X.columns) == len(names):
        return X[names].to_numpy()
    if isinstance(getattr(model.data, "orig_exog", None), pd.DataFrame):
        raise ValueError(
            f"Expected the columns {names} of the design, got {list(X.columns)}, missing "
            f"{missing}; call fit() without X and y, which takes those that the results hold, or "
            "give what a formula made of the data: results.model.exog."
        )
    return X.to_numpy()


def _named(results: Any) -> dict[str, Any]:
    """Model, parameters and features by the names of statsmodels."""
    model = results.model
    coef, names = _coefficients(results).coef_, tuple(_names(model)) or None
    p = coef.shape[-1]
    every = np.arange(p) if coef.ndim == 1 else np.arange(len(coef) * (p + 1)).reshape(-1, p + 1)
    constant = getattr(model.data, "const_idx", None)
    columns = {"coef": every[..., :p]}
    if constant is not None and p > 1:  # a parameter of its own
        kept = np.arange(p) != constant
        columns = {"coef": every[..., :p][..., kept], "const": every[..., [constant]]}
    return {"model_name": type(model).__name__, "columns": columns, "feature_names": names}


def _problem(results: Any, rows: Rows, loss: Loss, options: Options, **known: Any) -> LinearProblem:
    """Problem of coefficients under the names of their model."""
    given = _coefficients(results)
    return fitted_problem(given, rows, loss, options, **_named(results), **known)


def _least_squares(results: Any, data: Data, options: Options) -> LinearProblem:
    """OLS and WLS: mean of the squared errors over the total weight."""
    rows, model = _rows(results, data), results.model
    weight = rows.sample_weight
    if type(model).__name__ != "OLS" and not rows.weighted:
        _check_own(rows, "weights", "give sample_weight, or")
        weight = np.asarray(model.weights, dtype=np.float64)
    loss, convention = LOSSES["squared_error"], CONVENTIONS["OLS"]
    return _problem(results, (rows.X, rows.y, weight), loss, options, convention=convention)


def _check_own(rows: _Given, what: str, advice: str = "give") -> None:
    """Raise ValueError for other rows where the model has numbers for each of its own."""
    if not rows.own:
        raise ValueError(
            f"Expected the rows that the model was made with, in their order, got others: its "
            f"{what} belong to these; {advice} results.model.exog and results.model.endog."
        )


def _generalized(results: Any, data: Data, options: Options) -> LinearProblem:
    """GLS and GLSAR: squared errors of whitened rows over the sum of inverse variances."""
    rows, model = _rows(results, data), results.model
    if rows.weighted:
        raise ValueError(
            f"Expected no sample_weight, got one: the rows of {type(model).__name__} are "
            "correlated, and its sigma is their weight; leave it out."
        )
    _check_own(rows, "sigma")
    X, y = np.asarray(model.whiten(rows.X)), np.asarray(model.whiten(rows.y[:, 0]))
    whitened = (X, y[:, None], _precision(model, len(y)))
    loss = replace(LOSSES["squared_error"], words="squared error of whitened rows")
    known: dict[str, Any] = {"how": "over the sum of inverse variances"}
    known |= {"convention": CONVENTIONS["OLS"], "loss_weight": np.ones((len(y), 1))}
    return _problem(results, whitened, loss, options, **known)


def _precision(model: Any, n_rows: int) -> Array:
    """Inverse variance of each row, by which ``fit_regularized`` scales its alpha."""
    sigma = getattr(model, "sigma", None)
    if sigma is None or np.ndim(sigma) == 0:
        return np.ones(n_rows)
    variance = np.diag(sigma) if np.ndim(sigma) == 2 else np.asarray(sigma)
    return np.asarray(1.0 / variance, dtype=np.float64)


def _glm(results: Any, data: Data, options: Options) -> LinearProblem:
    """Half-deviances; frequency weights and trials count rows, variance weights do not."""
    model = results.model
    y, trials = _trials(_successes(data.y, model))
    rows = _rows(results, replace(data, y=y))
    count, variance, offset = rows.sample_weight, np.ones(len(rows.y)), np.zeros(len(rows.y))
    if rows.own:
        offset = offset + model._offset_exposure
        trials = np.asarray(model.n_trials, dtype=np.float64)
        if not rows.weighted:
            count, variance = np.asarray(model.freq_weights), np.asarray(model.var_weights)
    elif np.any(np.asarray(model._offset_exposure) != 0):
        _check_own(rows, "offset or exposure")
    elif not rows.weighted and (model._has_freq_weights or model._has_var_weights):
        _check_own(rows, "freq_weights and var_weights", "give sample_weight, or")
    count = np.asarray(count * trials, dtype=np.float64)
    loss, y_coded = with_offset(deviance_of(model.family), rows.y, offset)
    scale = (2.0 if loss.whole else 1.0) * _ridge_scale(results)
    own = CONVENTIONS["GLM"]
    l2, l1 = scale * float(own.l2 or 0.0), scale * float(own.l1 or 0.0)
    weighted = np.any(variance != 1)
    return _problem(
        results,
        (rows.X, y_coded, count),
        loss,
        options,
        how="times var_weights, mean over rows or freq_weights" if weighted else None,
        convention=replace(own, l2=l2, l1=l1, per_row=True),
        loss_weight=(count * variance)[:, None],
        n_effective=float(count.sum()) / len(count),
    )


def _successes(y: Any, model: Any) -> Any:
    """1.0 for rows of the category that a formula made the success, as patsy names it."""
    names = model.endog_names
    if np.ndim(y) != 1 or isinstance(names, str) or len(names) != 2:
        return y
    ends = [[str(name).endswith(f"[{value}]") for value in np.asarray(y)] for name in names]
    return np.array(ends[0], dtype=np.float64) if np.any(ends, axis=0).all() else y


def _trials(y: Any) -> tuple[Any, Any]:
    """Proportions and numbers of trials of (successes, failures)."""
    pairs = np.asarray(y)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        return y, 1.0
    trials = pairs.sum(axis=1)
    return pairs[:, 0] / trials, trials


def _one_predictor(results: Any, data: Data, options: Options) -> LinearProblem:
    """Discrete models of one predictor: minus the log-likelihood, its dispersion held."""
    model, rows = results.model, _rows(results, data)
    parts = [getattr(model, name, 0.0) for name in ("offset", "exposure")]  # logarithms
    if any(part is None or np.any(np.asarray(part) != 0) for part in parts):
        _check_own(rows, "offset or exposure")
    offset = np.zeros(len(rows.y)) + sum(parts)
    loss, y = with_offset(binary_or_count(results), rows.y, offset)
    dispersion = dispersion_of(results)
    known: dict[str, Any] = {"convention": CONVENTIONS["Logit"]}
    if dispersion is not None:
        known["notes"] = (f"The dispersion is held at its value, {dispersion:.4g}.",)
    return _problem(results, (rows.X, y, rows.sample_weight), loss, options, **known)


def _multinomial(results: Any, data: Data, options: Options) -> LinearProblem:
    """MNLogit: cross-entropy, a row of coefficients for each class but the first."""
    model = results.model
    codes = _codes(data.y, model)
    several = np.arange(model.J)[1:] == codes[:, None]
    rows = _rows(results, replace(data, y=several.astype(np.float64)))
    known = {"how": "mean over rows", "convention": CONVENTIONS["Logit"]}
    known["output_names"] = tuple(str(model._ynames_map[j]) for j in range(1, model.J))
    return _problem(
        results, (rows.X, rows.y, rows.sample_weight), multinomial(results), options, **known
    )


def _codes(y: Any, model: Any) -> NDArray[np.intp]:
    """Numbers of the classes of rows, from their labels or from a column for each class."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == model.J:
        return np.asarray(labels.argmax(axis=1))
    places = {str(name): code for code, name in model._ynames_map.items()}
    given = [_label(value) for value in labels.reshape(-1).tolist()]
    unknown = sorted(set(given) - set(places))
    if unknown:
        raise ValueError(
            f"Expected y with the classes {list(places)} of the training, got {unknown[:5]}; call "
            "fit() without X and y, which takes those that the results hold."
        )
    return np.array([places[value] for value in given], dtype=np.intp)


def _label(value: Any) -> str:
    """A class as statsmodels names it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _robust(results: Any, data: Data, options: Options) -> LinearProblem:
    """RLM: mean of the norm of residuals over the scale, which is held."""
    rows = _rows(results, data)
    notes = (f"The scale of the residuals is held at its value, {results.scale:.4g}.",)
    whole = (rows.X, rows.y, rows.sample_weight)
    return _problem(results, whole, robust(results), options, notes=notes)


def _quantiles(results: Any, data: Data, options: Options) -> LinearProblem:
    """QuantReg: mean of the quantile loss."""
    rows = _rows(results, data)
    return _problem(results, (rows.X, rows.y, rows.sample_weight), quantile(results), options)


def _ridge_scale(results: Any) -> float:
    """The scale by which a ridge of a GLM, and no other fit of it, divides its loss."""
    inner, model = getattr(results, "_results", results), results.model
    ridge = type(inner).__name__ == "RegularizedResults" and not hasattr(inner, "converged")
    if not ridge or type(model.family).__name__ in _CONSTANT_SCALE:
        return 1.0
    return float(model.estimate_scale(model.predict(np.asarray(results.params))))


_MODELS: dict[str, Callable[[Any, Data, Options], LinearProblem]] = {
    "OLS": _least_squares,
    "WLS": _least_squares,
    "GLS": _generalized,
    "GLSAR": _generalized,
    "GLM": _glm,
    **dict.fromkeys(["Logit", "Probit", "Poisson", "GeneralizedPoisson"], _one_predictor),
    **dict.fromkeys(["NegativeBinomial", "NegativeBinomialP"], _one_predictor),
    "MNLogit": _multinomial,
    "RLM": _robust,
    "QuantReg": _quantiles,
}


def _kind(results: Any) -> str:
    """Class of the model of results, one of those that are known."""
    kind = type(getattr(results, "model", None)).__name__
    if kind not in _MODELS:
        raise TypeError(
            f"Expected results of one of statsmodels' {sorted(_MODELS)}, whose loss is of one "
            f"linear predictor, got {kind}; where its loss is one as well, give "
            "LinearModel(results.params, loss=...) with a callable(output, target), else a torch "
            "module with its loss."
        )
    return kind


def _adapt_results(results: Any, data: Data, options: Options) -> LinearProblem:
    """Problem of results, by the class of their model."""
    kind = _kind(results)
    if options.loss == "auto":
        return _MODELS[kind](results, data, options)
    if kind == "MNLogit":
        raise ValueError(
            f"Expected loss='auto' for MNLogit, got {options.loss!r}: its first class has no "
            "coefficients; give LinearModel(coef, loss=...) with a row for each class."
        )
    ordered = replace(data, X=_ordered(data.X, results.model))
    return adapt_given(_coefficients(results), ordered, options, **_named(results))


def held(results: Any) -> tuple[Any, Any]:
    """Rows that the results hold, the design as a DataFrame where the model was made with one."""
    kind, model = _kind(results), results.model
    if model.exog is None or model.endog is None:
        raise ValueError(
            "Expected X and y, got none, and the results hold none since remove_data(); give the "
            "rows of the training."
        )
    X, y = model.exog, model.endog
    if isinstance(getattr(model.data, "orig_exog", None), pd.DataFrame):
        X = pd.DataFrame(X, columns=_names(model))
    if kind == "MNLogit":
        y = np.array([str(model._ynames_map[code]) for code in y.tolist()])
    return X, y


HANDLERS = {"Results": _adapt_results, "ResultsWrapper": _adapt_results}
