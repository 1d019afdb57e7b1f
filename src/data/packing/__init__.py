"""Pack audio files into tar shards."""
