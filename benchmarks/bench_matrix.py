"""Matrices and step counts from early-stopped endpoints: errors, and time against dense solving.

Run: ``python benchmarks/bench_matrix.py``
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import torch
from measuring import figures
from scipy.linalg import lstsq

from sklearn_implicitreg.penalties import EarlyStopping, Quadratic
from sklearn_implicitreg.penalties.symmetric import solve_symmetric

LR, STEPS, N, P, POOLS = 0.005, 500, 1000, 10, 5


class Descent:
    """Gradient descent from zero on mean squared error, in closed form."""

    def __init__(self, X, y):
        s, self.vectors = np.linalg.eigh(X.T @ X / len(X))
        self.s, self.moment = s, self.vectors.T @ (X.T @ y) / len(X)
        self.rest = np.mean(y**2)

    def left(self, steps):
        return np.exp(np.multiply.outer(steps, np.log1p(-2 * LR * self.s)))

    def weights(self, steps):
        return self.vectors @ ((1 - self.left(steps)) / self.s * self.moment)

    def penalty(self, steps):
        left = self.left(steps)
        return self.vectors * (self.s * left / (1 - left)) @ self.vectors.T

    def patient_steps(self, patience=5, min_delta=1e-3):
        """Step at which the loss has not fallen by ``min_delta`` for ``patience`` steps."""
        gained = (1 - self.left(np.arange(1, 2001)) ** 2) @ (self.moment**2 / self.s)
        best, waited = np.inf, 0
        for step, loss in enumerate(self.rest - gained, start=1):
            if loss < best - min_delta:
                best, waited = loss, 0
            else:
                waited += 1
            if waited == patience:
                return step
        return step


def draw():
    """The paper's draw."""
    with torch.random.fork_rng():
        torch.manual_seed(56)
        X, beta, noise = torch.randn(N, P), 3 * torch.randn(P), torch.randn(N)
    return (t.double().numpy() for t in (X, beta, noise))


def rhs(X, y, theta):
    """Minus half the gradient of the mean squared error."""
    return X.T @ (y - X @ theta) / len(X)


def error(found, truth):
    return np.linalg.norm(found - truth) / np.linalg.norm(truth)


def fresh_endpoints(X, stop, pool=0, count=100):
    """New coefficients and noise for each endpoint, the same features."""
    out = []
    for k in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(56 + 100 + 10_000 * pool + k)  # the paper's
            beta, noise = 3 * torch.randn(P), torch.randn(N)
        descent = Descent(X, y := X @ beta.double().numpy() + noise.double().numpy())
        steps = stop(descent)
        theta = descent.weights(steps)
        out.append((theta, rhs(X, y, theta), steps, descent))
    thetas, sides, steps, descents = zip(*out, strict=True)
    return np.column_stack(thetas), np.column_stack(sides), np.array(steps), descents


def fixed_stop(X) -> float:
    """Error of the matrix at the paper's setting, by number of endpoints."""
    thetas, sides, _, descents = fresh_endpoints(X, lambda descent: STEPS)
    truth, worst = descents[0].penalty(STEPS), 0.0
    for m in (1, 5, 9, 10, 11, 20, 100):
        fit = solve_symmetric(thetas[:, :m], sides[:, :m])
        backward = np.linalg.norm(fit.matrix @ thetas[:, :m] - sides[:, :m])
        backward /= 2 * np.linalg.norm(sides[:, :m])
        found = error(fit.matrix, truth)
        print(
            f"  fixed stop, {m:3d} endpoints: rank {fit.rank}/55, error {found:.1e}, backward "
            f"{backward:.1e}, bound {fit.error_bound:.1e}"
        )
        worst = max(worst, found) if m >= P else worst
    return worst


def large() -> tuple[float, float]:
    """Error at p = M = 500, time at p = M = 1000."""
    rng = np.random.default_rng(0)
    for p in (500, 1000):
        root = rng.standard_normal((p, p))
        truth, thetas = root @ root.T / p, rng.standard_normal((p, p))
        sides = truth @ thetas
        start = time.perf_counter()
        fit = solve_symmetric(thetas, sides)
        seconds = time.perf_counter() - start
        found = error(fit.matrix, truth)
        backward = np.linalg.norm(fit.matrix @ thetas - sides) / np.linalg.norm(sides) / 2
        print(
            f"  p = M = {p}: error {found:.1e}, backward {backward:.1e}, bound "
            f"{fit.error_bound:.1e}, {seconds:.1f} s"
        )
        if p == 500:
            at_500 = found
    return at_500, seconds


