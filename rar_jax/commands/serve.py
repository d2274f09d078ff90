"""Opens a page that samples images while you watch, fills painted parts, and compares classes by likelihood.

    python -m rar_jax serve --checkpoint=runs/digits
    python -m rar_jax serve --checkpoint=rar_b.bin --tokenizer=VQGAN

The page needs Gradio: pip install -e ".[demo]".
"""

import importlib.util
import os
import socket

from absl import flags

from rar_jax.commands import cli, shared_flags
from rar_jax.errors import UserError
from rar_jax.generate import load

_CHECKPOINT = shared_flags.define_checkpoint()
_TOKENIZER = shared_flags.define_model_tokenizer()
_STEP = shared_flags.define_step()
_HOST = flags.DEFINE_string(
    "host",
    "127.0.0.1",
    "Address to listen on: 127.0.0.1 serves this machine only, 0.0.0.0 other machines too.",
)
_PORT = flags.DEFINE_integer("port", 7860, "Port to listen on.", 1, 65535)
_MAX_IMAGES = flags.DEFINE_integer("max_images", 8, "Largest number of images drawn at once.", 1, 64)


def main(argv):
    del argv
    if not _CHECKPOINT.value:
        raise UserError("name a model with --checkpoint=RUN")
    if importlib.util.find_spec("gradio") is None:
        raise UserError('the page needs Gradio: install it with pip install -e ".[demo]"')
    cli.keep_compiled_programs()
    # Gradio reads these when it is imported.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    from rar_jax.demo.events import Events
    from rar_jax.demo.page import serving
    from rar_jax.demo.recipes import Model
    from rar_jax.demo.studio import Studio

    # Before the model is loaded. The page would find out too, but only afterwards.
    try:
        family, *_, address = socket.getaddrinfo(_HOST.value, _PORT.value, type=socket.SOCK_STREAM)[0]
        socket.create_server(address, family=family).close()
    except OSError as error:
        raise UserError(f"--host={_HOST.value} --port={_PORT.value}: {error}; choose another port or host") from None
    generator = load(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
    model = Model(_CHECKPOINT.value, _STEP.value, _TOKENIZER.value)
    events = Events(Studio(generator, _MAX_IMAGES.value), model)
    with serving(events, _HOST.value, _PORT.value) as page:
        print(f"http://{_HOST.value}:{_PORT.value}: the page of {_CHECKPOINT.value}; stop it with Ctrl-C", flush=True)
        page.block_thread()
