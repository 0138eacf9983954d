"""The public entry point: verifies callers, forwards gRPC calls, serves signed transfers."""
