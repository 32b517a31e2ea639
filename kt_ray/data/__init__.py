"""Datasets as tensors, with training, selection and test images split by fixed seeds."""

from kt_ray.data.datasets import Dataset, load_dataset
from kt_ray.data.images import LabelledImages, as_float
