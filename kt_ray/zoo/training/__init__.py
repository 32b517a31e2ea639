"""Training members of a zoo, many at once."""
