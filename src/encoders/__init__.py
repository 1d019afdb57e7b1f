"""Reading and writing encoder checkpoints: one file per format, each to and from `Stored`."""
