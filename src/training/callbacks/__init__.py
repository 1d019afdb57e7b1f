"""What happens around the steps of a run, one idea a file."""
