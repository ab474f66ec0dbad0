"""Recipes: a paper's method as data, and the engine that runs it."""

from halftone.recipes.engine import Quantized, run_recipe
from halftone.recipes.recipe import BUDGETS, Recipe, load, names

__all__ = ["BUDGETS", "Quantized", "Recipe", "load", "names", "run_recipe"]
