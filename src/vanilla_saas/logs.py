"""Logs go to standard error, one line an event: readable in a terminal, JSON elsewhere. Never content or secrets."""

import logging
import sys

import structlog

from vanilla_saas.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Sets up structlog for this process at `settings.log_level`."""
    # while the database is away a pool tries again by itself; a traceback at each attempt would say nothing more
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)
    terminal = sys.stderr.isatty()
    # tracebacks without the values of variables, among which are passwords and tokens
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderers: list[structlog.typing.Processor] = (
        [console] if terminal else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *renderers,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
        # asked anew for each logger: whoever replaces standard error gets the lines
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )
