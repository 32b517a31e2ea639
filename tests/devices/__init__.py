"""Device placement, tested on a pretended CUDA device."""
