"""When can an influence function be believed? Estimates, ground truths and the study that compares them."""

__version__ = "0.1.0"
