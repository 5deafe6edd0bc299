"""What a treatment added to the penalty of a model, beside the penalty of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sklearn_implicitreg.penalties import FittedPenalty
from sklearn_implicitreg.regression.contrast import ADDED, SHARED, contrasted
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Result, Settings, fit, judged_fit, judged_solution
from sklearn_implicitreg.regression.system import Array
from sklearn_implicitreg.results.fit_description import Description
from sklearn_implicitreg.results.summary import Summary, coefficient_frame, coefficient_table

TOTAL = "total "
_QUESTIONS = (
    "Total: which penalty does the treated model behave as if it had been trained with? Added: "
    "which penalty did the treatment add to what both models share?"
)
_EXPLAINED = 0.01  # of the control's gradient may be left over, as in a supported fit
_MOVED = 0.01  # relative change of an added coefficient from which the verdict is partial
_NOTED = 1e-3  # and from which the reader is informed
_RELATED = 0.1  # R2 from which the shared terms have something to do with the control's gradient


@dataclass(frozen=True)
class Arms:
    """Equations that a contrast is made of, each with the columns of one family or of both."""

    joined: Equations  # of the treated, the shared columns first
    control: Equations  # shared columns
    total: Equations  # of the treated, the family's columns


class Contrast:
    """What a treatment added to a model's penalty; :func:`contrast` makes one.

    Attributes
    ----------
    coef_, std_err_, pvalues_ : ndarray of shape (k,)
        Of the added terms: what the treated model has beyond what it shares with the control.
    conf_int_ : ndarray of shape (k, 2)
        Their confidence intervals, over the equations of both models.
    term_names_, verdict_ : list of str, str
        Of the added terms, as in :class:`ImplicitRegularizationEstimator`.
    total_coef_, shared_coef_ : ndarray
        Of the treated model alone, and of the terms of ``base`` in both models.
    r2_ : float
        Share of the gradients' difference, beyond the shared terms', that the added explain.
    r2_control_ : float
        Share of the control's own gradient that the shared terms explain.
    penalty_ : FittedPenalty
        The added penalty as a function of a module or of a dict of parameters.
    """

    coef_: Array
    term_names_: Sequence[str]
    std_err_: Array
    pvalues_: Array
    conf_int_: Array
    total_coef_: Array
    shared_coef_: Array
    r2_: float
    r2_control_: float
    verdict_: str
    penalty_: FittedPenalty
    _result: Result
    _total: Result
    _description: Description
    _notes: Sequence[str]
    _sizes: tuple[float, ...]

    @classmethod
    def _of(cls, arms: Arms, settings: Settings) -> Contrast:
        """Solve and judge the equations of both models, and those of the treated alone."""
        self = cls()
        equations = contrasted(arms.joined, arms.control, arms.total)
        result, total = fit(equations, settings), judged_fit(arms.total, settings)
        control = judged_solution(arms.control, positive=False)
        _, inference = result.regression()
        added, shared = _of(result, ADDED), _of(result, SHARED)
        self.term_names_ = [total.term_names[j] for j in total.family]
        self.coef_, self.shared_coef_ = result.coef[added], result.coef[shared]
        self.total_coef_ = total.coef[list(total.family)]
        self.std_err_, self.pvalues_ = inference.std_err[added], inference.pvalues[added]
        self.conf_int_ = inference.conf_int[added]
        self.r2_ = result.r2
        self.r2_control_ = control.r2 if control.norm > arms.control.rounding else np.nan
        notes = _of_control(self, control.shortfall)
        verdict = result.verdict
        if notes and _moved(self) > _MOVED and verdict.label == "supported":
            verdict = replace(verdict, label="partial", sentence=f"{verdict.sentence} {notes[0]}")
            notes = []
        self._result, self._total = replace(result, verdict=verdict), total
        self.verdict_ = verdict.label
        self._description = Description.of(equations, result)
        facts = self._description.notes
        self._notes = [_QUESTIONS, *notes, *facts]
        self._sizes = tuple(
            float(np.linalg.norm(own.judged.system.r_factor[:, -1]))
            for own in (arms.total, arms.control)
        )
        leaves, start, found = arms.total.judged.design.leaves, 0, []
        for leaf, n in leaves:
            found.append((leaf, tuple(np.nan_to_num(self.coef_[start : start + n]).tolist())))
            start += n
        self.penalty_ = FittedPenalty.of(tuple(found), arms.total.judged.problem)
        return self

    def __repr__(self) -> str:
        named = zip(self.term_names_, self.coef_, strict=True)
        shown = ", ".join(f"{name} {coef:.4g}" for name, coef in named)
        return f"Contrast(added {shown}; {self.verdict_})"

    def in_model_units(self) -> dict[str, Any]:
        """The added coefficients as the model's own parameters, such as ``{"alpha": 3.0}``.

        Returns
        -------
        params : dict of str to float, str or ndarray
        """
        named = zip(self.term_names_, map(float, np.nan_to_num(self.coef_)), strict=True)
        return self._description.in_model_units(dict(named))

    def to_frame(self) -> pd.DataFrame:
        """Tidy table of all coefficients for programs.

        Returns
        -------
        frame : DataFrame
            One row per coefficient; question is "total", "shared" or "added".
        """
        total = coefficient_frame(self._total.term_names, *self._total.regression())
        both = coefficient_frame(self._result.term_names, *self._result.regression())
        total.insert(0, "question", TOTAL.strip())
        words = both["term"].str.partition(" ")
        both["term"] = words[2].where(words[1] == " ", both["term"])
        both.insert(0, "question", words[0].where(words[1] == " ", "nuisance"))
        return pd.concat([total, both], ignore_index=True)

    def summary(self) -> Summary:
        """Table of the total, shared and added coefficients, and which question each answers.

        Returns
        -------
        summary : Summary
        """
        result, total = self._result, self._total
        solution, inference = result.regression()
        tables = [
            coefficient_table([TOTAL + name for name in total.term_names], *total.regression()),
            coefficient_table(result.term_names, solution, inference),
        ]
        drop = ["cosine", "VIF"]
        table = pd.concat(tables).drop(columns=drop)
        first = self._description.header[:2]
        header = [
            *first,
            ("|gradient|, treated", f"{self._sizes[0]:.4g}"),
            ("|gradient|, control", f"{self._sizes[1]:.4g}"),
            ("R2, added", f"{self.r2_:.4f}"),
            (
                "R2, control",
                "no signal" if np.isnan(self.r2_control_) else f"{self.r2_control_:.4f}",
            ),
            ("R2, total", f"{total.r2:.4f}"),
            ("Equations", str(solution.n_equations)),
            ("Verdict, total", total.verdict.label),
            ("Verdict, added", result.verdict.label),
        ]
        sentence = result.verdict.sentence
        notes = [
            f"Added: {sentence}",
            f"Standard errors: {inference.description}.",
            *self._notes,
        ]
        return Summary("Total or marginal", header, table, notes)


def _of(result: Result, prefix: str) -> list[int]:
    return [i for i, name in enumerate(result.term_names) if name.startswith(prefix)]


def _moved(found: Contrast) -> float:
    """How much the shared part changes an added coefficient, over its size."""
    change = np.abs(found.total_coef_ - found.coef_)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.nan_to_num(change / np.abs(found.coef_), nan=0.0)))


def _of_control(found: Contrast, shortfall: float) -> list[str]:
    """Sentence where the control's gradient is not what the shared terms explain."""
    if np.isnan(found.r2_control_) or shortfall <= _EXPLAINED or _moved(found) <= _NOTED:
        return []
    start = f"The shared terms explain R2 = {found.r2_control_:.3f} of the control's gradient: "
    if found.r2_control_ >= _RELATED:
        return [f"{start}its training had not ended, or base= lacks a term that both models share."]
    named = zip(found.term_names_, found.coef_, found.total_coef_, strict=True)
    shown = ", ".join(f"{name} between {a:.4g} and {b:.4g}" for name, a, b in named)
    return [
        f"{start}its training had not ended, or it shares no such penalty. The shared coefficients "
        f"may be none, and the added ones are between those found and the total: {shown}."
    ]
