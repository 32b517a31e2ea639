"""Tests of kt_ray.translators."""
