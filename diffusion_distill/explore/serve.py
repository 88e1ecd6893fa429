"""Hands the page to a browser: on loopback unless asked otherwise, and nothing but the page.

Gradio serves more than a page needs: files below its own folders, uploads, and addresses of others
that it fetches on request. Here a request reaches it only for what SERVED names, none of which
reads a file outside of gradio's own front end; pictures travel inside the page.
"""

import ipaddress
import re
import socket
import threading

import fastapi
import gradio as gr
import uvicorn
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from diffusion_distill.errors import UserError
from diffusion_distill.explore.page import CSS, THEME

SERVED = re.compile(
    r"/|/config|/theme\.css|/manifest\.json|/favicon\.ico"
    r"|/(assets|static)(/\w[\w.-]*)+"  # gradio's own: no part may start with a dot
    r"|/gradio_api/(run/predict|queue/join|queue/data|cancel|heartbeat/\w+)"
)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any free one.

    Raises:
        UserError: the port is taken or not allowed, or this machine has no such address.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        raise UserError(
            f"cannot serve on {host}, port {port}: {error.strerror}; choose another --port"
            " or --host"
        ) from error
    return listener


def application(page: gr.Blocks, host: str) -> fastapi.FastAPI:
    """The page as a web application that answers for SERVED alone.

    On loopback it answers to loopback's names alone: another site's page, whose name somebody lets
    point here, cannot use it.
    """
    app = fastapi.FastAPI(openapi_url=None)
    app = gr.mount_gradio_app(
        app,
        page,
        path="/",
        server_name=host,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css=CSS,
    )
    app.add_middleware(_Only)
    if is_loopback(host):
        names = ["localhost", "127.0.0.1", "[::1]", host]
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False)
    return app


class _Only:
    """Answers 404 for what SERVED does not name."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        served = scope["type"] == "lifespan" or (
            scope["type"] == "http" and SERVED.fullmatch(scope["path"])
        )
        answer = self._app if served else PlainTextResponse("Not found", 404)
        await answer(scope, receive, send)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def start(page: gr.Blocks, host: str, port: int) -> tuple[str, threading.Thread]:
    """Serves the page from a thread of its own, which ends with the process.

    Returns:
        The page's address, and the thread.

    Raises:
        UserError: see `listen`.
    """
    listener = listen(host, port)
    app = application(page, host)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    return f"http://{host}:{listener.getsockname()[1]}/", thread
