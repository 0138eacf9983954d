"""The exporter's bases and adapters, for tests that need real ones."""

from tests.integration.exporter.conftest import adapter_of, engine, model_cache, vendor

__all__ = ["adapter_of", "engine", "model_cache", "vendor"]
