"""Rules of the export: type plan, adapter algebra, proof gates, templates."""
