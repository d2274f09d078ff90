"""The RAR transformer: a causal transformer over image tokens in any order, told which position comes next.

Dimension letters: B batch, T image tokens, S sequence places, D width, H heads, K width of a head, V codes, C classes,
L blocks. Tables and figures named here are those of "Randomized Autoregressive Visual Generation" (Yu et al., 2024).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from rar_jax.models.dropout import NO_DROPOUT, Seeds, draw_seeds, drop

# Every image is preceded by two tokens: cls, and the embedding of its class.
PREFIX = 2
# Published tables have more rows than a sequence uses. We keep them, so that the weights interchange.
SPARE_POSITION_ROWS = 1024
SPARE_STEP_ROWS = 100

LAYER_NORM_EPSILON = 1e-6

# Takes q, k, v [B, S, H, K]; gives the attended values [B, S, H, K] and whatever it keeps (a KV cache, or None).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

_normal = nn.initializers.normal(0.02)

# Names of axes of kernels that are split to save memory, not work. width: within a product that is split by heads or
# hidden units. rows: of one that is not.
GATHERED = ("width", "rows")

REMAT_POLICIES = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def split(x: jax.Array, *names: str | None) -> jax.Array:
    """Says by which names the axes of an activation may be split over devices (`parallel.partition`).

    batch: each device has images of its own. shared_batch: the devices that split heads or hidden units have the same
    images. Does nothing where nobody gave the names a meaning.
    """
    return nn.with_logical_constraint(x, names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(kernel: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """A kernel as its product needs it: whole along the axes that devices hold parts of only to save memory.

    What is gathered in the forward pass is kept for the backward pass, or gathered again where that computes the block
    anew (`remat`). The gradient is added up and split in one (reduce-scatter). Left to itself, the partitioner gathers
    some kernels once more for the gradient of their input; a plain constraint would ask for whole gradients.

    Args:
      kernel: [I, *axes of O].
      names: of its axes, for `split`; those in `GATHERED` are gathered.
    """
    kernel = split(kernel, *names)
    return split(kernel, *(None if name in GATHERED else name for name in names))


def _gather_forward(kernel, names):
    return gather(kernel, names), None


def _gather_backward(names, _, gradient):
    return (split(gradient, *names),)


gather.defvjp(_gather_forward, _gather_backward)


def attention_weights(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(K)) in float32.

    Args:
      q: [B, Sq, H, K].
      k: [B, Sk, H, K].
      mask: bool, broadcastable to [B, H, Sq, Sk]; False where a query may not look.

    Returns:
      [B, H, Sq, Sk] in q's dtype.
    """
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * q.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
    return jax.nn.softmax(scores).astype(q.dtype)


def weighted_values(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Mixes values [B, Sk, H, K] by weights [B, H, Sq, Sk]: [B, Sq, H, K]."""
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    """Attention of each place to itself and those before it: q, k, v [B, S, H, K] -> [B, S, H, K].

    The weights are dropped with probability `rate` where there are seeds (`models.dropout`).
    """
    mask = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    return weighted_values(drop(attention_weights(q, k, mask), seeds, rate), v)


def _few_rows_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x [..., I] by a kernel [O, I], as (kernel x^T)^T: [..., O].

    XLA's CPU code reads the weights so at 24 GB/s for two rows, against 17 as x @ kernel with a kernel [I, O] (16 rows:
    17 and 13). The barriers keep it from turning one into the other.
    """
    rows = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)
    return jax.lax.optimization_barrier(kernel @ rows).T.reshape(*x.shape[:-1], -1)


