"""Endpoints: trained models, each on its data."""
