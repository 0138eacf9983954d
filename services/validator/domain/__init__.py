"""Checks as small pure functions over facts that were gathered beforehand."""
