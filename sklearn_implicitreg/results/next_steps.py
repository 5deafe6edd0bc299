"""What a verdict on a model calls for: one table of rules, for `next_steps` and its page."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sklearn_implicitreg.results.situation import Situation
from sklearn_implicitreg.results.step_code import fields_of

_WIDTH = 79


class Step(NamedTuple):
    """What to do next: a title, the reason, code that runs, and what it costs."""

    title: str
    why: str
    code: str
    cost: str


@dataclass(frozen=True)
class NextSteps(Sequence[Step]):
    """Steps that a verdict calls for, the best first; printed as text, or HTML in a notebook.

    Attributes
    ----------
    verdict : str
        The verdict that they follow.
    steps : list of Step
        Title, why, code and cost of each. The code is about ``est`` and the rows of its fit.
    """

    verdict: str
    steps: list[Step]

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.steps[index]

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __repr__(self) -> str:
        parts = [f"After the verdict {self.verdict!r} ({section_of(self.verdict)}):"]
        for number, step in enumerate(self.steps, 1):
            mark = f"{number}. "
            text = f"{step.title}. {step.why} Cost: {step.cost}."
            parts.append(textwrap.fill(text, _WIDTH, initial_indent=mark, subsequent_indent="   "))
            parts.append(textwrap.indent(step.code, "       "))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        items = [
            f"<li><b>{html.escape(step.title)}</b>. {html.escape(step.why)} "
            f"Cost: {html.escape(step.cost)}.<pre>{html.escape(step.code)}</pre></li>"
            for step in self.steps
        ]
        verdict = f"<b>{html.escape(self.verdict)}</b> ({section_of(self.verdict)})"
        return f"<p>After the verdict {verdict}:</p><ol>{''.join(items)}</ol>"


class Rule(NamedTuple):
    """A step with fields to fill in, the verdicts that it follows, and when it does."""

    verdicts: tuple[str, ...]
    when: Callable[[Situation], bool]
    title: str
    why: str
    code: str
    cost: str


_UNEXPLAINED = ("partial", "out of family")
_AGAIN = "{before}{again}"

_SEARCH = Rule(
    _UNEXPLAINED,
    lambda s: s.can_search and not s.searched,
    "Search other families",
    "What is left over may be a term that this family has not.",
    "{search}",
    "{search_passes}",
)

# The rules that apply, in this order, are the steps; each verdict has one that always applies.
RULES = (
    Rule(
        ("not stationary", "no signal"),
        lambda s: s.evidence,
        "Read what the steps of the trajectory add",
        "The weights are no endpoint of a training: what its steps add to the gradient of the loss "
        "is measured along the trajectory, whatever the endpoint shows.",
        _AGAIN,
        "{passes}",
    ),
    Rule(
        (*_UNEXPLAINED, "no signal"),
        lambda s: not s.along and s.other_rows,
        "Give fit the rows of the training",
        "The gradient in the unpenalized intercept is not zero: these are other rows, weights or "
        "preprocessing than those of the training, or it had not ended.",
        "est.fit({rows})  # all rows of the training, their weights, and no others",
        "one pass over the data",
    ),
    Rule(
        ("not identifiable", "no signal"),
        lambda s: s.scale_invariant and s.can_record,
        "Train a copy on, and read what the optimizer adds",
        "The loss does not see the scale of layers that a normalization follows, so that no "
        "endpoint shows their decay; the steps of the optimizer do.",
        _AGAIN,
        "{training}, and no pass over the data",
    ),
    Rule(
        (*_UNEXPLAINED, "no signal"),
        lambda s: s.layers_differ,
        "Give each layer a coefficient of its own",
        "The same family explains the layers one by one with coefficients that differ, as "
        "where several optimizers or parameter groups have decays of their own.",
        _AGAIN,
        "{passes}",
    ),
    Rule(
        (*_UNEXPLAINED, "no signal"),
        lambda s: s.can_record and s.record_helps,
        "{record_title}",
        "An endpoint cannot tell the noise of the last steps from a missing term. Steps can: "
        "{because}.",
        _AGAIN,
        "{training}, {passes}",
    ),
    Rule(
        (*_UNEXPLAINED, "no signal"),
        lambda s: s.along and s.lacks_dropout,
        "Add what dropout adds to the loss",
        "The model has dropout layers (rate {rates}), whose masks are a penalty on average; its "
        "coefficient is 1 where the model was trained with this rate.",
        _AGAIN,
        "{passes}, and 20 with masks",
    ),
    Rule(
        (*_UNEXPLAINED, "no signal"),
        lambda s: s.along and s.better_reference,
        "Take the reference {reference!r}",
        "The gradient on all rows leaves the noise of the batches in the equations; {because}.",
        _AGAIN,
        "{passes}",
    ),
    Rule(
        (*_UNEXPLAINED, "no signal"),
        lambda s: s.in_the_loss,
        "Look for it in the loss: the reference {reference!r}",
        "The optimizer adds nothing that this family explains; {because}.",
        _AGAIN,
        "{passes}",
    ),
    Rule(
        _UNEXPLAINED,
        lambda s: s.along and s.noisy_reference and not s.better_reference and s.trainable,
        "Train a copy on, with the rows of the batches",
        "The recording does not hold what an exact reference needs: the rows of each batch or the "
        "gradients that the optimizer was given, and weights; {because}.",
        _AGAIN,
        "{training}, {passes}",
    ),
    Rule(
        _UNEXPLAINED,
        lambda s: s.batch_size_unknown,
        "Name the size of the training batches",
        "BatchNorm makes the loss a function of whole batches: the gradient is that of the "
        "training where the batches are of its size.",
        "est.set_params(batch_size=32).fit({rows})  # rows in a batch of the training",
        "one pass over the data",
    ),
    Rule(
        ("not constant", *_UNEXPLAINED),
        lambda s: s.cut is not None,
        "Fit the part after the change alone",
        "The coefficients change most at mark {cut} of the trajectory; each part has its own, and "
        "coef_path_ has those of every window.",
        "est.set_params(trajectory={path}[{cut}:]).fit({rows})",
        "{passes}",
    ),
    Rule(
        ("not constant",),
        lambda s: s.kind == "endpoints",
        "Fit each endpoint alone",
        "The endpoints have different coefficients: one for all is their average at best.",
        "fits = [est.__class__(end.model, family={family}).fit(end.X, end.y) for end in X]\n"
        "verdicts = [fit.verdict_ for fit in fits]",
        "one pass over the data of each",
    ),
    Rule(
        ("not constant",),
        lambda s: True,
        "Read the coefficients of each window",
        "One coefficient for all is rejected: coef_path_ has one row per window or endpoint, with "
        "its interval in coef_path_conf_int_.",
        "low, high = est.coef_path_conf_int_[..., 0], est.coef_path_conf_int_[..., 1]\n"
        "print(est.coef_path_)",
        "none",
    ),
    Rule(
        ("not identifiable",),
        lambda s: s.structured and s.kind == "linear" and not s.listed,
        "Give it many endpoints",
        "One endpoint has fewer equations than the family has unknowns; retrained on resamples of "
        "the rows, the model gives one set of them each time.",
        "from sklearn.base import clone\n"
        "from sklearn_implicitreg import ImplicitRegularizationEstimator, endpoints\n\n"
        "X = endpoints(clone(est.model), {rows}, {n_endpoints}, random_state=0)\n"
        "est = ImplicitRegularizationEstimator(None, family=est.family).fit(X)",
        "{n_endpoints} trainings",
    ),
    Rule(
        ("not identifiable",),
        lambda s: s.kind not in ("arrays", "endpoints") and not s.scale_invariant,
        "Let a search keep one of the terms",
        "Their gradients are linearly dependent at these weights: any of them explains what "
        "the others do, so that one is all that can be known.",
        "{search_parts}",
        "{search_passes}",
    ),
    Rule(
        ("partial",),
        lambda s: s.too_many,
        "Take fewer coefficients",
        "With as many coefficients as equations every family explains all.",
        "{fewer}",
        "{search_passes}",
    ),
    _SEARCH,
    Rule(
        (*_UNEXPLAINED, "no signal"),
        lambda s: s.iterative,
        "Train the model to its end",
        "A solver that stopped early leaves a gradient that no penalty explains.",
        "from sklearn.base import clone\n\n"
        "longer = clone(est.model).set_params(tol=1e-10, max_iter=100_000)\n"
        "est.set_params(model=longer).fit({rows})  # trains it, with the same parameters",
        "one training to a small tolerance",
    ),
    _SEARCH._replace(when=lambda s: s.can_search and s.searched),
    Rule(
        _UNEXPLAINED,
        lambda s: s.reduced,
        "Read other families, as far as they were recorded",
        "A recording of R factors answers for the families that were named; record the weights, "
        "without families=, to ask for others.",
        "print({path}.r_factors)",
        "none",
    ),
    Rule(
        _UNEXPLAINED,
        lambda s: s.kind == "arrays",
        "Look at the equations that do not fit",
        "The columns are yours: the equations of the largest influence show which is missing.",
        "print(est.influence(top=20))",
        "none",
    ),
    Rule(
        ("supported",),
        lambda s: s.statable,
        "State the penalty openly",
        "An estimator with these parameters minimizes what this model does; the parameters are "
        "est.in_model_units().",
        "explicit = est.explicit_estimator()",
        "none; one training to fit it",
    ),
    Rule(
        ("supported",),
        lambda s: s.has_penalty and not s.statable,
        "Use the penalty in the next training",
        "est.penalty_ is a function of a module or of a dict of parameters: add it to the mean "
        "loss in the place of what implied it.",
        "penalty = est.penalty_  # loss = ... + penalty(model)",
        "none",
    ),
    Rule(
        ("supported",),
        lambda s: s.is_spline,
        "See what the curve explains of equations left out",
        "Many coefficients explain much of anything: believe the curve where this is close to R2.",
        "print(est.held_out_r2())",
        "none",
    ),
    Rule(
        ("supported",),
        lambda s: s.n_layers > 1,
        "See whether every layer says the same",
        "The verdict is on all layers together; the table has each one's own coefficient and R2.",
        "print(est.by_layer())",
        "none",
    ),
    Rule(
        ("supported",),
        lambda s: not s.has_penalty,
        "Read the coefficients",
        "The table has them with their intervals, for people and for programs.",
        "print(est.to_frame())",
        "none",
    ),
    Rule(
        ("no signal",),
        lambda s: s.kind != "endpoints" and s.along,
        "Take the interval for the answer",
        "The windows differ by more than the coefficients are from zero: whatever this family "
        "adds is inside the interval. More epochs make it shorter.",
        "print(est.conf_int_)",
        "none",
    ),
    Rule(
        ("no signal",),
        lambda s: not s.along,
        "Take it for the answer",
        "There is no gradient that this family explains better than chance: nothing of this kind "
        "was added to the loss.",
        "print(est.r2_)",
        "none",
    ),
    Rule(
        ("not identifiable",),
        lambda s: True,
        "See which columns are dependent",
        "Only their joint effect is known; the summary names them.",
        "print(est.summary())",
        "none",
    ),
)


def section_of(verdict: str) -> str:
    """The section of the documentation that explains a verdict."""
    return f"doc/trust.md#{verdict.replace(' ', '-')}"


def steps_for(situation: Situation) -> NextSteps:
    """The steps of the rules that apply, at most three."""
    fields = fields_of(situation)
    found = [
        filled(rule, fields)
        for rule in RULES
        if situation.verdict in rule.verdicts and rule.when(situation)
    ]
    return NextSteps(situation.verdict, found[:3])


def filled(rule: Rule, fields: Mapping[str, object]) -> Step:
    """The step of a rule, its fields filled in."""
    return Step(*(text.format(**fields) for text in (rule.title, rule.why, rule.code, rule.cost)))
