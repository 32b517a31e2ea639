"""A study from its file to its conclusion, whatever it trains."""
