"""Start the server."""

from __future__ import annotations

import argparse
from pathlib import Path

import uvicorn

from .door import log_to_stderr


def main() -> None:
    """Serve until stopped; settings are read from the environment."""
    parser = argparse.ArgumentParser(prog="fastapi_server", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="processes; each has a detector of its own")
    options = parser.parse_args()
    log_to_stderr()
    uvicorn.run(
        "fastapi_server.app:from_environment",
        factory=True,
        app_dir=str(Path(__file__).parents[1]),
        host=options.host,
        port=options.port,
        workers=options.workers,
        log_config=None,
        access_log=False,  # the server writes lines of its own
        timeout_graceful_shutdown=30,
    )


if __name__ == "__main__":
    main()
