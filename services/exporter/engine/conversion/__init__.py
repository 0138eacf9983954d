"""Everything that drives or patches llama.cpp's converter.

`process` is the one entry: it runs `python -m exporter.engine.conversion`, a process of its own,
over one checkpoint. There `patched_converter` puts our parts in the place of the converter's. What
the pinned converter must keep for that is held by `tests/contract/test_llama_converter.py`.
"""
