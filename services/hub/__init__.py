"""The hub owns datasets and their versions, base models, artifacts, quotas and signed URLs."""
