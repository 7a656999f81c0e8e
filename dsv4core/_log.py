"""What the package logs, under the name ``dsv4core``.

``logging`` is imported when something is said: discovery, which mostly has nothing to say, does without.
"""


def info(message: str, *args: object) -> None:
    """Log what happened; arguments fill the message in as with ``%``."""
    import logging

    logging.getLogger("dsv4core").info(message, *args, stacklevel=2)


def warning(message: str, *args: object) -> None:
    """Log what somebody should know; arguments fill the message in as with ``%``."""
    import logging

    logging.getLogger("dsv4core").warning(message, *args, stacklevel=2)
