"""Reaching the Hugging Face hub: quietly, and without a minute of retries where there is no network."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse


def unreachable() -> str | None:
    """Why the hub cannot be asked: ``HF_HUB_OFFLINE`` is set, or its name does not resolve. None: it may answer.

    Behind a proxy names are the proxy's business, so nothing is concluded there.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    proxies = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    if any(os.environ.get(name) for name in proxies):
        return None
    address = urlparse(constants.ENDPOINT)
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return f"{address.hostname} does not resolve"
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and nothing below an error from transformers and huggingface_hub; both as before afterwards."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    hub_logger = logging.getLogger("huggingface_hub")
    hub_level, verbosity = hub_logger.level, transformers_logging.get_verbosity()
    bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    gguf_bar = modeling_gguf_pytorch_utils.tqdm
    hub_logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # The GGUF reader takes its bar from tqdm itself, which none of the switches above reach.
    modeling_gguf_pytorch_utils.tqdm = lambda iterable, **_: iterable
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = gguf_bar
        if bars:
            transformers_logging.enable_progress_bar()
            if not hub_bars:
                disable_progress_bars()
        transformers_logging.set_verbosity(verbosity)
        hub_logger.setLevel(hub_level)
