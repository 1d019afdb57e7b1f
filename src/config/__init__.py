"""Settings: their types and defaults, merging of YAML files and overrides, validation."""
