"""What a YAML may say, how files merge, and what is refused."""
