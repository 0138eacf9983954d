"""The repository's own rules, held by tests and by small programs that `make check` runs."""
