"""Features and outputs by name wherever a linear model has names, and numbers where it has none."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from torch import nn

from sklearn_implicitreg import (
    Endpoint,
    ImplicitRegularizationEstimator,
    LinearModel,
    equations,
)

X, Y = load_diabetes(return_X_y=True, as_frame=True)
X = X[["age", "sex", "bmi"]].assign(group=np.array(["a", "b", "c"])[np.arange(len(X)) % 3])
NUMERIC = X[["age", "sex", "bmi"]]
TARGETS = pd.DataFrame({"height": Y, "weight": Y**0.5})
TABLE = ColumnTransformer(
    [
        ("num", StandardScaler(), ["age", "bmi"]),
        ("cat", OneHotEncoder(sparse_output=False), ["group"]),
    ]
)
BEHIND = ["num__age", "num__bmi", "cat__group_a", "cat__group_b", "cat__group_c"]


def names(model, X, y, family="l2", **options):
    """Names of the equations, in all the tables that have them."""
    est = ImplicitRegularizationEstimator(model, family=family, params="all", **options).fit(X, y)
    found = equations(est, X, y).data.index
    influence = est.influence().index
    assert influence.names == found.names == ["tensor", "coordinate"]
    assert list(influence) == list(found)
    return found.get_level_values("coordinate").tolist()


PIPELINES = {
    "columns": make_pipeline(TABLE, Ridge(3.0)),
    "set_output": make_pipeline(clone(TABLE), Ridge(3.0)).set_output(transform="pandas"),
    "nested": make_pipeline(TABLE, make_pipeline(StandardScaler(with_mean=False), Ridge(3.0))),
    "search": GridSearchCV(make_pipeline(TABLE, Ridge()), {"ridge__alpha": [1.0, 3.0]}, cv=3),
    "target": TransformedTargetRegressor(
        make_pipeline(TABLE, Ridge(3.0)), func=np.sqrt, inverse_func=np.square
    ),
    "inside": make_pipeline(
        TABLE, TransformedTargetRegressor(Ridge(3.0), transformer=StandardScaler())
    ),
}


@pytest.mark.parametrize("model", PIPELINES.values(), ids=PIPELINES)
def test_names_behind_the_last_transformer(model):
    fitted = model.fit(X, Y)
    for given in (fitted, FrozenEstimator(fitted)):
        assert names(given, X, Y) == [*BEHIND, "intercept"]


def test_a_nested_pipeline_has_the_same_coefficients():
    outer = make_pipeline(TABLE, make_pipeline(StandardScaler(with_mean=False), Ridge(3.0)))
    flat = make_pipeline(TABLE, StandardScaler(with_mean=False), Ridge(3.0))
    found = [ImplicitRegularizationEstimator(m.fit(X, Y)).fit(X, Y).coef_ for m in (outer, flat)]
    assert found[0] == found[1]


def test_frames_and_series_of_coefficients():
    assert names(Ridge(3.0).fit(NUMERIC, Y), NUMERIC, Y) == [*NUMERIC, "intercept"]
    series = pd.Series([1.0, 2.0, 3.0], index=NUMERIC.columns)
    assert names(LinearModel(series), NUMERIC, Y) == [*NUMERIC]


def test_numbers_where_there_are_no_names():
    values = NUMERIC.to_numpy()
    assert names(Ridge(3.0).fit(values, Y), values, Y) == [0, 1, 2, 0]
    silent = make_pipeline(FunctionTransformer(), Ridge(3.0)).fit(values, Y)
    assert names(silent, values, Y) == [0, 1, 2, 0]


def test_outputs_have_names():
    model = Ridge(3.0).fit(NUMERIC, TARGETS)
    pairs = [f"{y},{x}" for y in TARGETS for x in NUMERIC]
    assert names(model, NUMERIC, TARGETS) == [*pairs, *TARGETS]
    assert names(model, NUMERIC, TARGETS.to_numpy())[:2] == ["0,age", "0,sex"]
    iris, species = load_iris(return_X_y=True, as_frame=True)
    labels = np.array(["setosa", "versicolor", "virginica"])[species]
    logistic = LogisticRegression(max_iter=999).fit(iris.iloc[:, :2], labels)
    found = names(logistic, iris.iloc[:, :2], labels)
    assert found[2] == "versicolor,sepal length (cm)"
    assert found[-3:] == ["setosa", "versicolor", "virginica"]
    assert names(
        LogisticRegression(max_iter=999).fit(iris.to_numpy(), labels), iris.to_numpy(), labels
    )[:2] == [
        "setosa,0",
        "setosa,1",
    ]


def test_one_penalty_for_each_output():
    model = Ridge(np.array([3.0, 5.0])).fit(NUMERIC, TARGETS)
    est = ImplicitRegularizationEstimator(model).fit(NUMERIC, TARGETS)
    assert est.term_names_ == ["l2[output height]", "l2[output weight]"]
    assert est.in_model_units()["alpha"] == pytest.approx([3.0, 5.0])
    rows = equations(est, NUMERIC, TARGETS).data
    assert list(rows.index)[3] == ("coef[1]", "age")
    plain = ImplicitRegularizationEstimator(model).fit(NUMERIC, TARGETS.to_numpy())
    assert plain.term_names_ == ["l2[output 0]", "l2[output 1]"]


def test_families_that_are_solved_as_a_whole():
    est = ImplicitRegularizationEstimator(Ridge(3.0).fit(NUMERIC, Y), family="diagonal")
    est.fit(NUMERIC, Y)
    assert list(est.term_names_) == [f"diagonal[coef[{name}]]" for name in NUMERIC]
    assert "diagonal[coef[bmi]]" in str(est.summary())
    assert est.to_frame()["term"].tolist() == list(est.term_names_)
    group = [Endpoint(Ridge(a).fit(NUMERIC, y), NUMERIC, y) for a, y in ((3.0, Y), (3.0, -(Y**2)))]
    matrix = ImplicitRegularizationEstimator(None, family="quadratic", params="all").fit(group)
    assert matrix.term_names_[1] == "q[coef[age],coef[sex]]"
    assert matrix.term_names_[3] == "q[coef[age],intercept]"
    two = ImplicitRegularizationEstimator(Ridge(3.0).fit(NUMERIC, TARGETS), family="diagonal")
    assert two.fit(NUMERIC, TARGETS).term_names_[0] == "diagonal[coef[height,age]]"


def test_zeros_of_a_lasso_leave_the_names_of_the_others():
    data = load_diabetes(as_frame=True)
    model = Lasso(2.0).fit(data.data, data.target)
    est = ImplicitRegularizationEstimator(model, family="l1").fit(data.data, data.target)
    kept = equations(est, data.data, data.target).data.index.get_level_values("coordinate")
    assert kept.tolist() == data.data.columns[model.coef_ != 0].tolist()


def test_recovered_weights():
    model = Ridge(3.0).fit(NUMERIC, Y)
    back = ImplicitRegularizationEstimator(model).fit(NUMERIC, Y).recover(NUMERIC, Y)
    assert list(back.to_frame().index) == [("coef", name) for name in NUMERIC]


def test_endpoints():
    group = [Endpoint(Ridge(a).fit(NUMERIC, Y), NUMERIC, Y) for a in (3.0, 4.0)]
    est = ImplicitRegularizationEstimator(None).fit(group)
    assert list(equations(est, group).data.index)[4] == (1, "coef", "sex")
    assert list(est.influence().index)[0] == ("endpoint 0", "coef", "age")


def test_networks_have_numbers():
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    rows = equations(net, NUMERIC.to_numpy(), Y.to_numpy()[:, None], "l2", loss="mse").data
    assert rows.index.get_level_values("coordinate").tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def test_linear_regression_of_one_feature():
    one = NUMERIC[["bmi"]]
    assert names(LinearRegression().fit(one, Y), one, Y + one["bmi"]) == ["bmi", "intercept"]
