"""Models that the project makes by itself."""
