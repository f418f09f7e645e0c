"""Normalisation layers: their mathematics, and changing them inside a model."""
