"""Files, databases and text that the rest of the package reads and writes in one way."""
