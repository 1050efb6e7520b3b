"""The page on the air: its look, its address, and nothing that calls anybody else."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from ...errors import UserError
from .page import Page

_STATIC = Path(__file__).parent / "static"
_STYLES = (Path(__file__).parents[1] / "export" / "static" / "colours.css", _STATIC / "style.css")
# Gradio's variables, in terms of those of colours.css, which know of dark mode.
_COLOURS = {
    f"{name}{mode}": value
    for mode in ("", "_dark")
    for name, value in {
        "body_background_fill": "var(--paper)",
        "body_text_color": "var(--ink)",
        "body_text_color_subdued": "var(--soft)",
        "background_fill_primary": "var(--sheet)",
        "background_fill_secondary": "var(--paper)",
        "block_background_fill": "var(--sheet)",
        "block_border_color": "var(--line)",
        "block_label_text_color": "var(--soft)",
        "block_title_text_color": "var(--soft)",
        "border_color_primary": "var(--line)",
        "border_color_accent": "var(--accent)",
        "color_accent_soft": "var(--paper)",
        "slider_color": "var(--accent)",
        "input_background_fill": "var(--paper)",
        "input_border_color": "var(--line)",
        "input_border_color_focus": "var(--accent)",
        "button_primary_background_fill": "var(--accent)",
        "button_primary_background_fill_hover": "var(--accent)",
        "button_primary_text_color": "var(--on-accent)",
        "button_secondary_background_fill": "var(--sheet)",
        "button_secondary_background_fill_hover": "var(--paper)",
        "button_secondary_border_color": "var(--line)",
        "button_secondary_text_color": "var(--ink)",
        "link_text_color": "var(--accent)",
    }.items()
}


def launched(page: Page, host: str, port: int | None) -> tuple[Any, str]:
    """The page, listening; and its address.

    Raises:
        UserError: For an address or a port that cannot be had.
    """
    try:  # gradio waits for ever for a server that cannot begin
        address = first_address(host, port or 0)
    except (OSError, UnicodeError) as error:  # a name that is none
        where = host if port is None else f"{host}:{port}"
        raise UserError(f"--host, --port: {where} cannot be listened at ({error}); name another") from error
    gr, blocks = page.gr, page.blocks()
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], text_size="md")
    theme.set(**_COLOURS, color_accent="var(--accent)")
    script = f"<script>{(_STATIC / 'client.js').read_text(encoding='utf-8')}</script>"
    try:
        _, url, _ = blocks.launch(
            server_name=address, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
            theme=theme, css="".join(path.read_text("utf-8") for path in _STYLES), head=script, footer_links=[],
            run_history=False, ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False,
        )  # fmt: skip
    except OSError as error:
        where = f"{host} has no free port" if port is None else f"{host}:{port} is taken, or cannot be listened at"
        raise UserError(f"--port: {where}; name another") from error
    return blocks, url


def first_address(host: str, port: int) -> str:
    """The first of a host's addresses that can be listened at, as it stands in a URL: IPv6 in brackets.

    Raises:
        OSError: If there is none; of the last one.
        UnicodeError: For a name that none can have.
    """
    failure = OSError("no address")
    for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            failure = error
        else:
            return f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
    raise failure
