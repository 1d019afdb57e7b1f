"""Files into tar shards."""
