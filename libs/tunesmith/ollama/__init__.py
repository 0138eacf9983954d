"""Models for Ollama on the user's machine: registered through its HTTP API.

Source: docs/api.md, docs/modelfile.mdx and docs/import.mdx of Ollama.
"""
