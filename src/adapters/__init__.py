"""Adapters to other frameworks, one file each."""
