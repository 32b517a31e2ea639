"""Tests of kt_ray.translation."""
