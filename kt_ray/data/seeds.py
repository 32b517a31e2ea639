"""The seed of every split of images."""

SPLIT_SEED = 20240105  # decides which images are selection and, if a dataset has none, test images; never configurable
