"""Folders, tar shards and Hugging Face datasets as indexable collections of clips."""
