"""What noise along one trajectory costs a fit: the bound against simulated runs."""

import numpy as np
import pytest

from sklearn_implicitreg.theory import trajectory_bound

N_RUNS, N_STEPS = 4000, 60
STRENGTHS = np.linspace(0.0, 1.0, 21)
TRUE_STRENGTH = 0.3
RARE = 0.05


def paths_with_a_ridge(seed=0):
    """Excess of the fitted ridge and sums of D of every ridge, for many paths.

    The targets are ``0.3 theta`` and noise along theta, rarely there and then large. Where theta
    goes depends on the noise before; its norm stays 1.
    """
    rng = np.random.default_rng(seed)
    theta = np.full((N_RUNS, 3), 3**-0.5)
    fit, scale = np.zeros(N_RUNS), np.zeros(N_RUNS)
    for _ in range(N_STEPS):
        target = TRUE_STRENGTH * theta + theta * ((rng.random((N_RUNS, 1)) < RARE) - RARE)
        fit += (theta * target).sum(1)
        scale += (theta**2).sum(1)
        theta = theta - 0.2 * target + rng.uniform(-0.3, 0.3, theta.shape)
        theta /= np.linalg.norm(theta, axis=1, keepdims=True)
    losses = STRENGTHS[:, None] ** 2 * scale - 2 * STRENGTHS[:, None] * fit
    found = STRENGTHS[losses.argmin(0)]
    excess = (found - TRUE_STRENGTH) ** 2 * scale / N_STEPS
    sums = 2 * (STRENGTHS - TRUE_STRENGTH)[:, None] * (fit - TRUE_STRENGTH * scale)
    return excess, sums


class TestTrajectoryBound:
    @pytest.mark.parametrize("alpha", [0.5, 0.2, 0.05])
    def test_is_violated_in_at_most_alpha_of_the_runs(self, alpha):
        excess, sums = paths_with_a_ridge()
        reach = 2 * 0.7  # twice the largest difference of strengths
        sizes = {
            "variation": N_STEPS * reach**2 * RARE * (1 - RARE),
            "increment": (1 - RARE) * reach,
            "alpha": alpha,
        }
        bound = trajectory_bound(N_STEPS, **sizes, log_covering=np.log(len(STRENGTHS)))
        assert (excess <= sums.max(0) / N_STEPS + 1e-12).all()
        assert (excess > 1e-3).mean() > 0.05  # some paths mislead the fit
        assert (sums.max(0) / N_STEPS > bound).mean() <= alpha
        assert (excess > bound).mean() <= alpha
        assert (sums[-1] / N_STEPS > trajectory_bound(N_STEPS, **sizes)).mean() <= alpha

    def test_a_cover_adds_its_distance(self):
        grid = {"variation": 40.0, "increment": 4.0, "log_covering": 2.4}
        near = trajectory_bound(N_STEPS, **grid)
        every = trajectory_bound(N_STEPS, **grid, radius=0.05, noise=0.3)
        assert every == pytest.approx(near + 2 * 0.05 * 0.3, rel=1e-12)

    def test_rare_large_increments_need_the_second_term(self):
        """One jump in eight paths: the variance alone would promise fewer than one in twenty."""
        rng = np.random.default_rng(1)
        chance = 0.002
        jumps = rng.random((20_000, N_STEPS)) < chance
        means = (jumps - chance).mean(1)
        variation = N_STEPS * chance * (1 - chance)
        by_variance = trajectory_bound(N_STEPS, variation=variation, increment=0.0)
        bound = trajectory_bound(N_STEPS, variation=variation, increment=1.0)
        assert (means > by_variance).mean() > 0.1
        assert (means > bound).mean() <= 0.05

    def test_target_read_off_the_path_costs_pairs(self):
        sizes = {"variation": 2.0, "increment": 0.3, "radius": 0.1, "noise": 0.7}
        read = trajectory_bound(50, **sizes, log_covering=1.5, fixed_target=False)
        fixed = trajectory_bound(50, **sizes, log_covering=3.0)
        assert read == pytest.approx(fixed + 2 * 0.1 * 0.7, rel=1e-12)

    @pytest.mark.parametrize(
        "wrong",
        [{"n_steps": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"variation": -1.0}, {"noise": np.nan}],
        ids=str,
    )
    def test_numbers_out_of_range(self, wrong):
        right = {"n_steps": 10, "variation": 1.0, "increment": 1.0}
        with pytest.raises(
            ValueError, match=f"Expected {next(iter(wrong))} of trajectory_bound to be a"
        ):
            trajectory_bound(**(right | wrong))
