"""Datasets as tensors, with training, selection and test images split by fixed seeds."""

from kt_ray.data.datasets import Dataset, LabelledImages, as_float, load_dataset

__all__ = ["Dataset", "LabelledImages", "as_float", "load_dataset"]
