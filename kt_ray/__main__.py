"""`python -m kt_ray` is the command `kt-ray`."""

from kt_ray.cli import main

main()
