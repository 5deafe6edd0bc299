"""How often the true family of a linear model is chosen: strengths, loose training, templates.

Usage: python benchmarks/bench_selection_linear.py
"""

import warnings

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import ElasticNet, Lasso, Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.preprocessing import StandardScaler

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator
from sklearn_implicitreg.model_selection import family_score, simplest_within_one_se

FAMILIES = ["l1", "l2", "l2+l1", "power"]
TIGHT = {"tol": 1e-12, "max_iter": 100_000}
X, Y = load_diabetes(return_X_y=True)
X, Y = StandardScaler().fit_transform(X), Y - Y.mean()


def strengths():
    """24 models at most: three penalties at eight strengths, with at least four weights left."""
    for strength in 10.0 ** np.arange(-4, 4):
        for truth, model in (
            ("l2", Ridge(strength)),
            ("l1", Lasso(strength / 100, **TIGHT)),
            ("l2+l1", ElasticNet(strength / 100, l1_ratio=0.5, **TIGHT)),
        ):
            if np.count_nonzero(model.fit(X, Y).coef_) >= 4:
                yield truth, model


def searched(model, cv, **how):
    search = GridSearchCV(
        ImplicitRegularizationEstimator(model), {"family": FAMILIES}, cv=cv, **how
    )
    return search.fit(X, Y).best_params_["family"]


def all_strengths():
    folds = KFold(20, shuffle=True, random_state=0)
    cases = list(strengths())
    own = sum(
        ImplicitRegularizationCV(m, families=FAMILIES).fit(X, Y).best_family_ == t for t, m in cases
    )
    five = sum(searched(m, 5) == t for t, m in cases)
    twenty = sum(searched(m, folds) == t for t, m in cases)
    print(
        f"strengths 1e-4 to 1e3: CV class {own}, 5 folds as they come {five}, 20 shuffled "
        f"{twenty} of {len(cases)}"
    )


def loosely_trained():
    for d in (2, 3, 5, 10):
        wide = {f"w{i}": lambda p, i=i: p["coef"].reshape(-1)[i] ** 2 for i in range(d)}
        families = {"l2": "l2", "l1": "l1", "power": "power", "wide": wide}
        right = 0
        for tol in (1e-3, 1e-5):
            for seed in range(20):
                rng = np.random.default_rng(seed)
                x = rng.normal(size=(200, d))
                y = x @ rng.normal(size=d) + rng.normal(size=200)
                ridge = Ridge(1.0, solver="sag", tol=tol, random_state=seed).fit(x, y)
                search = ImplicitRegularizationCV(ridge, families=families).fit(x, y)
                right += search.best_name_ == "l2"
        print(f"loosely trained, a family of {d} coefficients for {d} weights: {right} of 40")


def ratios():
    right = tried = 0
    for ratio in (0.02, 0.25, 0.5, 0.75, 0.98):
        for alpha in (0.01, 0.1, 1.0):
            model = ElasticNet(alpha, l1_ratio=ratio, **TIGHT).fit(X, Y)
            search = ImplicitRegularizationCV(model, families=FAMILIES).fit(X, Y)
            right += search.best_family_ == "l2+l1"
            tried += 1
    print(f"elastic nets of ratios .02 to .98: {right} of {tried}")


def templates():
    right = tried = 0
    for strength in (0.1, 1.0, 10.0, 100.0):
        for truth, model in (
            ("l2", Ridge(strength)),
            ("l1", Lasso(strength / 20, **TIGHT)),
            ("l2+l1", ElasticNet(strength / 20, l1_ratio=0.5, **TIGHT)),
        ):
            folds = KFold(20, shuffle=True, random_state=0)
            how = {"scoring": family_score, "refit": simplest_within_one_se}
            right += searched(model, folds, **how) == truth
            tried += 1
    print(f"templates, 20 folds, one-standard-error refit: {right} of {tried}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of scores below 0, of families that are not the true one
    all_strengths()
    loosely_trained()
    ratios()
    templates()
