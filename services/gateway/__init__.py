"""The public door: verifies callers, forwards their gRPC calls, serves signed transfers."""