def speed(p=40, m=100) -> float:
    """Time against dense least squares on the p(p + 1)/2 columns, the same answer."""
    rng = np.random.default_rng(0)
    root = rng.standard_normal((p, p))
    thetas = rng.standard_normal((p, m))
    sides = (root + root.T) @ thetas + 0.1 * rng.standard_normal((p, m))
    rows, columns = np.triu_indices(p)
    scale = np.where(rows == columns, 1.0, np.sqrt(0.5))
    design = np.zeros((p, m, len(rows)))
    each = np.arange(len(rows))
    design[rows, :, each] = scale[:, None] * thetas[columns]
    design[columns, :, each] = scale[:, None] * thetas[rows]
    start = time.perf_counter()
    coef = lstsq(design.reshape(p * m, -1), sides.reshape(-1))[0]
    dense = time.perf_counter() - start
    own = np.inf
    for _ in range(20):
        start = time.perf_counter()
        fit = solve_symmetric(thetas, sides)
        own = min(own, time.perf_counter() - start)
    same = error(fit.matrix[rows, columns], coef * scale)
    print(f"  p = {p}, M = {m}: {1e3 * own:.2f} ms, dense {dense:.2f} s, differ by {same:.1e}")
    return dense / own


def variable_stop(X) -> tuple[float, float]:
    """Error against the median matrix, and of the step counts."""
    errors: dict[bool, list[float]] = {False: [], True: []}
    worst = 0.0
    for pool in range(POOLS):
        thetas, sides, steps, descents = fresh_endpoints(X, Descent.patient_steps, pool)
        truth = np.median([d.penalty(t) for d, t in zip(descents, steps, strict=True)], axis=0)
        for normalize, kept in errors.items():
            fit = Quadratic(normalize=normalize).solve(thetas, 2 * sides)
            kept.append(error(fit.penalty.matrix_, truth))
        hessian = 2 * X.T @ X / N
        problem = SimpleNamespace(hessian=lambda h=hessian: h, params={"coef": np.zeros(P)})
        family = EarlyStopping(lr=LR, shared=False)
        found = family.solve(thetas, 2 * sides, [problem] * len(steps)).coef
        worst = max(worst, float(np.abs(found / steps - 1).max()))
        print(
            f"  variable stop, pool {pool}: steps {steps.min()} to {steps.max()}, matrix of 100 "
            f"endpoints {errors[False][-1]:.3f}, normalized {errors[True][-1]:.3f}, own step "
            f"counts {np.abs(found / steps - 1).max():.1e}"
        )
    print(f"  variable stop, mean of the pools: {np.mean(errors[False]):.3f} as they are")
    return float(np.mean(errors[True])), worst


def bootstrap(X, beta, noise) -> float:
    """Largest error over that of the fitted multiple of the identity; over the noise levels."""
    worst = 0.0
    for sigma in (0.5, 1, 1.5, 2, 3, 4, 6, 8, 10, 14, 20):
        y = X @ beta + sigma * noise
        truth = Descent(X, y).penalty(STEPS)
        table = []
        for pool in range(POOLS):
            rng = np.random.default_rng(56 + 100 + 10_000 * pool)
            rows = [np.arange(N), *(rng.integers(0, N, N) for _ in range(99))]
            thetas = np.column_stack([Descent(X[r], y[r]).weights(STEPS) for r in rows])
            pairs = zip(rows, thetas.T, strict=True)
            sides = np.column_stack([rhs(X[r], y[r], theta) for r, theta in pairs])
            plain = solve_symmetric(thetas, sides)
            shrunk = solve_symmetric(thetas, sides, shrinkage="identity")
            found = (plain.matrix, plain.multiple * np.eye(P), shrunk.matrix)
            table.append([error(matrix, truth) for matrix in found])
        full, multiple, shrunk = np.mean(table, axis=0)
        ratio = max(row[2] / row[1] for row in table)
        worst = max(worst, ratio)
        print(
            f"  bootstrap, sigma {sigma:4}: full {full:6.3f}, multiple {multiple:.4f}, shrunk "
            f"{shrunk:.4f}, at most {ratio:.3f} of the multiple's"
        )
    return worst


def main() -> None:
    """Print the tables and the figures."""
    X, beta, noise = draw()
    exact = fixed_stop(X)
    at_500, seconds = large()
    times = speed()
    varied, steps = variable_stop(X)
    share = bootstrap(X, beta, noise)
    figures(
        {
            "fixed stop, 10 or more endpoints, error": exact,
            "p = M = 500, error": at_500,
            "p = M = 1000, seconds": seconds,
            "dense least squares / this package, seconds": times,
            "variable stops, normalized, error": varied,
            "own step counts, error": steps,
            "bootstrap, error / that of the fitted multiple": share,
        }
    )


if __name__ == "__main__":
    main()
