"""Linear models as problems, in closed form."""