class Linear(nn.Module):
    """x W + b.

    Attributes:
      features: O, or the axes that O is viewed as. dtype: of the computation.
      transposed: the kernel is [O, I], as a decode step on a CPU reads it, instead of [I, O].
      names: of the axes of the kernel as it is viewed, [I, *axes of O], for `gather`.
      kernel_init: of the kernel.
    """

    features: tuple[int, ...]
    dtype: jnp.dtype
    transposed: bool
    names: tuple[str | None, ...]
    kernel_init: nn.initializers.Initializer = _normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., I] -> [..., O], or [..., *axes of O]."""
        shape = (x.shape[-1], math.prod(self.features))
        kernel = self.param("kernel", self.kernel_init, shape[::-1] if self.transposed else shape)
        kernel = kernel.astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(self.dtype).reshape(self.features)
        if self.transposed:
            return _few_rows_product(x, kernel).reshape(*x.shape[:-1], *self.features) + bias
        # By its axes, as heads cannot be split as columns of O.
        return jnp.tensordot(x, gather(kernel.reshape(shape[0], *self.features), self.names), 1) + bias


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv projection and LayerNorm on each head's queries and keys."""

    width: int
    num_heads: int
    dropout: float
    dtype: jnp.dtype
    transposed: bool

    @nn.compact
    def __call__(self, x: jax.Array, attend: Attend, seeds: Seeds) -> tuple[jax.Array, Any]:
        """x [B, S, D] -> ([B, S, D], what `attend` keeps)."""
        axes = 3, self.num_heads, self.width // self.num_heads
        x = split(x, "shared_batch", None, None)
        qkv = Linear(axes, self.dtype, self.transposed, ("width", None, "heads", None), name="qkv")(x)
        q, k, v = jnp.moveaxis(split(qkv, "shared_batch", None, None, "heads", None), 2, 0)
        q = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="q_norm")(q)
        k = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype, name="k_norm")(k)
        out, kept = attend(*(split(each, "shared_batch", None, "heads", None) for each in (q, k, v)))
        out = split(out, "shared_batch", None, "heads", None).reshape(x.shape)
        out = Linear((self.width,), self.dtype, self.transposed, ("heads", "width"), name="proj")(out)
        out = split(out, "batch", None, None)
        return drop(out, seeds.projection, self.dropout), kept


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    width: int
    mlp_width: int
    dropout: float
    dtype: jnp.dtype
    transposed: bool

    @nn.compact
    def __call__(self, x: jax.Array, seeds: Seeds) -> jax.Array:
        """x [B, S, D] -> [B, S, D]."""
        x = split(x, "shared_batch", None, None)
        x = Linear((self.mlp_width,), self.dtype, self.transposed, ("width", "hidden"), name="fc1")(x)
        x = nn.gelu(split(x, "shared_batch", None, "hidden"), approximate=False)
        x = drop(x, seeds.hidden, self.dropout)
        x = split(x, "shared_batch", None, "hidden")
        x = Linear((self.width,), self.dtype, self.transposed, ("hidden", "width"), name="fc2")(x)
        x = split(x, "batch", None, None)
        return drop(x, seeds.output, self.dropout)


