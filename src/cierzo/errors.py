"""The mistakes that a user can make or meet."""


class CierzoError(Exception):
    """A clear one-line reason with what to do about it. The CLI prints it without a traceback."""


class WeightsError(CierzoError):
    """A model file that is missing, broken or not supported; names the file and the tensor or key."""
