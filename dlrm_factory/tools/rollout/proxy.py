"""A configuration of nginx that splits requests between the default version and a canary."""

from __future__ import annotations

import re
from urllib.parse import quote

from dlrm_factory.errors import ServingError
from dlrm_factory.tools.client.canary import hundredths

__all__ = ["proxy_config"]

_KEY = re.compile(r"[$\w:.@${}-]+")

_TEXT = """\
# Include it in nginx's http block. Written by `dlrm proxy`.
# {percent} of the keys ask version {version} of model {model}; a key keeps its version.
# DLRMClient(canary=Canary(version="{version}", share={share:g})) sends the same keys there.
split_clients "{key}" $dlrm_split {{
    {percent}  "/predictions/{model_path}/{version_path}";
    *  "/predictions/{model_path}";
}}

# Whoever sends no key asks the default version.
map "{key}" $dlrm_path {{
    ""  "/predictions/{model_path}";
    default  $dlrm_split;
}}

upstream dlrm {{
    server {server};
    keepalive 64;
}}

server {{
    listen {listen};
    client_max_body_size {max_body};
    # A body that nginx holds in memory can be sent again.
    client_body_buffer_size {max_body};

    location = /predictions/{model_path} {{
        error_page 404 502 503 504 = @dlrm_default;
        proxy_intercept_errors on;
        rewrite ^ $dlrm_path break;
        proxy_pass http://dlrm;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_read_timeout {timeout}s;
    }}

    # The canary is gone, or has no worker: its share asks the default version.
    location @dlrm_default {{
        rewrite ^ /predictions/{model_path} break;
        proxy_pass http://dlrm;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
    }}

    location / {{
        proxy_pass http://dlrm;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
    }}
}}
"""


def proxy_config(
    *,
    version: str,
    share: float,
    key: str,
    model: str = "dlrm",
    server: str = "127.0.0.1:8080",
    listen: str = "127.0.0.1:8000",
    max_body_bytes: int = 6619036,
    timeout_s: int = 5,
) -> str:
    """Text for nginx's ``http`` block: ``share`` of the keys ask ``version``, the others the default version.

    Args:
        version: of the canary.
        share: from 0 to 1, in steps of 0.0001.
        key: variable of nginx that says who asks, such as ``$http_x_user_id``.
        model: its name on the server.
        server: HOST:PORT of the server's predictions.
        listen: HOST:PORT of the proxy.
        max_body_bytes: of a request.
        timeout_s: seconds after which a request without an answer is sent to the default version.

    Raises:
        ServingError: a share, a key or an address that nginx would not read as it is meant.
    """
    if not 0 < share < 1 or not hundredths(share):
        raise ServingError(f"a canary takes more than 0 % and less than 100 % of the keys, not {share:.4%}")
    if "$" not in key or not _KEY.fullmatch(key):
        raise ServingError(f'--key "{key}" names no variable of nginx, as $http_x_user_id does')
    for name, value in (("server", server), ("listen", listen)):
        if not re.fullmatch(r"[\w.:\[\]-]+", value):
            raise ServingError(f'--{name} "{value}" is not HOST:PORT')
    percent = f"{hundredths(share) / 100:g}%"
    return _TEXT.format(
        percent=percent,
        version=_one_line(version),
        version_path=quote(version, safe=""),
        model=_one_line(model),
        model_path=quote(model, safe=""),
        share=hundredths(share) / 10_000,
        key=key,
        server=server,
        listen=listen,
        max_body=max_body_bytes,
        timeout=timeout_s,
    )


def _one_line(text: str) -> str:
    return "".join(char for char in text if char.isprintable())
