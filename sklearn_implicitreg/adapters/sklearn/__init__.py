"""Fitted models of scikit-learn as problems."""
