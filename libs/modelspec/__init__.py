"""Modelspec: models and hardware as numbers, and the words of a recipe."""
