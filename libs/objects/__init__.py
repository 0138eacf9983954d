"""Bytes by URI: a store with sha256 for every object, signed URLs, transfers, and the model hub.

Modules are imported by name (`objects.store`, `objects.signing`, `objects.transfer`,
`objects.modelhub`), so that a worker that only transfers files does not load the store's drivers.
"""
