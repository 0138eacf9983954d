"""Corpus: dataset formats, chat rendering, label masks and packing; the tokenizer is passed in."""
