"""Results of statsmodels as problems."""
