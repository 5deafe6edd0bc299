"""What the next step is chosen by: the fit, the kind of its model, and what that holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from sklearn_implicitreg.endpoints.targets import AT_REST
from sklearn_implicitreg.endpoints.templates import inner_model
from sklearn_implicitreg.penalties import Structured, as_penalty
from sklearn_implicitreg.penalties.base import layer_of
from sklearn_implicitreg.problem.frozen import FrozenModel
from sklearn_implicitreg.regression.equations import Equations
from sklearn_implicitreg.regression.fit import Result, Settings
from sklearn_implicitreg.results.layers import table_of_layers

_EXPLAINED = 0.99

# Kinds by the name of a class among the bases: no library is imported to tell.
_KINDS = {
    "NeuralNet": "skorch",
    "BaseMultilayerPerceptron": "mlp",
    "PreTrainedModel": "transformers",
    "LightningModule": "lightning",
    "Module": "torch",
}


def bases_of(thing: Any) -> list[str]:
    """Names of the classes that a thing is of."""
    return [cls.__name__ for cls in type(thing).__mro__]


@dataclass(frozen=True)
class Situation:
    """A fit with its estimator, as the rules ask about it."""

    est: Any  # the estimator that was fitted, of a search the best
    result: Result
    equations: Equations | None  # None of an unpickled fit
    searched: bool = False
    rows: str = "X, y"  # what fit was given
    rows_are: str = "arrays"  # or "tensors", or a "loader"

    @property
    def verdict(self) -> str:
        """Label of the verdict."""
        return self.result.verdict.label

    @property
    def along(self) -> bool:
        """Whether the equations are of a trajectory."""
        return bool(self.est.mode == "trajectory")

    @cached_property
    def model(self) -> Any:
        """The trained model inside of containers."""
        held = self.est.model_
        found = inner_model(held[0] if self.listed and len(held) == 1 else held)
        return found.model if isinstance(found, FrozenModel) else found

    @property
    def listed(self) -> bool:
        """Whether the rows of the fit are a list of endpoints, be it of one."""
        return isinstance(self.est.model_, list)

    @cached_property
    def kind(self) -> str:
        """What trains the model, or "linear", "endpoints" or "arrays"."""
        if isinstance(self.model, str):
            return "arrays"
        if isinstance(self.model, list):
            return "endpoints"
        return next((_KINDS[n] for n in bases_of(self.model) if n in _KINDS), "linear")

    @cached_property
    def module(self) -> nn.Module | None:
        """The torch module, whatever is around it."""
        found = getattr(self.model, "module_", self.model)
        return found if isinstance(found, nn.Module) else None

    @cached_property
    def structured(self) -> bool:
        """Whether the family is solved as a whole."""
        return self.kind != "arrays" and isinstance(as_penalty(self.est.family), Structured)

    # --- what was trained

    @cached_property
    def rates(self) -> list[float]:
        """Rates of the dropout layers, each once."""
        rates = set()
        for part in self.module.modules() if self.module is not None else ():
            own = part.p if isinstance(part, _DropoutNd) else getattr(part, "dropout", 0.0)
            if isinstance(own, float) and own > 0:
                rates.add(own)
        return sorted(rates)

    @property
    def lacks_dropout(self) -> bool:
        """Whether the model has dropout layers and the family nothing of them."""
        named = [name.partition("[")[0] for name in self.result.term_names]
        return bool(self.rates) and "dropout" not in named and self.reference != "applied"

    @property
    def trainable(self) -> bool:
        """Whether training can go on from the model: not by second-order solvers."""
        if self.structured or self.listed or self.kind in ("arrays", "endpoints", "linear"):
            return False
        return getattr(self.model, "solver", "") != "lbfgs"

    @property
    def can_record(self) -> bool:
        """Whether the fit is of an endpoint from which training can go on."""
        return not self.along and self.trainable and not self.evidence

    @property
    def evidence(self) -> bool:
        """Whether a trajectory beside the endpoint speaks against it."""
        found = self.equations is not None and bool(self.equations.evidence)
        return found or self.verdict == "not stationary"

    @property
    def record_helps(self) -> bool:
        """Whether a trajectory may say more, or the one that is there said that it does not."""
        n_equations, k = self.result.n_equations, len(self.result.coef)
        confirmed = "The trajectory confirms it" in self.result.verdict.sentence
        zero = self.verdict == "no signal" and self.result.r2 == 0
        return not confirmed and not zero and k < n_equations

    @cached_property
    def path(self) -> tuple[Any, str]:
        """The recorded trajectory, and how code reaches it; None where there is none."""
        given = self.est.trajectory
        for name in ("trajectory", "trajectory_"):
            if hasattr(given, name):
                return getattr(given, name), f"est.trajectory.{name}"
        if hasattr(given, "marks"):
            return given, "est.trajectory"
        made = getattr(given, "_made", None)  # by a probe
        return (None if made is None else made.trajectory), ""

    @property
    def reduced(self) -> bool:
        """Whether the trajectory holds R factors alone."""
        held, _ = self.path
        return self.along and getattr(held, "r_factors", None) is not None

    @cached_property
    def decays(self) -> bool:
        """Whether an optimizer is known to decay weights."""
        held, _ = self.path
        known = [getattr(held, "settings", {})]
        optimizer = getattr(self.model, "optimizer_", None)
        known += getattr(getattr(optimizer, "optimizer", optimizer), "param_groups", [])
        return any(group.get("weight_decay", 0) for group in known)

    # --- what it is compared with

    @property
    def reference(self) -> str:
        """Name of the reference."""
        given = self.est.reference
        return given if isinstance(given, str) else type(given).__name__.lower()

    @property
    def noisy_reference(self) -> bool:
        """Whether the noise of the batches is in the equations."""
        return self.reference == "gradient"

    @cached_property
    def exact_reference(self) -> str:
        """What the recorded trajectory can be compared with exactly; empty for neither."""
        held, _ = self.path
        if held is None or getattr(held, "r_factors", None) is not None:
            return ""
        named = all(step.rows is not None for step in held.steps)
        if self.reference == "applied":  # what is not in it is in the loss of a batch
            return "batch" if named else ""
        if held.has_gradients and self.decays and not self.lacks_dropout:
            return "applied"
        if named:
            return "batch"
        return "applied" if held.has_gradients else ""

    @property
    def better_reference(self) -> bool:
        """Whether the trajectory has an exact reference that was not taken."""
        return self.noisy_reference and bool(self.exact_reference)

    @property
    def in_the_loss(self) -> bool:
        """Whether what the optimizer does not add may have been added to the loss."""
        return self.along and self.reference == "applied" and bool(self.exact_reference)

    @property
    def epochs(self) -> bool:
        """Whether the recorded trajectory has windows of whole epochs."""
        held, _ = self.path
        return held is not None and held.marks[-1].epoch - held.marks[0].epoch > 1

    # --- what was found

    @property
    def scale_invariant(self) -> bool:
        """Whether layers whose scale the loss does not see may hide the penalty."""
        hidden = self.verdict in ("not identifiable", "no signal")
        return hidden and bool(self.result.scale_invariant)

    @property
    def other_rows(self) -> bool:
        """Whether an unpenalized intercept shows rows other than those of the training."""
        if self.equations is None or self.kind in ("arrays", "endpoints"):
            return False
        return max(place.gradient.unrest for place in self.equations.places) > AT_REST

    @property
    def too_many(self) -> bool:
        """Whether there are as many coefficients as equations."""
        return not self.structured and len(self.result.coef) >= self.result.n_equations

    @property
    def n_layers(self) -> int:
        """Number of layers of a network."""
        if self.equations is None or self.module is None:
            return 0
        return len(set(map(layer_of, self.equations.judged.names)))

    @property
    def is_spline(self) -> bool:
        """Whether a curve was found whose equations are kept."""
        named = any(name.startswith("spline_") for name in self.result.term_names)
        return named and self.equations is not None and not self.reduced

    @property
    def layers_differ(self) -> bool:
        """Whether a coefficient for each layer explains what one for all does not."""
        if self.n_layers < 2 or self.est.group_by is not None or self._layers is None:
            return False
        held, _ = self.path
        several = self.along and " + " in str(getattr(held, "optimizer", ""))
        explained = float((self._layers["share"] * self._layers["r2"]).sum())
        few = bool((self._layers["n_equations"] <= len(self.result.coef)).any())
        return not few and (explained >= _EXPLAINED > self.result.r2 or several)

    @cached_property
    def _layers(self) -> Any:
        """The table of layers, without what reads single equations."""
        kept = self.equations
        if kept is None or self.kind in ("arrays", "linear", "endpoints"):
            return None
        return table_of_layers(kept, Settings(self.est.positive, "ols"))

    @cached_property
    def cut(self) -> int | None:
        """The mark at which the coefficients change most, where the trajectory can be cut there."""
        coefs, (held, how) = self.result.path, self.path
        differs = self.verdict == "not constant" or "windows differ" in self.result.verdict.sentence
        if not differs or not self.along or not how or self.reduced or self.equations is None:
            return None
        assert coefs is not None
        own = coefs[:, list(self.result.family)]
        if len(own) < 4 or not np.isfinite(own).all():
            return None
        own = own / np.maximum(np.abs(own).max(axis=0), np.finfo(float).tiny)
        n = len(own)
        gaps = [
            i * (n - i) * float(np.square(own[:i].mean(0) - own[i:].mean(0)).sum())
            for i in range(2, n - 1)
        ]
        step = self.equations.targets.windows[2 + int(np.argmax(gaps))].start.step  # type: ignore[attr-defined]
        return next(i for i, mark in enumerate(held.marks) if mark.step == step)

    @property
    def batch_size_unknown(self) -> bool:
        """Whether BatchNorm is evaluated in batches of a size that nobody named."""
        kept = self.equations
        return (
            kept is not None
            and self.kind == "torch"
            and not self.along
            and not self.listed
            and kept.places[0].problem.batch_normalized
            and self.est.batch_size == "auto"
            and self.rows != "X"
        )

    @property
    def iterative(self) -> bool:
        """Whether the model is a linear one of scikit-learn whose solver has a tolerance."""
        if self.kind != "linear" or self.listed or getattr(self.model, "n_iter_", None) is None:
            return False
        zero = self.verdict == "no signal" and self.result.r2 == 0
        return {"tol", "max_iter"} <= set(self.est.model_.get_params()) and not zero

    @property
    def can_search(self) -> bool:
        """Whether there are other families to be asked for."""
        return self.kind != "arrays" and not self.reduced

    @property
    def has_penalty(self) -> bool:
        """Whether the fit has a penalty of weights."""
        return self.est.penalty_ is not None

    @cached_property
    def statable(self) -> bool:
        """Whether an estimator states the penalty in parameters of its own."""
        if self.kind not in ("linear", "mlp", "skorch"):
            return False
        try:
            self.est.explicit_estimator()
        except (ValueError, TypeError):
            return False
        return True

    @property
    def records_again(self) -> bool:
        """Whether a trajectory is to be recorded once more."""
        return self.along and self.noisy_reference and not self.exact_reference and self.trainable
