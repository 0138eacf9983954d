"""Ways to bring the platform up: without containers, in containers, on a cluster."""
