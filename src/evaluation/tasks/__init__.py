"""Evaluation tasks: one file per layout in which they come, and what is known about public ones."""
