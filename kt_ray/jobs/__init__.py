"""Studies as jobs of a Ray cluster, functions as its tasks, and the devices that its workers have."""
