"""
Longley's data: reading a fit whose terms are nearly collinear
==============================================================

Longley's employment data have been the test of least squares since 1967: six features that rise
together over sixteen years. A ridge regression on them is known only from a table, with three
decimals. What was its penalty? Seen at six weights that were rounded, penalties look alike, and the
summary has to say so.
"""

import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm
from sklearn.linear_model import Ridge
from sklearn.preprocessing import scale

from sklearn_implicitreg import ImplicitRegularizationEstimator, equations

data = sm.datasets.longley.load_pandas()
X, y = scale(data.exog), scale(data.endog)
model = Ridge(alpha=1.0).fit(X, y)
model.coef_ = model.coef_.round(3)
truth = 1.0 / len(y)  # the coefficient of Ridge(alpha=1) under "l2"

# %%
# Three terms at once
# -------------------
# The family explains nearly all of the gradient, and the F test leaves no doubt about that. Yet its
# columns are close to dependent: a variance inflation of 59 makes the standard error of ``l2``
# eight times as wide, and the note says to test the terms together.


def fitted(family):
    """Fit with the classical covariance, as six equations allow no finer one."""
    return ImplicitRegularizationEstimator(model, family=family, covariance="ols").fit(X, y)


all_three = fitted("l2+l1+power")
print(all_three.summary())

# %%
# Are two of them needed?
# -----------------------
# A Wald test of linear restrictions asks about both together. It does not reject, and by AIC and
# BIC they are not worth their place.

test = all_three.wald_test("l1 = 0, power = 0")
print(test)
alone = fitted("l2")
print(alone.summary())
for name, fit in {"l2": alone, "l2 + l1 + power": all_three}.items():
    print(f"{name:16} AIC {fit.aic_:6.1f}   BIC {fit.bic_:6.1f}")

# %%
# Which equation decides?
# -----------------------
# One equation per weight, so influence is a property of the features. The weight of ARMED is the
# smallest: ``l1`` has its full slope there, where the others have next to none. This equation, with
# a leverage near one, is what tells them apart. UNEMP has a residual that the others do not
# explain: a rounded weight disturbs the equations of all features that it is correlated with, so
# errors are not independent, and the intervals are to be read as such.

influence = all_three.influence()
influence.index = data.exog.columns
print(influence[["hat_diag", "student_resid", "cooks_d"]].round(3))

# %%
# Back to the model
# -----------------
# Trained again with the penalty found, the weights return to the table's; without it they are those
# of the ordinary least squares that Longley warned of.

recovery = alone.recover(X, y)
print(recovery)

# %%
families = ["l2", "l2+l1", "l2+l1+power"]
frames = [fitted(family).to_frame().iloc[0] for family in families]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for place, row in enumerate(frames):
    left.plot([place, place], [row.ci_low, row.ci_high], color="C0")
    left.plot(place, row.coef, "o", color="C0")
left.axhline(truth, color="0.6", linestyle="--", label="trained with")
left.set_xticks(range(3), [f"{f}\nVIF {r.vif:.0f}" for f, r in zip(families, frames, strict=True)])
left.set(ylabel="coefficient of l2, 95 % interval", xlim=(-0.5, 2.5), ylim=(0, None))
left.legend()
right.barh(influence.index, influence["hat_diag"])
right.invert_yaxis()
right.set(xlabel="leverage of the weight's equation, three terms", xlim=(0, 1))

# %%
rows = equations(model, X, y, families="l2+l1+power")
ols = sm.OLS(rows.target, rows.data, hasconst=False).fit()
np.testing.assert_allclose(all_three.coef_, ols.params, rtol=1e-10)
np.testing.assert_allclose([all_three.aic_, all_three.bic_], [ols.aic, ols.bic], rtol=1e-10)
assert max(all_three.vif_) > 50
assert any("close to dependent" in note for note in all_three.summary().notes)
assert test.p_value > 0.2
assert alone.aic_ < all_three.aic_
assert alone.conf_int_[0, 0] < truth < alone.conf_int_[0, 1]
assert influence["hat_diag"].idxmax() == influence["cooks_d"].idxmax() == "ARMED"
assert recovery.is_minimizer
assert recovery.recovered.distance < 0.02 < recovery.ablated.distance
