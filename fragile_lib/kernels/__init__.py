"""Compiled passes for the multilayer perceptron and the small CNN; nothing above `objectives` sees them."""
