"""What the estimators have in common: the model, which is shared or cloned; parameter checks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral
from typing import Any

import torch
from sklearn.base import BaseEstimator, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils import Tags, get_tags
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn
from torch.nn.parameter import UninitializedParameter

from sklearn_implicitreg.adapters import Options
from sklearn_implicitreg.adapters.registry import held_rows
from sklearn_implicitreg.endpoints.templates import routing_enabled, weight_name
from sklearn_implicitreg.problem.frozen import FrozenModel, is_trained, sent_state
from sklearn_implicitreg.problem.parameters import Checked, shown

PRECOMPUTED = "precomputed"


def _answers(method: str) -> Callable[[AboutModel], bool]:
    """Check for available_if: the trained model (or the template) has this method."""
    return lambda self: hasattr(getattr(self, "model_", self.model), method)


class AboutModel(Checked, MetaEstimatorMixin, BaseEstimator):
    """Base of the estimators that take a ``model``: clones share a trained one."""

    model: Any

    def __sklearn_clone__(self) -> AboutModel:
        new: AboutModel = BaseEstimator.__sklearn_clone__(self._shell())
        if is_trained(self.model):
            new.model = self.model
        return new

    def _shell(self) -> AboutModel:
        shell = self._twin()
        if is_trained(self.model):
            shell.model = None
        return shell

    def _twin(self) -> AboutModel:
        """A shallow copy, without what pickling adds and leaves out."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(vars(self))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        made, args, state, *rest = super().__reduce_ex__(protocol)
        return made, args, sent_state(state), *rest

    def __copy__(self) -> AboutModel:
        twin = type(self).__new__(type(self))
        twin.__setstate__(self.__getstate__())
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> AboutModel:
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters; with ``deep`` those of a template (``model__*``) too."""
        params: dict[str, Any] = super().get_params(deep=False)
        if deep:
            params = BaseEstimator.get_params(self._shell(), deep=True) | params
        return params

    def set_params(self, **params: Any) -> AboutModel:
        """Set parameters; those of a trained model cannot be changed."""
        nested = [key for key in params if key.startswith("model__")]
        if nested and is_trained(params.get("model", self.model)):
            raise ValueError(
                f"Expected a template to set {nested} on, got a trained model, which is shared "
                "and never changed; pass an unfitted estimator, or several trained models as "
                "values of `model`."
            )
        family = params.get("family", getattr(self, "family", None))
        nested = [key for key in params if key.startswith("family__")]
        if nested and not hasattr(family, "set_params"):
            raise ValueError(
                f"Expected a Penalty as family to set {nested} on, got {family!r}; pass an "
                "instance, such as family=SmoothL1()."
            )
        super().set_params(**params)
        return self

    def __sklearn_tags__(self) -> Tags:
        """No estimator type: ``score`` is about the gradient, not about predictions."""
        tags = super().__sklearn_tags__()
        tags.estimator_type = None
        tags.target_tags.required = True
        inner = _tags_of(self.model)
        if inner is not None:
            # What a check asks of outputs such as predict_proba, which the model gives.
            tags.classifier_tags = inner.classifier_tags
            tags.non_deterministic = inner.non_deterministic
            for name in ("sparse", "allow_nan"):
                setattr(tags.input_tags, name, getattr(inner.input_tags, name))
            for name in ("single_output", "multi_output"):
                setattr(tags.target_tags, name, getattr(inner.target_tags, name))
        return tags

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        shell = self
        if isinstance(self.model, nn.Module):
            shell = self._twin()
            shell.model = FrozenModel(self.model)
        return str(BaseEstimator.__repr__(shell, N_CHAR_MAX))

    def get_metadata_routing(self) -> MetadataRouter:
        """Requests of this estimator, and of a template's ``fit``."""
        router = MetadataRouter(owner=self).add_self_request(self)
        if not is_trained(self.model) and hasattr(self.model, "fit"):
            mapping = MethodMapping().add(caller="fit", callee="fit")
            router.add(model=self.model, method_mapping=mapping)
        return router

    def _train(self, X: Any, y: Any, sample_weight: Any) -> Any:
        """The trained model: as given, or a clone of the template fitted on these rows."""
        model = self.model
        if model is None:
            raise TypeError(
                "Expected a list of at least one Endpoint as X where model is None, got "
                f"{type(X).__name__}; give the trained model, or its Endpoint."
            )
        if isinstance(model, type):
            raise TypeError(
                f"Expected a trained model instance, got the class {model.__name__}; create and "
                "train it first, or pass an unfitted scikit-learn or skorch estimator."
            )
        inside = model.estimator if isinstance(model, FrozenEstimator) else model
        if isinstance(inside, nn.Module):
            named = inside.named_parameters()
            lazy = [name for name, p in named if isinstance(p, UninitializedParameter)]
            if lazy:
                raise ValueError(
                    f"Expected a trained module, got one whose parameters {lazy} have no shape "
                    "yet; train it first."
                )
        elif isinstance(model, FrozenEstimator):
            check_is_fitted(inside)
        if is_trained(model):
            return model
        _check_results(model)
        if not (hasattr(model, "fit") and hasattr(model, "get_params")):
            raise TypeError(
                "Expected a trained nn.Module, a fitted skorch net or scikit-learn estimator, an "
                f"unfitted one as a template, or 'precomputed', got {model!r}; give a linear "
                "predictor as LinearModel(coef, intercept, loss=...), another class is made known "
                "by sklearn_implicitreg.adapters.register."
            )
        _check_template(model)
        return clone(model).fit(X, y, **self._fit_params(model, sample_weight))

    def _rows(self, X: Any, y: Any) -> tuple[Any, Any]:
        """X and y as given, or those that the model holds."""
        if X is not None or self.model is None or isinstance(self.model, str):
            return X, y
        if y is not None:
            raise ValueError("Expected X with y, got None; give both, or neither.")
        _check_results(self.model)
        return held_rows(self.model)

    def _options(self, completing: bool = False) -> Options:
        names = [field.name for field in fields(Options) if hasattr(self, field.name)]
        given = {name: getattr(self, name) for name in names}
        return Options(**given, completing=completing, together=True)

    def _fit_params(self, model: Any, sample_weight: Any) -> dict[str, Any]:
        if sample_weight is None:
            return {}
        if routing_enabled():
            routed = dict(process_routing(self, "fit", sample_weight=sample_weight).model.fit)
            if "sample_weight" in routed:
                return routed
        else:
            name = weight_name(model)
            if name is not None:
                return {name: sample_weight}
        raise ValueError(
            f"Expected a template whose fit takes sample_weight, got {type(model).__name__}; "
            "fit without weights, or pass a model that was trained with them."
        )

    def _check_features(self, X: Any, reset: bool) -> None:
        """Record or compare the number and names of the features of two-dimensional data."""
        rows = isinstance(X, list) and len(X) > 0 and isinstance(X[0], list)
        if rows or (not isinstance(X, torch.Tensor) and getattr(X, "ndim", 0) == 2):
            validate_data(self, X, reset=reset, skip_check_array=True)

    @available_if(_answers("predict"))  # type: ignore[untyped-decorator]
    def predict(self, X: Any) -> Any:
        """Predictions of the trained model.

        Parameters
        ----------
        X : array-like of shape (n, n_features)

        Returns
        -------
        y : ndarray of shape (n,) or (n, outputs)
        """
        return self._trained_model().predict(X)

    @available_if(_answers("predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Any:
        """Class probabilities of the trained model.

        Parameters
        ----------
        X : array-like of shape (n, n_features)

        Returns
        -------
        p : ndarray of shape (n, n_classes)
        """
        return self._trained_model().predict_proba(X)

    @available_if(_answers("decision_function"))  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Any:
        """Decision values of the trained model.

        Parameters
        ----------
        X : array-like of shape (n, n_features)

        Returns
        -------
        values : ndarray of shape (n,) or (n, n_classes)
        """
        return self._trained_model().decision_function(X)

    def _trained_model(self) -> Any:
        check_is_fitted(self, "model_")
        return self.model_


def _check_results(model: Any) -> None:
    """Raise TypeError for a model of statsmodels instead of its results."""
    if type(model).__module__.startswith("statsmodels.") and hasattr(model, "fit"):
        raise TypeError(
            f"Expected results of statsmodels, got {type(model).__name__} before its fit; give "
            "its results, model.fit()."
        )


def _check_template(model: Any) -> None:
    """Raise TypeError for a container around a class that scikit-learn knows nothing of."""
    try:
        check_is_fitted(model)
    except NotFittedError:
        pass
    except (AttributeError, TypeError) as error:
        raise TypeError(
            f"Expected estimators of scikit-learn inside {shown(model)}, got another class, whose "
            "tags it cannot read; inherit from sklearn.base.BaseEstimator, or give the inner model."
        ) from error


def _tags_of(model: Any) -> Tags | None:
    """Tags of an estimator; None of what has none, a frozen module included."""
    if isinstance(model, type) or not hasattr(model, "__sklearn_tags__"):
        return None
    try:
        return get_tags(model)
    except AttributeError:
        return None


def check_structured(estimator: Any, family: Any) -> None:
    """Raise ValueError for parameters about terms, which a structured family does not have."""
    defaults = {"group_by": None, "known": None, "positive": False, "covariance": "auto"}
    given = _not_default(estimator, defaults)
    if given:
        raise ValueError(
            f"Expected {given} left at the default with {family!r}, which has no terms; "
            "a structured family has parameters of its own."
        )


def check_precomputed(estimator: Any) -> None:
    """Raise ValueError for parameters about a model where equations are given as arrays."""
    none = dict.fromkeys(("trajectory", "group_by", "known", "cache"))
    given = _not_default(estimator, {"family": "l2", "mode": "endpoint"} | none)
    if given:
        raise ValueError(
            f"Expected {given} left at the default with model='precomputed': the columns of X are "
            "the family, and what is known belongs into y."
        )


def check_cache(estimator: Any) -> None:
    """Raise ValueError where a gradient cannot be kept, or not be found again."""
    if estimator.cache is None:
        return
    if estimator.mode == "trajectory":
        raise ValueError(
            "Expected cache=None with mode='trajectory', whose steps have gradients of their own, "
            f"got cache={estimator.cache!r}; record with directory= instead."
        )
    drawn = estimator.module_mode == "train" or estimator.n_passes not in ("auto", 1)
    if drawn and not isinstance(estimator.random_state, Integral):
        raise ValueError(
            "Expected an integer as random_state with cache= where random numbers are drawn "
            "(module_mode='train', n_passes above 1), so that the next fit draws the same ones, "
            f"got {estimator.random_state!r}."
        )


def _not_default(estimator: Any, defaults: Mapping[str, Any]) -> str:
    return ", ".join(n for n, default in defaults.items() if getattr(estimator, n) != default)
