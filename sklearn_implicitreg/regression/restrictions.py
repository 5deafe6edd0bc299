"""Tests of linear restrictions on the coefficients, written as text or as a matrix."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from sklearn_implicitreg.problem.parameters import as_numbers
from sklearn_implicitreg.regression.inference import Inference
from sklearn_implicitreg.regression.system import Array

# Eigenvalues of correlations up to it are zero to rounding.
_SINGULAR = 1e-13
_REPLICATED = ("cluster", "bootstrap", "sandwich")  # rank of the covariance: at most df
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True)
class WaldTest:
    """Result of a test of linear restrictions.

    Attributes
    ----------
    restrictions : tuple of str
        What was tested, one equation each.
    statistic : float
        F statistic.
    p_value : float
        Of ``F(df_num, df_denom)``.
    df_num, df_denom : float
        Number of restrictions q; degrees of freedom of the covariance, less q - 1 where it comes
        from clusters or resamples (Hotelling's T squared).
    description : str
        The covariance that was used, in words.

    Examples
    --------
    >>> print(WaldTest(("l2 = 0",), 4.0, 0.0734, 1.0, 10.0, "hc3 over 11 equations"))
    F(1, 10) = 4, p = 0.0734 for l2 = 0; hc3 over 11 equations
    """

    restrictions: tuple[str, ...]
    statistic: float
    p_value: float
    df_num: float
    df_denom: float
    description: str

    def __str__(self) -> str:
        """One line."""
        return (
            f"F({self.df_num:g}, {self.df_denom:g}) = {self.statistic:.4g}, "
            f"p = {self.p_value:.3g} for {', '.join(self.restrictions)}; {self.description}"
        )


def wald_test(
    term_names: Sequence[str],
    coef: Array,
    inference: Inference,
    restrictions: Any,
    value: npt.ArrayLike | None,
) -> WaldTest:
    """Test linear restrictions by the covariance of a fit: an F test."""
    matrix, target, texts = _restrictions(term_names, restrictions, value)
    used = np.flatnonzero((matrix != 0).any(axis=0))
    unsure = [term_names[int(i)] for i in used if not np.isfinite(inference.cov[i, used]).all()]
    if unsure:
        raise ValueError(
            f"Expected restrictions on coefficients with standard errors, got {unsure}, which have "
            f"none ({inference.description})."
        )
    q = float(len(matrix))
    if inference.covariance in _REPLICATED and q > inference.df:
        raise ValueError(
            f"Expected at most {inference.df:g} restrictions, one less than the clusters, "
            f"resamples or blocks of rows, got {q:g}; test fewer, or fit with covariance='hc3'."
        )
    statistic, p_value = wald(matrix, matrix[:, used] @ coef[used] - target, inference)
    df = denominator(len(matrix), inference)
    return WaldTest(texts, statistic, p_value, q, df, inference.description)


def denominator(q: int, inference: Inference) -> float:
    """Degrees of freedom below, of a test of q combinations of coefficients.

    Parameters
    ----------
    q : int
        Number of combinations.
    inference : Inference
        Covariance of the coefficients.

    Returns
    -------
    df : float
    """
    # A covariance from C clusters is a sum of C squares: Hotelling's T squared.
    return inference.df - (q - 1 if inference.covariance in _REPLICATED else 0)


def wald(matrix: Array, difference: Array, inference: Inference) -> tuple[float, float]:
    """F test (Greene 2012, section 5.4) that combinations of coefficients equal given values."""
    # Statistic d' (matrix cov matrix')^-1 d / q, of clusters times (C - q) / (C - 1); NaN where
    # that is singular or has no numbers, and where the clusters are not more than the combinations.
    q, df = len(matrix), inference.df
    nothing = float("nan"), float("nan")
    used = np.flatnonzero((matrix != 0).any(axis=0))
    cov = inference.cov[np.ix_(used, used)]
    too_few = inference.covariance in _REPLICATED and df < q
    if too_few or not df > 0 or not np.isfinite(cov).all():
        return nothing
    # By a root of the correlations, so that neither units nor squares cost digits.
    std_err = np.sqrt(np.diagonal(cov))
    std_err[std_err == 0] = 1.0
    values, vectors = np.linalg.eigh(cov / np.outer(std_err, std_err))
    values[values <= _SINGULAR * len(values)] = 0.0
    units = np.broadcast_to(inference.units, (matrix.shape[1],))[used]
    root = (matrix[:, used] * units * std_err) @ (vectors * np.sqrt(values))
    top = np.abs(root).max(axis=1, initial=0.0)
    size = top * np.linalg.norm(root / np.where(top == 0, 1.0, top)[:, None], axis=1)
    if (difference[size == 0] != 0).any():
        return float("inf"), 0.0
    if not size.all():
        return nothing
    left, singular, _ = np.linalg.svd(root / size[:, None], full_matrices=False)
    if len(singular) < q or singular[-1] <= _SINGULAR * q:
        return nothing
    own = denominator(q, inference)
    statistic = float(np.square(left.T @ (difference / size) / singular).sum()) / q * (own / df)
    return statistic, float(special.fdtrc(q, own, statistic))


def _restrictions(
    names: Sequence[str], restrictions: Any, value: npt.ArrayLike | None
) -> tuple[Array, Array, tuple[str, ...]]:
    """Matrix (q, k), value (q,) and text of the restrictions."""
    listed = [restrictions] if isinstance(restrictions, str) else restrictions
    if isinstance(listed, list | tuple) and listed and all(isinstance(r, str) for r in listed):
        if value is not None:
            raise ValueError(f"Expected the value in the text, 'l2 = {value}', got value={value}.")
        parsed = [row for text in listed for row in _parsed(names, text)]
        matrix = np.array([row for row, _ in parsed])
        matrix, target = matrix[:, :-1], -matrix[:, -1]
        texts = tuple(text for _, text in parsed)
    else:
        matrix, target = _as_matrix(names, restrictions, value)
        texts = tuple(_text(names, *row) for row in zip(matrix, target, strict=True))
    size = np.linalg.norm(matrix, axis=1, keepdims=True)
    if not size.all() or np.linalg.matrix_rank(matrix / size) < len(matrix):
        raise ValueError(
            f"Expected restrictions of which none follows from others, got {list(texts)}; drop one."
        )
    return matrix, target, texts


def _as_matrix(
    names: Sequence[str], restrictions: Any, value: npt.ArrayLike | None
) -> tuple[Array, Array]:
    """Restrictions that were given as numbers, checked."""
    try:
        matrix = np.atleast_2d(np.asarray(restrictions, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected text such as '{names[0]} = 0', a list of these or a matrix of shape "
            f"(q, {len(names)}), got {restrictions!r}."
        ) from None
    target = np.zeros(len(matrix)) if value is None else np.atleast_1d(as_numbers("value", value))
    fits = matrix.ndim == 2 and matrix.shape[1] == len(names) and len(matrix) > 0
    if not fits or target.shape != (len(matrix),):
        raise ValueError(
            f"Expected a matrix of shape (q, {len(names)}), one column for each of {list(names)}, "
            f"and a value of shape (q,), got {matrix.shape} and {target.shape}."
        )
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        raise ValueError("Expected finite restrictions, got NaN or inf.")
    return matrix, target


def _text(names: Sequence[str], row: Array, target: float) -> str:
    """One row of a matrix as an equation."""
    terms = [
        ("-" if c < 0 else "+", name if abs(c) == 1 else f"{abs(c):g}*{name}")
        for c, name in zip(row, names, strict=True)
        if c
    ]
    whole = " ".join(f"{sign} {term}" for sign, term in terms)
    return f"{whole.removeprefix('+ ')} = {target:g}"


def _parsed(names: Sequence[str], text: str) -> list[tuple[Array, str]]:
    """Rows (coefficients and constant, whose sum is zero) of equations, and these as text."""
    # What stands for a name holds no comma or equal sign, as a name may.
    named = {f"_{i}_": name for i, name in enumerate(names)}
    place, coded = 0, []
    pattern = _tokens(names)
    while place < len(text):
        token = pattern.match(text, place)
        if token is None:
            raise ValueError(
                f"Expected a linear equation in {list(names)}, got {text!r}, not understood from "
                f"{text[place:]!r} on; write it as '{names[0]} = 0'."
            )
        name = token["name"]
        coded.append(token.group() if name is None else f"_{list(names).index(name)}_")
        place = token.end()
    rows = []
    for equation in "".join(coded).split(","):
        sides = [side.strip() for side in equation.replace("==", "=").split("=")]
        sides += ["0"] * (len(sides) == 1)
        values = [_linear(side, names, text) for side in sides]
        for i in range(1, len(sides)):
            shown = f"{sides[i - 1]} = {sides[i]}"
            for code, name in named.items():
                shown = shown.replace(code, name)
            rows.append((values[i - 1] - values[i], shown))
    return rows


def _tokens(names: Sequence[str]) -> re.Pattern[str]:
    """Pattern of a name, the longest first, a number or a sign; names may hold any sign."""
    known = sorted((n for n in names if not re.fullmatch(_NUMBER, n)), key=len, reverse=True)
    name = "|".join(re.escape(n) for n in known) or "(?!)"
    return re.compile(rf"(?<![\w.])(?P<name>{name})(?!\w)|{_NUMBER}(?![\w.])|[-+*/(),=\s]")


def _linear(code: str, names: Sequence[str], text: str) -> Array:
    """Coefficients and constant of one side of an equation."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            value = _value(ast.parse(code, mode="eval").body, len(names))
    except (SyntaxError, TypeError, ZeroDivisionError):
        raise ValueError(
            f"Expected a linear equation in {list(names)}, got {text!r}; write it as "
            f"'{names[0]} = 0'."
        ) from None
    except OverflowError:
        value = np.array([np.inf])
    if not np.isfinite(value).all():
        raise ValueError(
            f"Expected numbers below 1.8e308 in a linear equation, got larger ones in {text!r}."
        )
    return value


def _value(node: ast.expr, k: int) -> Array:
    """Value of a linear expression as k coefficients and a constant."""
    value: Array = np.zeros(k + 1)
    match node:
        case ast.Constant(value=float() | int() as number):
            value[k] = number
        case ast.Name(id=code):
            value[int(code.strip("_"))] = 1.0
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            value = -_value(inner, k)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            value = _value(inner, k)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            value = _value(left, k) + _value(right, k)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            value = _value(left, k) - _value(right, k)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            value = _value(left, k) * (1 / _number(_value(right, k)))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            one, other = _value(left, k), _value(right, k)
            value = other * _number(one) if not one[:k].any() else one * _number(other)
        case _:
            raise TypeError
    return value


def _number(value: Array) -> float:
    """Constant of an expression without coefficients."""
    if value[:-1].any():
        raise TypeError
    return float(value[-1])
