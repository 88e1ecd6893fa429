"""Hands the page to a browser: on loopback unless asked otherwise, and nothing but the page.

Gradio's own settings were tried from outside. With them it hands out no file of the machine, but it
answers to any name that a site lets point here, keeps uploads of no bytes whatever `max_file_size`
is, and tells what may be called. So a request reaches it only for what SERVED names, none of which
reads a file outside of gradio's own front end; pictures travel inside the page. Nor does its
`launch` serve: it asks for its own page, through a proxy where the environment names one; it knows
neither port 0 nor ::1; and it waits for 5 s, and then does not say why it has no port.
"""

import ipaddress
import re
import socket
import threading

import fastapi
import gradio as gr
import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from diffusion_distill.errors import UserError
from diffusion_distill.explore.page import CSS, THEME

SERVED = re.compile(
    r"/|/config|/theme\.css|/manifest\.json|/favicon\.ico"
    r"|/(assets|static)(/\w[\w.-]*)+"  # gradio's own: no part may start with a dot
    r"|/gradio_api/(run/predict|queue/join|queue/data|cancel|heartbeat/\w+)"
)


class Only:
    """Answers 404 for what SERVED does not name."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        kind = scope["type"]
        served = kind == "lifespan" or (kind == "http" and SERVED.fullmatch(scope["path"]))
        await (self._app if served else PlainTextResponse("Not found", 404))(scope, receive, send)


def application(page: gr.Blocks, host: str) -> fastapi.FastAPI:
    """The page as a web application that answers for SERVED alone.

    On loopback it answers to loopback's names alone: another site's page, whose name somebody lets
    point here, cannot use it.
    """
    allowed = [Middleware(Only)]
    if is_loopback(host):
        names = ["localhost", "127.0.0.1", "[::1]", host]
        allowed.append(Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False))
    bare = fastapi.FastAPI(openapi_url=None, middleware=allowed)
    extras = ("run_history", "show_error", "ssr_mode", "enable_monitoring", "pwa", "mcp_server")
    looks = {"theme": THEME, "css": CSS, "footer_links": []} | dict.fromkeys(extras, False)
    return gr.mount_gradio_app(bare, page, path="/", server_name=host, **looks)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def start(page: gr.Blocks, host: str, port: int) -> tuple[str, threading.Thread]:
    """Serves the page from a thread of its own, which ends with the process: (address, thread).

    Port 0 is any free one.

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
        cannot = f"cannot serve on {host}, port {port}: {error.strerror}"
        raise UserError(f"{cannot}; choose another --port or --host") from error
    app = application(page, host)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    return f"http://{host}:{listener.getsockname()[1]}/", thread
