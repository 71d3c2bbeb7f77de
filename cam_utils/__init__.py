"""Explaining image classifiers: CAM methods, Shapley values of a layer, and the figures of the thesis."""

from .explanation import METHODS, Explanation, explain
from .models import class_names, load_model, preprocess

__all__ = ["METHODS", "Explanation", "class_names", "explain", "load_model", "preprocess"]
