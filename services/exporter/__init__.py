"""Exporter: merges an adapter into its base, quantises it in one pass, proves it and bundles it."""
