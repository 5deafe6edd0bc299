"""Weights from training again, compared with the model's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.recovery.labels import names_of
from sklearn_implicitreg.results.summary import Summary


@dataclass(frozen=True, eq=False)
class Arm:
    """Weights from one way of training, compared with the model's.

    Attributes
    ----------
    coef : ndarray of shape (p,)
        The parameters in scope, flattened and joined; of a network all trained ones.
    loss, penalty : float
        Mean loss L, in the library's units, and estimated penalty R at these weights.
    distance, cosine : float
        ``|coef - model| / |model|``, and that of the angle between the two.
    prediction : float
        Root mean square difference in predictions, or decision values; outputs added up.
    """

    coef: Array
    loss: float
    penalty: float
    distance: float
    cosine: float
    prediction: float


@dataclass(frozen=True, eq=False)
class Recovery:
    """Weights that L + R leads to, compared with the model's and with those of L alone.

    Attributes
    ----------
    model, recovered, ablated : Arm
        The trained model; where L + R is stationary, or a retrained estimator; the same with
        R = 0, of several least-squares solutions the shortest. Of a network the draw whose
        function differs by the median. None is an arm that was not asked for.
    index, notes : MultiIndex of length p, tuple of str
        Tensor and coordinate of every weight, and sentences for the reader.
    method : {"closed form", "refit", "minimized", "trained"}
        How the arms were made.
    is_minimizer, is_unique : bool or None
        Whether the recovered weights minimize L + R, or only solve the linear equations, and are
        its only stationary point. None after a refit, which minimizes. Of a network, whether the
        model is a strict local minimum (None where the smallest eigenvalue is not exact enough to
        say), and None.
    smallest_eigenvalue : float
        Of the Hessian of L + R; NaN after a refit. Of a network, at the model.
    runs : DataFrame or None
        Of a network one row per arm and draw: relative ``distance`` of the weights, also at the
        ``start`` and ``matched``, after matching hidden units; ``function``, the root mean square
        difference of outputs over their standard deviation; ``loss``, ``penalty`` and
        ``objective`` (L + R, in both arms), ``gradient`` (norm, of what the arm minimizes),
        ``evaluations``, how it ``stopped``, and whether the function is ``back``. After
        ``mode="trainer"`` the ``seed`` of each draw, without these two; the arm "nudged" is the
        recovered one of the first draw from a start moved by 1e-7.
    gradient : float
        Of a network the norm of the gradient of L + R at the model.
    facts : tuple of (str, str)
        Further names and values for the header of the summary.
    """

    model: Arm
    recovered: Arm | None
    ablated: Arm | None
    index: pd.MultiIndex
    notes: tuple[str, ...]
    method: str = "refit"
    is_minimizer: bool | None = None
    is_unique: bool | None = None
    smallest_eigenvalue: float = float("nan")
    runs: pd.DataFrame | None = None
    gradient: float = float("nan")
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def _arms(self) -> dict[str, Arm]:
        arms = {"model": self.model, "recovered": self.recovered, "ablated": self.ablated}
        return {name: arm for name, arm in arms.items() if arm is not None}

    def summary(self) -> Summary:
        """Table of the three arms, printable as text, HTML and LaTeX.

        Returns
        -------
        summary : Summary
        """
        header = [("Weights", str(len(self.index))), ("Method", self.method), *self.facts]
        if self.runs is not None:
            return Summary(
                "Recovery",
                header,
                _table_of_runs(self.runs, self.model, self.gradient),
                list(self.notes),
            )
        arms = {name.replace("ablated", "without R"): arm for name, arm in self._arms.items()}
        table = pd.DataFrame(map(vars, arms.values()), index=list(arms)).drop(columns="coef")
        table.insert(2, "L + R", table["loss"] + table["penalty"])
        table = table.rename(columns={"loss": "L", "penalty": "R"})
        if self.is_minimizer is not None:
            alone = "yes" if self.is_unique else "yes, not alone"
            header.append(("Minimizer", alone if self.is_minimizer else "no"))
            header.append(("Smallest eigenvalue", f"{self.smallest_eigenvalue:.3g}"))
        return Summary("Recovery", header, table, list(self.notes))

    def to_frame(self) -> pd.DataFrame:
        """Weights of the three arms side by side.

        Returns
        -------
        frame : DataFrame
            One row per weight, columns ``model``, ``recovered``, ``ablated``.
        """
        return pd.DataFrame({n: arm.coef for n, arm in self._arms.items()}, index=self.index)

    def plot(self, ax: Any = None) -> Any:
        """The arms against the model: weights, functions and loss.

        Parameters
        ----------
        ax : matplotlib Axes or list of three, default=None
            One is divided in three; a new figure if None.

        Returns
        -------
        display : RecoveryDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        from sklearn_implicitreg.inspection.recovery import RecoveryDisplay  # as est.plot does

        return RecoveryDisplay.from_recovery(self, ax=ax)

    def __repr__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary().as_html()


def _table_of_runs(runs: pd.DataFrame, model: Arm, gradient: float) -> pd.DataFrame:
    numbers = ["distance", "matched", "function", "objective", "gradient"]
    first: dict[str, float | str] = dict.fromkeys(numbers, 0.0)
    first |= {"objective": model.loss + model.penalty, "gradient": gradient}
    if "stopped" in runs:
        first["stopped"] = ""
    table = runs[list(first)]
    above = pd.DataFrame([first], index=["model"])
    table = pd.concat([above, table.set_axis(list(names_of(runs)))])
    return table.rename(columns={"objective": "L + R", "gradient": "|gradient|"})
