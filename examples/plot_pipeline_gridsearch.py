"""
Which family? A trained pipeline and a grid search
==================================================

scikit-learn's own search chooses the family of penalties that explains a model which is already
trained. The pipeline around the model is handed over as it is, fitted; nothing is trained again and
nothing is copied. ``ImplicitRegularizationCV`` asks the same question without folds, in one pass
over the data.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_implicitreg import ImplicitRegularizationCV, ImplicitRegularizationEstimator

X, y = load_diabetes(return_X_y=True)
trained = make_pipeline(StandardScaler(), Ridge(alpha=50.0)).fit(X, y)

# %%
# A plain grid search
# -------------------
# The score of a fold completes the training set, because a trained model is stationary on all of
# its training rows and on no part of them. Shuffle the folds.

families = ["l1", "l2", "power"]
search = GridSearchCV(
    ImplicitRegularizationEstimator(trained),
    {"family": families},
    cv=KFold(20, shuffle=True, random_state=0),
).fit(X, y)
print(search.best_params_, search.best_estimator_.in_model_units())
print(search.best_estimator_.summary())

# %%
# The same from one pass over the data
# ------------------------------------

choice = ImplicitRegularizationCV(trained, families=families).fit(X, y)
print(choice.best_family_)

# %%
figure, ax = plt.subplots(figsize=(5, 3), layout="constrained")
ax.bar(families, search.cv_results_["mean_test_score"])
ax.set(ylabel="mean score of 20 folds", title="Ridge(alpha=50) behind a StandardScaler")

# %%
assert search.best_params_ == {"family": "l2"}
assert choice.best_family_ == "l2"
assert abs(search.best_estimator_.in_model_units()["alpha"] / 50.0 - 1) < 1e-6
