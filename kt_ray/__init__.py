"""kt_ray: distributed hyperparameter search for Knowledge Translation (arXiv 2401.05772)."""

__version__ = "0.1.0"
