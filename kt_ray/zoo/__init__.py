"""The zoo: recipe and seeds, training of many members at once, Ray actors, the store."""
