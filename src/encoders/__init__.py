"""Every form of checkpoint in and out: one file a format, each from and to `Stored`."""
