"""Where audio lies, as indexable collections of clips."""
