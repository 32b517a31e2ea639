"""Tests; they mirror kt_ray/."""
