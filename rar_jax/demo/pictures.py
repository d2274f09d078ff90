"""What the page shows, as HTML: images, the order in which they are drawn, and surprise."""

import base64
import html
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image

_CELL = 10


def png(image: np.ndarray) -> bytes:
    """Returns the contents of a PNG file with an image, uint8 [H, W, 3] or [H, W]."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def data_uri(image: np.ndarray) -> str:
    """Returns an image, uint8 [H, W, 3] or [H, W], as the address of a PNG file that contains it."""
    return data_address(png(image), "image/png")


def data_address(data: bytes, kind: str) -> str:
    """Returns an address that contains a file of a media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def read_data_uri(address: str) -> bytes:
    """Returns the file that a data address contains, or nothing if it is not such an address."""
    try:
        return base64.b64decode(address.partition(";base64,")[2], validate=True)
    except ValueError:
        return b""


def figures(images: np.ndarray, captions: Sequence[str], actions: Sequence[tuple[str, str]]) -> str:
    """Lays images out as figures with captions and buttons.

    Args:
      images: uint8 [N, H, W, 3].
      captions: N texts.
      actions: (name, text) of the buttons under each image. A button has the name and the number of the image.
    """
    parts = []
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        text = html.escape(f"Image {number + 1}, {caption}")
        buttons = "".join(
            f'<button type="button" data-action="{name}" data-number="{number}" aria-label="{label}: {text}">'
            f"{label}</button>"
            for name, label in actions
        )
        parts.append(
            f'<figure><img src="{data_uri(image)}" alt="{text}"><figcaption>{html.escape(caption)}</figcaption>'
            f'<div class="actions">{buttons}</div></figure>'
        )
    return f'<div class="figures">{"".join(parts)}</div>'


def placeholder(text: str) -> str:
    """Returns the text that stands where images will be."""
    return f'<p class="placeholder">{html.escape(text)}</p>'


def status(message: str) -> str:
    """Returns a line that screen readers announce when it changes."""
    return f'<p class="status" role="status" aria-live="polite">{html.escape(message)}</p>'


def order_map(order: np.ndarray, known: np.ndarray) -> str:
    """Draws the order of a grid: later positions are darker, and positions that are not known yet are outlined.

    Args:
      order: int [T], positions in the order visited.
      known: bool [T].
    """
    side = round(len(order) ** 0.5)
    rank = np.argsort(order) / max(1, len(order) - 1)
    cells = [
        f'<rect x="{_CELL * (i % side)}" y="{_CELL * (i // side)}" width="9" height="9" rx="2" '
        + (f'style="fill:hsl(215 70% {82 - 55 * rank[i]:.0f}%)"/>' if known[i] else 'class="unknown"/>')
        for i in range(len(order))
    ]
    text = f"Order of the first image: {int(known.sum())} of {len(order)} tokens are known"
    size = _CELL * side
    return f'<svg class="map" viewBox="0 0 {size} {size}" role="img" aria-label="{text}">{"".join(cells)}</svg>'


def heat_map(image: np.ndarray, surprise: np.ndarray) -> str:
    """Draws the surprise of each token over an image.

    Args:
      image: uint8 [S, S, 3].
      surprise: float [T], nats, in grid order.
    """
    side = round(len(surprise) ** 0.5)
    low, high = float(surprise.min()), float(surprise.max())
    colours = matplotlib.colormaps["magma"]((surprise - low) / max(high - low, 1e-6))[:, :3].reshape(side, side, 3)
    # Enlarged so that each token has sharp edges over a smooth image.
    size = side * max(16, image.shape[0] // side)
    under = np.asarray(Image.fromarray(image).convert("L").resize((size, size), Image.Resampling.BICUBIC), np.float32)
    over = 255 * colours.repeat(size // side, 0).repeat(size // side, 1)
    mixed = (0.35 * under[..., None] + 0.65 * over).clip(0, 255).astype(np.uint8)
    text = f"Surprise of each token, from {low:.1f} nats (dark) to {high:.1f} nats (bright)"
    return f'<figure class="heat"><img src="{data_uri(mixed)}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def download_link(data: bytes, kind: str, name: str, text: str) -> str:
    """Returns a link that saves a file that the page itself contains."""
    address = data_address(data, kind)
    return f'<a class="download" download="{html.escape(name)}" href="{address}">{html.escape(text)}</a>'


def recipe(command: str, program: str, note: str = "") -> str:
    """Shows the command and the Python call that give the same images."""
    above = f"<p>{html.escape(note)}</p>" if note else ""
    return f"{above}<pre>{html.escape(command)}</pre><pre>{html.escape(program)}</pre>"
