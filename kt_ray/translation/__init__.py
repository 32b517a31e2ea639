"""Translators: what they read and write, how they are trained, evaluated and used."""
