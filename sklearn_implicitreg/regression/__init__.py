"""The regression: from R factors to coefficients, their errors and a verdict."""
