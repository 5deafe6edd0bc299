"""Which terms a model can tell apart: cosines between their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_implicitreg.inspection.drawing import WIDTH, check_names, panels, styled
from sklearn_implicitreg.inspection.fits import check_columns, fit_of
from sklearn_implicitreg.problem.parameters import as_numbers, shown

_MOST_NUMBERS = 12  # terms whose cosines are written into the cells
_DARK = 0.6  # size of a cosine on whose color white is read better than black


class IdentifiabilityDisplay:
    """Cosines between the gradients of terms, with a frame around those not told apart.

    Parameters
    ----------
    cosines : array-like of shape (k, k)
        Cosines on the equations of a model.
    names : list of str of length k
        The terms.
    groups : list of list of str, default=()
        Terms that cannot be told apart, or hardly; they are drawn beside each other.

    Attributes
    ----------
    ax_, figure_ : matplotlib Axes and Figure
        Where it was drawn.
    image_, frames_, texts_ : AxesImage, list of Rectangle, list of Text
        What was drawn.

    See Also
    --------
    sklearn_implicitreg.identifiability : Compares the terms of several families.

    Examples
    --------
    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from sklearn_implicitreg import identifiability
    >>> from sklearn_implicitreg.inspection import IdentifiabilityDisplay
    >>> X, y = load_diabetes(return_X_y=True)
    >>> found = identifiability(Ridge().fit(X, y), X, y, ["l1", "l2", "weight_decay"])
    >>> display = IdentifiabilityDisplay.from_result(found)
    >>> [label.get_text() for label in display.ax_.get_yticklabels()]
    ['l1', 'l2', 'weight_decay']
    """

    def __init__(self, *, cosines: Any, names: Sequence[str], groups: Sequence[Any] = ()):
        sizes = as_numbers("cosines", cosines)
        if sizes.ndim != 2 or sizes.shape[0] != sizes.shape[1] or not sizes.size:
            raise ValueError(f"Expected cosines of shape (k, k), got {shown(cosines)}.")
        if not (np.abs(sizes) <= 1).all():
            raise ValueError(f"Expected cosines between -1 and 1, got {shown(cosines)}.")
        check_names("names", names, len(sizes))
        unknown = [name for group in groups for name in group if name not in names]
        if unknown:
            raise ValueError(f"Expected groups of the terms {list(names)}, got {unknown} in them.")
        self.cosines = cosines
        self.names = names
        self.groups = groups

    @classmethod
    def from_result(
        cls,
        found: Any,
        *,
        ax: Any = None,
        image_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
    ) -> IdentifiabilityDisplay:
        """Display of what :func:`~sklearn_implicitreg.identifiability` found, drawn.

        Parameters
        ----------
        found : Identifiability
            What is drawn.
        ax : matplotlib Axes, default=None
            A new figure if None.
        image_kwargs, text_kwargs : dict, default=None
            Passed to ``Axes.imshow``, and to ``Axes.text`` for the numbers.

        Returns
        -------
        display : IdentifiabilityDisplay
            With what it drew as attributes.

        Raises
        ------
        TypeError
            If it is something else.
        """
        cosines = getattr(found, "cosines_", None)
        if cosines is None or isinstance(found, type):
            raise TypeError(
                f"Expected what identifiability(model, X, y, families) returns, got {shown(found)}."
            )
        display = cls(
            cosines=cosines.to_numpy(), names=list(cosines.index), groups=list(found.groups_)
        )
        return display.plot(ax, image_kwargs=image_kwargs, text_kwargs=text_kwargs)

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        ax: Any = None,
        image_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
    ) -> IdentifiabilityDisplay:
        """Display of the terms of a fit, drawn.

        Parameters
        ----------
        estimator : ImplicitRegularizationEstimator or ImplicitRegularizationCV
            Fitted, also in a pipeline; of a search its best family.
        ax : matplotlib Axes, default=None
            A new figure if None.
        image_kwargs, text_kwargs : dict, default=None
            Passed to ``Axes.imshow``, and to ``Axes.text`` for the numbers.

        Returns
        -------
        display : IdentifiabilityDisplay
            With what it drew as attributes.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        TypeError, ValueError
            If it is another object; if its family is solved as a whole, or it was unpickled.
        """
        fit, _ = fit_of(estimator)
        check_columns(cls.__name__, fit)
        return cls.from_result(
            fit.identifiability(), ax=ax, image_kwargs=image_kwargs, text_kwargs=text_kwargs
        )

    def plot(
        self,
        ax: Any = None,
        *,
        image_kwargs: dict[str, Any] | None = None,
        text_kwargs: dict[str, Any] | None = None,
    ) -> IdentifiabilityDisplay:
        """Draw the cosines as an image, the terms of a group beside each other.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            A new figure if None.
        image_kwargs, text_kwargs : dict, default=None
            Passed to ``Axes.imshow``, and to ``Axes.text`` for the numbers.

        Returns
        -------
        self : IdentifiabilityDisplay

        Raises
        ------
        ImportError
            Without matplotlib; the extra ``plot`` installs it.
        """
        k = len(self.names)
        size = (WIDTH, float(np.clip(1.6 + 0.4 * k, 3.0, 6.0)))
        (ax,) = panels(type(self).__name__, ax, size=size)
        order = self._order()
        cosines = as_numbers("cosines", self.cosines)[np.ix_(order, order)]
        style = {"cmap": "PuOr", "vmin": -1, "vmax": 1, "aspect": "auto"}
        self.image_ = ax.imshow(cosines, **style | (image_kwargs or {}))
        ax.figure.colorbar(self.image_, ax=ax, label="cosine")
        names = [self.names[i] for i in order]
        small = {"fontsize": "small" if k <= 20 else 5}
        ax.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor", **small)
        ax.set_yticks(range(k), names, **small)
        self._write(ax, cosines, text_kwargs)
        self._frame(ax, names)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _order(self) -> list[int]:
        """Terms of one group beside each other, at the place of its first."""
        names = list(self.names)
        whole = {name: list(group) for group in self.groups for name in group}
        order = dict.fromkeys(own for name in names for own in whole.get(name, [name]))
        return [names.index(name) for name in order]

    def _write(self, ax: Any, cosines: Any, given: Any) -> None:
        from matplotlib.text import Text

        self.texts_ = []
        if len(cosines) > _MOST_NUMBERS:
            return
        for (i, j), value in np.ndenumerate(cosines):
            color = "white" if abs(value) > _DARK else "black"
            style = styled(Text, given, color=color, ha="center", va="center", fontsize="x-small")
            self.texts_.append(ax.text(j, i, _cosine(value), **style))

    def _frame(self, ax: Any, names: list[str]) -> None:
        from matplotlib.patches import Rectangle

        self.frames_ = []
        for group in self.groups:
            first = min(names.index(name) for name in group) - 0.5
            style: dict[str, Any] = {"fill": False, "edgecolor": "black", "linewidth": 2}
            frame = Rectangle((first, first), len(group), len(group), clip_on=False, **style)
            self.frames_.append(ax.add_patch(frame))


def _cosine(value: float) -> str:
    """Two digits; 1 and 0 where they are exact, and no 1.00 for what is below."""
    text = f"{value:.2f}" if abs(value) < 0.995 else f"{value:.4f}"
    if abs(value) > 1 - 1e-12:
        return f"{value:.0f}"
    return text.replace("0.", ".", 1)
