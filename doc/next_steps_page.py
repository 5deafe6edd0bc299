"""The page "What do I do next?", from the table that `next_steps` reads."""

import torch
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.regression.verdict import VERDICTS
from sklearn_implicitreg.results.next_steps import RULES, filled
from sklearn_implicitreg.results.situation import Situation
from sklearn_implicitreg.results.step_code import fields_of

# What the code is about where the rule alone does not say it.
_CODE = {
    "Read what the steps": ('mode="trajectory", reference="batch", window="epoch"', ""),
    "Give each layer": ('group_by="layer"', ""),
    "Take the reference": ('reference="batch"', ""),
    "Look for it": ('reference="batch"', ""),
    "Add what dropout": (
        "family=WeightDecay() + Dropout(0.3)",
        "from sklearn_implicitreg.penalties import Dropout, WeightDecay\n\n",
    ),
}


def page():
    """Text of the page: a section for each verdict, its steps in the order of the table."""
    example = _example()
    fields = {**fields_of(example), "cut": 8, "path": "est.trajectory", "rates": "0.3"}
    lines = []
    for verdict in VERDICTS:
        lines += [f"## `{verdict}`", ""]
        for rule in RULES:
            if verdict in rule.verdicts:
                lines += _step(rule, fields)
    return "\n".join(lines)


def _step(rule, fields):
    if "read what the optimizer" in rule.title:
        fields = {**fields, "again": fields["again"].replace('"batch"', '"applied"')}
    known = [code for start, code in _CODE.items() if rule.title.startswith(start)]
    if known:
        changes, before = known[0]
        own = {"again": f"est.set_params({changes}).fit(X, y)", "before": before}
        fields = {**fields, **own}
    step = filled(rule, fields)
    head = f"**{step.title}.** {step.why} *Cost: {step.cost}.*"
    return [head, "", "```python", step.code, "```", ""]


def _example():
    """The situation of a small net of plain torch."""
    torch.manual_seed(0)
    net, X = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(20, 3)
    est = ImplicitRegularizationEstimator(net, loss="mse").fit(X, X[:, :1])
    return Situation(est, est._result, est._equations, rows_are="tensors")


if __name__ == "__main__":
    print(page())
