"""What is raised for a clip that cannot be used."""


class AudioError(ValueError):
    """A clip that cannot be used. The message is a short reason without the file name."""
