"""Training a small network from a teacher: Factor Transfer (arXiv 1802.04977), and what it is compared with."""
