"""Trained torch modules as problems."""
