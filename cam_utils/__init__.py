"""Explaining image classifiers: CAM methods, Shapley values of a layer, and the figures of the thesis."""

from .explanation import METHODS, Explanation, explain
from .games import LayerGame
from .models import class_names, load_model, preprocess

__all__ = ["METHODS", "Explanation", "LayerGame", "class_names", "explain", "load_model", "preprocess"]
