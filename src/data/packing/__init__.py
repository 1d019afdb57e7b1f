"""Pack audio files into tar shards or a Hugging Face dataset."""
