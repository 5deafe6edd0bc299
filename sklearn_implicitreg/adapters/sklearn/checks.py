"""Trained models of scikit-learn that minimize no one objective, or not over the rows given."""

from __future__ import annotations

from typing import Any


def all_rows(model: Any) -> None:
    """Raise ValueError for a model that held out rows in training."""
    if model.early_stopping and getattr(model, "solver", None) != "lbfgs":
        raise ValueError(
            f"Expected {type(model).__name__} with early_stopping=False, got True: the rows that "
            "it held out cannot be known from outside. Train it with early_stopping=False, on the "
            "rows that it is to learn from."
        )


def no_jitter(model: Any) -> None:
    """Raise ValueError for LassoLars with jitter."""
    if getattr(model, "jitter", None) is not None:
        raise ValueError(
            "Expected LassoLars with jitter=None, got jitter: it was trained on a perturbed y "
            "that is not kept. Train it without."
        )


def logistic(model: Any) -> None:
    """Raise ValueError for means over folds, and for neither a binary nor a multinomial model."""
    if getattr(model, "refit", True) is False:
        raise ValueError(
            "Expected LogisticRegressionCV with refit=True, got refit=False: its coefficients "
            "are means over the folds and minimize no one objective. Fit it with refit=True."
        )
    scheme, n_classes = getattr(model, "multi_class", "auto"), len(model.classes_)
    one_vs_rest = n_classes > 2 and (scheme == "ovr" or model.solver == "liblinear")
    if one_vs_rest or (n_classes == 2 and scheme == "multinomial"):
        raise ValueError(
            f"Expected a binary or multinomial LogisticRegression, got multi_class={scheme!r} "
            f"with {n_classes} classes. Wrap a binary one in OneVsRestClassifier and analyze "
            "each of its estimators_."
        )


def one_vs_rest(model: Any) -> None:
    """Raise ValueError for a LinearSVC by Crammer and Singer."""
    if model.multi_class != "ovr" and len(model.classes_) >= 2:
        raise ValueError(
            f"Expected LinearSVC(multi_class='ovr'), got {model.multi_class!r}, whose loss "
            "couples the classes in another way. Train it with multi_class='ovr'."
        )
