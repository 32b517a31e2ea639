"""Recipes that launch kt_ray on clusters; `kt-ray` ships them in its wheel. Start with README.md beside this file."""
