"""From a trained model and its data to a `Problem`, by the class of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from torch import Tensor

from sklearn_implicitreg.problem import Problem
from sklearn_implicitreg.problem.conventions import Convention
from sklearn_implicitreg.problem.frozen import TRAINED_CLASSES, FrozenModel, names_of_class
from sklearn_implicitreg.problem.linear_model import LinearModel

# The package's own handlers, each in its module's HANDLERS by class name, loaded when needed.
_LIBRARIES = {
    "sklearn": "sklearn.models",
    "sklearn_implicitreg": "linear.given",
    "skorch": "skorch",
    "statsmodels": "statsmodels.results",
    "torch": "torch.models",
}


@dataclass(frozen=True)
class Data:
    """Rows as the user gave them.

    Parameters
    ----------
    X : object
        Features: an array, a table, a sparse matrix, a loader.
    y : object, default=None
        Targets.
    sample_weight : array-like of shape (n,), default=None
        Weights of the rows.
    """

    X: Any
    y: Any = None
    sample_weight: Any = None


@dataclass(frozen=True)
class Options:
    """What the estimator's parameters ask of an adapter.

    Parameters
    ----------
    loss, params, module_mode, batch_size, n_passes, device, dtype, random_state : object
        Those of `sklearn_implicitreg.ImplicitRegularizationEstimator`.
    trained_batch_size : int or None, default=None
        Size of the batches of the training, where the rows do not say it.
    norms_in_training : dict of str to bool or None, default=None
        Whether each normalization was in training state in the steps of a recorded training.
    completing : bool, default=False
        Whether the rows complete those of a fit and are taken as they come.
    penalized_intercept : bool, default=False
        Whether the penalty of a linear model covers the intercept.
    together : bool, default=False
        Whether the rows of all processes count that a distributed model lives on.
    """

    loss: Any = "auto"
    params: str | Callable[[str, Tensor], bool] = "auto"
    module_mode: str = "auto"
    batch_size: Any = "auto"
    n_passes: Any = "auto"
    device: Any = "auto"
    dtype: Any = "auto"
    random_state: Any = None
    trained_batch_size: int | None = None
    norms_in_training: Mapping[str, bool | None] | None = None
    completing: bool = False
    penalized_intercept: bool = False
    together: bool = False


Handler = Callable[[Any, Data, Options], Problem]
_REGISTERED: dict[str, Handler] = {}


def register(cls: type | str, handler: Handler) -> None:
    """Make the trained models of a class known to every estimator of the package.

    Parameters
    ----------
    cls : type or str
        The class, or its name with the module in which it is defined or a package above it, such
        as ``"xgboost.XGBRegressor"``: the library need not be imported. Subclasses that are not
        registered themselves are included.
    handler : callable(model, data: Data, options: Options) -> Problem
        What `adapt` calls for such a model; often one call of `linear_problem`, or of `adapt`
        for a model inside. A later registration of the class takes over, also from the package's
        own.

    Raises
    ------
    TypeError
        If ``cls`` is neither a class nor a dotted name, or the handler cannot be called.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_implicitreg import ImplicitRegularizationEstimator
    >>> class Halfway:
    ...     weights = np.array([1.0, 2.0])
    >>> def handler(model, data, options):
    ...     return linear_problem(data, options, coef=model.weights)
    >>> register(Halfway, handler)
    >>> est = ImplicitRegularizationEstimator(Halfway()).fit(np.eye(2), np.array([2.0, 4.0]))
    >>> est.coef_.round(12).tolist()
    [0.5]
    """
    name = f"{cls.__module__}.{cls.__qualname__}" if isinstance(cls, type) else cls
    if not isinstance(name, str) or "." not in name or not callable(handler):
        raise TypeError(
            "Expected a class or its dotted name, and a handler(model, data, options), got "
            f"{cls!r} and {handler!r}."
        )
    _REGISTERED[name] = handler
    TRAINED_CLASSES.add(name)


def adapt(model: Any, data: Data, options: Options) -> Problem:
    """Problem of a trained model, by the first class of its MRO that an adapter knows."""
    if isinstance(model, FrozenModel):
        model = model.model
    if options.loss is None:
        options = replace(options, loss="auto")
    for cls in type(model).__mro__:
        for name in names_of_class(cls) if _REGISTERED else ():
            if name in _REGISTERED:
                problem = _REGISTERED[name](model, data, options)
                if not isinstance(problem, Problem):
                    raise TypeError(
                        f"Expected a Problem from the handler of {name}, got {problem!r}; return "
                        "what linear_problem or adapt gives."
                    )
                return replace(problem, model_name=type(model).__name__)
        library = _LIBRARIES.get(cls.__module__.partition(".")[0])
        handlers: dict[str, Handler] = {} if library is None else _module(library).HANDLERS
        if cls.__name__ in handlers:
            return handlers[cls.__name__](model, data, options)
    if hasattr(model, "coef_") and hasattr(model, "intercept_"):
        given: Handler = _module("linear.given").adapt_given
        return given(model, data, options)
    raise TypeError(
        f"Expected a trained torch module, skorch net, scikit-learn linear or MLP model or results "
        f"of statsmodels, got {type(model).__name__}. {_instead(model)}; other classes are made "
        "known by sklearn_implicitreg.adapters.register."
    )


def _instead(model: Any) -> str:
    """What can be given where no adapter knows the class."""
    for name in ("estimators_", "calibrated_classifiers_", "estimator_"):
        if hasattr(model, name):
            what = f"its {name}" if name == "estimator_" else f"one of its {name}"
            what += " (its estimator)" if name == "calibrated_classifiers_" else ""
            return f"Give {what} as the model, with the rows and targets of its training"
    return (
        "Give a bare nn.Module with `loss=`, or model='precomputed' with the design as X and the "
        "target as y"
    )


def adapt_many(models: Sequence[Any], data: Sequence[Data], options: Options) -> list[Problem]:
    """Problems of several trained models, which share what they can."""
    problems: list[Problem]
    problems = _module("linear.checkpoints").adapt_checkpoints(models, data, options)
    return problems


def held_rows(model: Any) -> tuple[Any, Any]:
    """X and y that a trained model holds itself; ValueError if it holds none."""
    libraries = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    if "statsmodels" in libraries and hasattr(model, "model"):
        rows: tuple[Any, Any] = _module(_LIBRARIES["statsmodels"]).held(model)
        return rows
    raise ValueError(
        f"Expected X, the rows that {type(model).__name__} was trained on, got None; only results "
        "of statsmodels hold their rows."
    )


def linear_problem(
    data: Data,
    options: Options,
    *,
    coef: Any,
    intercept: Any = None,
    loss: Any = "squared_error",
    classes: Any = None,
    convention: Convention | None = None,
    penalized_intercept: bool = False,
) -> Problem:
    """Problem of a linear predictor ``X coef' + intercept``: what most handlers return.

    Parameters
    ----------
    data, options : Data, Options
        As the handler got them. A loss in the options, other than "auto", replaces ``loss``.
    coef : array-like of shape (p,) or (K, p)
        Trained coefficients, one row per output or class.
    intercept : float, array-like of shape (K,) or None, default=None
        Trained intercept; None if none was trained.
    loss : str, nn loss or callable(output, target), default="squared_error"
        Loss of the training, by the names that ``loss=`` of the estimators takes.
    classes : array-like of shape (n_classes,), default=None
        Labels in the order of the rows of ``coef``; of two, a positive predictor stands for the
        second. Needed unless the labels are 0, 1, ...
    convention : Convention, default=None
        How the model states its penalty, for ``in_model_units``.
    penalized_intercept : bool, default=False
        Whether the penalty covers the intercept; it is then in scope by default.

    Returns
    -------
    Problem

    Raises
    ------
    ValueError
        If the rows do not fit the coefficients, or the loss is not known.

    Examples
    --------
    >>> import numpy as np
    >>> data = Data(np.eye(2), np.array([2.0, 4.0]))
    >>> problem = linear_problem(data, Options(), coef=[1.0, 2.0])
    >>> problem.gradient().value["coef"].tolist()  # 2 X' (X coef - y) / n
    [-1.0, -2.0]
    """
    model = LinearModel(coef, intercept, loss=loss, classes=classes)
    if penalized_intercept:
        params = "all" if isinstance(options.params, str) and options.params == "auto" else None
        options = replace(options, penalized_intercept=True, params=params or options.params)
    problem = adapt(model, data, options)
    return replace(problem, convention=convention if options.loss == "auto" else None)


def _module(name: str) -> Any:
    """One of the packages of adapters, loaded when it is needed."""
    return import_module(f"sklearn_implicitreg.adapters.{name}")
