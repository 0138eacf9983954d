"""Tunesmith's SDK and CLI: what users and other services install."""
