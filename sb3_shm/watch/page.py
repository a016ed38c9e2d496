"""The page, on this computer alone: Gradio without accounts, share links and telemetry."""

import os
import socket
from typing import Any

from sb3_shm.watch.recording import Recording
from sb3_shm.watch.view import show_step, show_summary

HOST = "127.0.0.1"
SECONDS_PER_STEP = 0.5


def import_gradio() -> Any:
    """
    :return: the package ``gradio``, told to report nothing to anybody
    :raises ImportError: it is not installed
    """
    # Read when it is imported, and when it makes a page
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError as error:
        raise ImportError('watch needs gradio: pip install "sb3-shm[watch]"') from error
    return gradio


def check_port(port: int) -> None:
    """
    :param port: where the page shall be
    :raises ValueError: no port, or something else is there
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {port}")
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) == 0:
            raise ValueError(
                f"Port {port} is taken: give another one, for example --port {port + 1 if port < 65535 else 7860}"
            )


def make_page(recording: Recording, title: str) -> Any:
    """
    :param recording: an episode
    :param title: of what
    :return: the page, a ``gradio.Blocks``
    :raises ImportError: gradio is not installed
    """
    gr = import_gradio()
    last = len(recording) - 1

    def move(step: float, by: int) -> int:
        return min(max(int(step) + by, 0), last)

    # Whatever is shown is a function of the step, and of nothing that a visitor sends besides it
    quick: dict[str, Any] = dict(queue=False, show_progress="hidden", api_visibility="private")
    with gr.Blocks(analytics_enabled=False, title=f"{title}: memory", fill_width=True) as page:
        gr.HTML(show_summary(recording, title))
        with gr.Row():
            back = gr.Button("◀ Back", elem_id="back", size="sm", min_width=80)
            play = gr.Button("Play", elem_id="play", variant="primary", size="sm", min_width=80)
            forward = gr.Button("Forward ▶", elem_id="forward", size="sm", min_width=80)
        slider = gr.Slider(0, max(last, 1), value=0, step=1, label="Step", elem_id="step", buttons=[])
        shown = gr.HTML(show_step(recording, 0), elem_id="shown")
        timer = gr.Timer(SECONDS_PER_STEP, active=False)
        playing = gr.State(False)

        def show(step: float) -> str:
            return show_step(recording, move(step, 0))

        def toggle(is_playing: bool, step: float) -> tuple[bool, Any, Any, int]:
            at_end = not is_playing and step >= last
            return (
                not is_playing,
                gr.Timer(active=not is_playing),
                "Play" if is_playing else "Pause",
                0 if at_end else move(step, 0),
            )

        def tick(step: float) -> tuple[int, Any, Any, Any]:
            after = move(step, 1)
            if after < last:  # and nothing else: whoever has pressed Pause meanwhile has paused
                return after, gr.skip(), gr.skip(), gr.skip()
            return after, False, gr.Timer(active=False), "Play"

        slider.change(show, slider, shown, **quick)
        back.click(lambda step: move(step, -1), slider, slider, **quick)
        forward.click(lambda step: move(step, 1), slider, slider, **quick)
        play.click(toggle, [playing, slider], [playing, timer, play, slider], **quick)
        timer.tick(tick, slider, [slider, playing, timer, play], **quick)
    return page


def launch(page: Any, port: int, open_browser: bool = True) -> None:
    """
    Serve a page to this computer's own browsers, in a thread.

    :param page: what :func:`make_page` returned
    :param port: where
    :param open_browser: open it in the browser, if there is one
    """
    from starlette.middleware import Middleware  # comes with gradio
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        inbrowser=open_browser,
        quiet=True,
        prevent_thread_lock=True,
        footer_links=[],
        ssr_mode=False,  # or else a second server, of node
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        max_file_size=1,  # in bytes: nothing is uploaded here
        # A web page elsewhere, whose name turns out to be this computer's, is not answered
        app_kwargs=dict(middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])]),
    )
