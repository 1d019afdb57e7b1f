"""The encoder as other frameworks want it: one file a framework."""