class Block(nn.Module):
    """A transformer block conditioned by adaLN-zero.

    Training and decoding share it: they differ in where the modulation comes from, in how attention is done and, on a
    CPU, in the layout of the kernels (`transposed`, see `Linear`).
    """

    width: int
    mlp_width: int
    num_heads: int
    dropout: float
    attention_dropout: float
    dtype: jnp.dtype
    transposed: bool = False

    def setup(self):
        self.modulation = Linear(
            (6 * self.width,), self.dtype, transposed=False, names=("rows", None), kernel_init=nn.initializers.zeros
        )
        self.norm1 = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
        self.attention = Attention(self.width, self.num_heads, self.dropout, self.dtype, self.transposed)
        self.norm2 = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, dtype=self.dtype)
        self.mlp = MLP(self.width, self.mlp_width, self.dropout, self.dtype, self.transposed)

    def modulate(self, condition: jax.Array) -> jax.Array:
        """SiLU(c) [B, S, D] -> [B, S, 6D]: shift, scale and gate for attention, then the same for the MLP."""
        return self.modulation(condition)

    def __call__(
        self, x: jax.Array, modulation: jax.Array, attend: Attend, seeds: Seeds = NO_DROPOUT
    ) -> tuple[jax.Array, Any]:
        """x [B, S, D], modulation [B, S, 6D] (or [B, 1, 6D]) -> ([B, S, D], what `attend` keeps)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        attended, kept = self.attention(self.norm1(x) * (1 + scale1) + shift1, attend, seeds)
        x = x + gate1 * attended
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2, seeds)
        return x, kept

    def causal(self, x: jax.Array, condition: jax.Array, seeds: Seeds, keep_weights: bool) -> jax.Array:
        """The block over a whole sequence under a causal mask: x, SiLU(c) [B, S, D] -> [B, S, D].

        Unless `keep_weights`, the backward pass computes the attention's again: they are most of the memory of a block
        and 1% of its FLOPs.
        """
        attention = functools.partial(causal_attention, rate=self.attention_dropout)
        if not keep_weights:
            attention = jax.checkpoint(attention, prevent_cse=False)
        modulation = self.modulate(condition)
        return self(x, modulation, lambda q, k, v: (attention(q, k, v, seeds.weights), None), seeds)[0]


class RAR(nn.Module):
    """Predicts the image tokens of a class, one after another, in any given order.

    Attributes:
      grid_side: side of the token grid; T = grid_side ** 2 image tokens.
      codebook_size: V.
      num_classes: C; class C is the null class, which stands for "no class given".
      width: D. depth: L. num_heads: H. mlp_width: hidden width of the MLP.
      dropout: rate after the attention projection, after GELU and after the MLP.
      attention_dropout: rate on the attention probabilities.
      target_aware: add target-aware positional embeddings; False is the ablation of Table 3.
      dtype: of the computation; parameters are float32.
      remat: what the backward pass keeps of a block, a name of `REMAT_POLICIES`.
    """

    grid_side: int
    codebook_size: int
    num_classes: int
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    dropout: float = 0.0
    attention_dropout: float = 0.0
    target_aware: bool = True
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.grid_side**2

    @property
    def null_class(self) -> int:
        """The label that stands for "no class given"."""
        return self.num_classes

    def block(self) -> Block:
        """One block, to be applied on its own with one layer's parameters."""
        return Block(
            width=self.width,
            mlp_width=self.mlp_width,
            num_heads=self.num_heads,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            dtype=self.dtype,
            parent=None,
        )

    def setup(self):
        position_rows = self.num_tokens + SPARE_POSITION_ROWS
        # Image codes, a mask token that RAR does not use, the classes, the null class.
        rows = self.codebook_size + 1 + self.num_classes + 1
        self.embeddings = nn.Embed(rows, self.width, dtype=self.dtype, embedding_init=_normal)
        self.cls_token = self.param("cls_token", nn.initializers.zeros, (1, self.width))
        self.position_embedding = self.param("position_embedding", _normal, (position_rows, self.width))
        if self.target_aware:
            self.target_aware_embedding = self.param("target_aware_embedding", _normal, (position_rows, self.width))
        self.step_embedding = self.param("step_embedding", _normal, (self.num_tokens + SPARE_STEP_ROWS, self.width))
        self.blocks = self.block().clone(name="blocks")
        self.head_norm = nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_scale=False, use_bias=False, dtype=self.dtype)
        self.head_modulation = nn.Dense(2 * self.width, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        self.lm_head = nn.Dense(self.codebook_size, dtype=self.dtype, kernel_init=_normal)

    def embed_class(self, labels: jax.Array) -> jax.Array:
        """labels int32 [B] in 0..C -> [B, D]."""
        return self.embeddings(self.codebook_size + 1 + labels)

    def _aim(self, x: jax.Array, targets: jax.Array) -> jax.Array:
        """Adds to tokens x [B, N, D] the embedding of the position that each one's output predicts.

        targets is int32 [B, M]; the tokens after the first M predict nothing.
        """
        if not self.target_aware:
            return x
        aims = jnp.take(self.target_aware_embedding, PREFIX + targets, axis=0).astype(self.dtype)
        return x + jnp.pad(aims, ((0, 0), (0, x.shape[1] - targets.shape[1]), (0, 0)))

    def embed_prefix(self, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """The cls and the class token.

        Args:
          labels: int32 [B], 0..C.
          targets: int32 [B, 1], the grid position that the class token predicts.

        Returns:
          [B, 2, D].
        """
        positions = self.position_embedding[:PREFIX].astype(self.dtype)
        cls = jnp.broadcast_to(self.cls_token.astype(self.dtype) + positions[0], (labels.shape[0], 1, self.width))
        return jnp.concatenate([cls, self._aim((self.embed_class(labels) + positions[1])[:, None], targets)], axis=1)

    def embed_tokens(self, tokens: jax.Array, positions: jax.Array, targets: jax.Array) -> jax.Array:
        """Image tokens, with the positions they stand at and the positions they predict.

        Args:
          tokens: int32 [B, N], codes 0..V-1.
          positions: int32 [B, N], the grid position of each.
          targets: int32 [B, M], M <= N, the grid position that each one's output predicts.

        Returns:
          [B, N, D].
        """
        at = jnp.take(self.position_embedding, PREFIX + positions, axis=0).astype(self.dtype)
        return self._aim(self.embeddings(tokens) + at, targets)

    def condition(self, labels: jax.Array, places: jax.Array) -> jax.Array:
        """SiLU(c), c = class embedding + step embedding: what modulates each block, at given places of the sequence.

        Args:
          labels: int32 [B], 0..C.
          places: int32 [S], 0 for the cls token; not permuted with the tokens.

        Returns:
          [B, S, D].
        """
        steps = jnp.take(self.step_embedding, places, axis=0).astype(self.dtype)
        return nn.silu(self.embed_class(labels)[:, None] + steps)

    def head(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x, SiLU(c) [B, S, D] -> logits float32 [B, S, V]."""
        scale, shift = jnp.split(self.head_modulation(condition), 2, axis=-1)
        return self.lm_head(self.head_norm(x) * (1 + scale) + shift).astype(jnp.float32)

    def __call__(
        self, tokens: jax.Array, labels: jax.Array, orders: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Logits for the tokens of each order, every token seen by the ones after it.

        Args:
          tokens: int32 [B, N], N <= T, the first N image tokens in the order visited: x_pi(1) .. x_pi(N).
          labels: int32 [B], 0..C.
          orders: int32 [B, T], entry k-1 is pi(k).
          dropout_key: a typed PRNG key []; dropout is on when given.

        Returns:
          float32 [B, N+1, V]: entry k predicts x_pi(k+1); at N = T the last one predicts nothing.
        """
        length = tokens.shape[1]
        prefix = self.embed_prefix(labels, orders[:, :1])
        image = self.embed_tokens(tokens, orders[:, :length], orders[:, 1 : length + 1])
        x = split(jnp.concatenate([prefix, image], axis=1), "batch", None, None)
        condition = split(self.condition(labels, jnp.arange(PREFIX + length)), "batch", None, None)

        seeds = NO_DROPOUT if dropout_key is None else draw_seeds(dropout_key, self.depth, tokens.shape[0])
        policy = REMAT_POLICIES[self.remat]

        def layer(block, x, condition, seeds):
            # Where blocks are computed again as a whole, one's weights at a time are kept.
            x = block.causal(x, condition, seeds, keep_weights=policy is not None)
            return split(x, "batch", None, None), None

        if policy is not None:
            layer = nn.remat(layer, policy=policy, prevent_cse=False)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=self.depth,
        )
        x, _ = layers(self.blocks, x, condition, seeds)
        return self.head(x[:, 1:], condition[:, 1:])
