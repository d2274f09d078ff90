"""The RAR transformer: a causal transformer that predicts image tokens in any order and is given the next position.

Dimension letters: B batch, T image tokens, S places of the sequence, D width, H heads, K width of a head, V codes,
C classes, L blocks. The tables and figures named here are those of the paper, "Randomized Autoregressive Visual
Generation" (Yu et al., 2024).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rar_jax.models.attention import ATTENDED, causal_attention
from rar_jax.models.dropout import NO_DROPOUT, Seeds, draw_seeds, drop
from rar_jax.models.gelu import gelu
from rar_jax.models.layer_norm import LayerNorm
from rar_jax.models.sizes import PREFIX, ModelConfig

# The published tables have more rows than a sequence uses. We keep the spare rows so that weights interchange.
SPARE_POSITION_ROWS = 1024
SPARE_STEP_ROWS = 100

# Takes q, k, v [B, S, H, K]. Returns the attended values [B, S, H, K] and a value to keep (a KV cache, or None).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]

_normal = nn.initializers.normal(0.02)

# Logical axes of kernels that are sharded to save memory, not to divide work. "width" belongs to kernels whose product
# is divided over heads or hidden units, "inputs" to kernels whose product is not divided.
GATHERED = ("width", "inputs")

# The name of what the policy "dots" keeps of the linear layers of a block.
PRODUCT = "product"

# Policies for the intermediate values that the backward pass keeps of a block. The names are `models.sizes.REMAT`.
REMAT_POLICIES = {
    "none": None,
    "block": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT, ATTENDED),
}


def find_attention(name: str) -> Callable:
    """Returns an implementation of causal attention with dropout by its name, one of `models.sizes.ATTENTION`."""
    if name == "xla":
        return causal_attention
    # Imported where it is used, because Pallas is an experimental part of JAX.
    from rar_jax.models.pallas_attention import pallas_attention

    return pallas_attention


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Names the logical axes of an activation, for sharding (`parallel.partition`).

    "batch" means that each device has its own images. "shared_batch" means that the devices along `tensor`, which
    divide heads or hidden units, have the same images. Outside `parallel.partition.on_mesh` this does nothing.
    """
    return nn.with_logical_constraint(x, names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(kernel: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
    """Gathers a kernel along the axes that are sharded only to save memory.

    The backward pass reuses the gathered kernel, or gathers it again if the block is rematerialised. The kernel's
    gradient is reduced and sharded in one operation (reduce-scatter). Without this function, the partitioner gathers
    some kernels a second time for the gradient of their input; a plain sharding constraint would make it reduce whole
    gradients.

    Args:
      kernel: [I, *axes of O].
      names: the logical axes of the kernel. Axes in `GATHERED` are gathered.
    """
    kernel = constrain(kernel, *names)
    return constrain(kernel, *(None if name in GATHERED else name for name in names))


def _gather_forward(kernel, names):
    return gather(kernel, names), None


def _gather_backward(names, _, gradient):
    return (constrain(gradient, *names),)


gather.defvjp(_gather_forward, _gather_backward)


class Linear(nn.Module):
    """A linear layer, x W + b.

    Attributes:
      features: O, or the axes into which O is divided.
      dtype: dtype of the computation.
      names: logical axes of the kernel reshaped to [I, *axes of O], for `gather`.
      kernel_init: initialiser of the kernel.
    """

    features: tuple[int, ...]
    dtype: jnp.dtype
    names: tuple[str | None, ...]
    kernel_init: nn.initializers.Initializer = _normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., I] -> [..., *features]."""
        shape = (x.shape[-1], math.prod(self.features))
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:]).astype(self.dtype)
        # The kernel is reshaped, because heads cannot be sharded as columns of O.
        kernel = gather(kernel.reshape(shape[0], *self.features), self.names)
        return checkpoint_name(jnp.tensordot(x, kernel, 1) + bias.reshape(self.features), PRODUCT)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv projection and LayerNorm on each head's queries and keys."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, attend: Attend, seeds: Seeds) -> tuple[jax.Array, Any]:
        """x [B, S, D] -> ([B, S, D], the value that `attend` keeps)."""
        width, heads = self.config.width, self.config.num_heads
        x = constrain(x, "shared_batch", None, None)
        qkv = Linear((3, heads, width // heads), self.dtype, ("width", None, "heads", None), name="qkv")(x)
        q, k, v = jnp.moveaxis(constrain(qkv, "shared_batch", None, None, "heads", None), 2, 0)
        q = LayerNorm(name="q_norm")(q)
        k = LayerNorm(name="k_norm")(k)
        out, kept = attend(*(constrain(each, "shared_batch", None, "heads", None) for each in (q, k, v)))
        out = constrain(out, "shared_batch", None, "heads", None).reshape(x.shape)
        out = Linear((width,), self.dtype, ("heads", "width"), name="proj")(out)
        out = constrain(out, "batch", None, None)
        return drop(out, seeds.projection, self.config.dropout), kept


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them."""

    config: ModelConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, seeds: Seeds) -> jax.Array:
        """x [B, S, D] -> [B, S, D]."""
        x = constrain(x, "shared_batch", None, None)
        x = Linear((self.config.mlp_width,), self.dtype, ("width", "hidden"), name="fc1")(x)
        x = gelu(constrain(x, "shared_batch", None, "hidden"))
        x = drop(x, seeds.hidden, self.config.dropout)
        x = constrain(x, "shared_batch", None, "hidden")
        x = Linear((self.config.width,), self.dtype, ("hidden", "width"), name="fc2")(x)
        x = constrain(x, "batch", None, None)
        return drop(x, seeds.output, self.config.dropout)


class Block(nn.Module):
    """A transformer block conditioned by adaLN-zero.

    Training and decoding share it. They differ in where the modulation comes from and in how attention is computed.
    """

    config: ModelConfig
    dtype: jnp.dtype

    def setup(self):
        width, zeros = self.config.width, nn.initializers.zeros
        self.modulation = Linear((6 * width,), self.dtype, ("inputs", None), kernel_init=zeros)
        self.norm1 = LayerNorm()
        self.attention = Attention(self.config, self.dtype)
        self.norm2 = LayerNorm()
        self.mlp = MLP(self.config, self.dtype)

    def modulate(self, condition: jax.Array) -> jax.Array:
        """Maps SiLU(c) [B, S, D] to [B, S, 6D]: shift, scale and gate for attention, then the same for the MLP."""
        return self.modulation(condition)

    def __call__(
        self, x: jax.Array, modulation: jax.Array, attend: Attend, seeds: Seeds = NO_DROPOUT
    ) -> tuple[jax.Array, Any]:
        """x [B, S, D], modulation [B, S, 6D] -> ([B, S, D], the value that `attend` keeps)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
        attended, kept = self.attention(self.norm1(x) * (1 + scale1) + shift1, attend, seeds)
        x = x + gate1 * attended
        x = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2, seeds)
        return x, kept

    def causal(self, x: jax.Array, condition: jax.Array, seeds: Seeds, attention: Callable) -> jax.Array:
        """Applies the block to a whole sequence with a causal mask.

        Args:
          x: [B, S, D].
          condition: SiLU(c), [B, S, D].
          seeds: of the block's dropouts.
          attention: from `find_attention`.

        Returns:
          [B, S, D].
        """

        def attend(q, k, v):
            return attention(q, k, v, seeds.weights, self.config.attention_dropout), None

        return self(x, self.modulate(condition), attend, seeds)[0]


class RAR(nn.Module):
    """Predicts the image tokens of a class, one after another, in any given order.

    Attributes:
      config: sizes and dropout rates.
      dtype: dtype of the computation; parameters are float32.
      remat: name in `REMAT_POLICIES`: the intermediate values that the backward pass keeps of a block.
      attention: name of the attention of whole sequences (`find_attention`).
    """

    config: ModelConfig
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    attention: str = "xla"

    def block(self) -> Block:
        """Returns one block, to be applied on its own with one layer's parameters."""
        return Block(self.config, self.dtype, parent=None)

    def setup(self):
        config = self.config
        # Image codes, a mask token that RAR does not use, the classes, the null class.
        table_rows = config.codebook_size + 1 + config.num_classes + 1
        self.embeddings = nn.Embed(table_rows, config.width, dtype=self.dtype, embedding_init=_normal)
        self.cls_token = self.param("cls_token", nn.initializers.zeros, (1, config.width))
        positions = (config.num_tokens + SPARE_POSITION_ROWS, config.width)
        self.position_embedding = self.param("position_embedding", _normal, positions)
        if config.target_aware:
            self.target_aware_embedding = self.param("target_aware_embedding", _normal, positions)
        steps = (config.num_tokens + SPARE_STEP_ROWS, config.width)
        self.step_embedding = self.param("step_embedding", _normal, steps)
        self.blocks = self.block().clone(name="blocks")
        self.head_norm = LayerNorm(learned=False)
        self.head_modulation = nn.Dense(2 * config.width, dtype=self.dtype, kernel_init=nn.initializers.zeros)
        self.lm_head = nn.Dense(config.codebook_size, dtype=self.dtype, kernel_init=_normal)

    def embed_class(self, labels: jax.Array) -> jax.Array:
        """Embeds labels: int32 [B] in 0..C -> [B, D]."""
        return self.embeddings(self.config.codebook_size + 1 + labels)

    def _add_targets(self, x: jax.Array, targets: jax.Array) -> jax.Array:
        """Adds the target-aware embedding (Figure 3) of the position that each token's output predicts.

        x is [B, N, D] and targets int32 [B, M], M <= N. Tokens after the first M predict nothing.
        """
        if not self.config.target_aware:
            return x
        added = jnp.take(self.target_aware_embedding, PREFIX + targets, axis=0).astype(self.dtype)
        return x + jnp.pad(added, ((0, 0), (0, x.shape[1] - targets.shape[1]), (0, 0)))

    def embed_prefix(self, labels: jax.Array, targets: jax.Array) -> jax.Array:
        """Embeds the cls token, and the class token once for each position that is to be predicted from it.

        Args:
          labels: int32 [B], 0..C.
          targets: int32 [B, M], the grid position that each class token's output predicts.

        Returns:
          [B, 1 + M, D].
        """
        positions = self.position_embedding[:PREFIX].astype(self.dtype)
        cls = self.cls_token.astype(self.dtype) + positions[0]
        cls = jnp.broadcast_to(cls, (labels.shape[0], 1, self.config.width))
        class_tokens = (self.embed_class(labels) + positions[1])[:, None]
        class_tokens = jnp.broadcast_to(class_tokens, (*targets.shape, self.config.width))
        return jnp.concatenate([cls, self._add_targets(class_tokens, targets)], axis=1)

    def embed_tokens(self, visited: jax.Array, positions: jax.Array, targets: jax.Array) -> jax.Array:
        """Embeds image tokens, each with its own position and the position that its output predicts.

        Args:
          visited: int32 [B, N], codes 0..V-1 in the order visited.
          positions: int32 [B, N], the grid position of each token.
          targets: int32 [B, M], M <= N, the grid position that each token's output predicts.

        Returns:
          [B, N, D].
        """
        positions = jnp.take(self.position_embedding, PREFIX + positions, axis=0).astype(self.dtype)
        return self._add_targets(self.embeddings(visited) + positions, targets)

    def condition(self, labels: jax.Array, places: jax.Array) -> jax.Array:
        """Computes SiLU(c), c = class embedding + step embedding, which modulates the blocks at given places.

        Args:
          labels: int32 [B], 0..C.
          places: int32 [S], places of the sequence, which are not permuted. The cls token has place 0.

        Returns:
          [B, S, D].
        """
        steps = jnp.take(self.step_embedding, places, axis=0).astype(self.dtype)
        return nn.silu(self.embed_class(labels)[:, None] + steps)

    def head(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """Computes the logits: x, SiLU(c) [B, S, D] -> float32 [B, S, V]."""
        scale, shift = jnp.split(self.head_modulation(condition), 2, axis=-1)
        return self.lm_head(self.head_norm(x) * (1 + scale) + shift).astype(jnp.float32)

    def __call__(
        self, visited: jax.Array, labels: jax.Array, orders: jax.Array, dropout_key: jax.Array | None = None
    ) -> jax.Array:
        """Returns logits for the tokens of each order; each token is predicted from those visited before it.

        Args:
          visited: int32 [B, N], N <= T, the first N image tokens in the order visited: x_pi(1) .. x_pi(N).
          labels: int32 [B], 0..C.
          orders: int32 [B, T], entry k-1 is pi(k).
          dropout_key: a typed PRNG key []. Dropout is applied if it is given.

        Returns:
          float32 [B, N+1, V]. Entry k predicts x_pi(k+1); at N = T the last entry predicts nothing.
        """
        length = visited.shape[1]
        prefix = self.embed_prefix(labels, orders[:, :1])
        image = self.embed_tokens(visited, orders[:, :length], orders[:, 1 : length + 1])
        x = constrain(jnp.concatenate([prefix, image], axis=1), "batch", None, None)
        condition = constrain(self.condition(labels, jnp.arange(PREFIX + length)), "batch", None, None)
        seeds = NO_DROPOUT if dropout_key is None else draw_seeds(dropout_key, self.config.depth, visited.shape[0])
        x = self._apply_blocks(x, condition, seeds)
        return self.head(x[:, 1:], condition[:, 1:])

    def _apply_blocks(self, x: jax.Array, condition: jax.Array, seeds: Seeds) -> jax.Array:
        """Scans over the blocks: x, SiLU(c) [B, S, D], seeds [L, B, 2] -> [B, S, D]."""
        attention, policy = find_attention(self.attention), REMAT_POLICIES[self.remat]

        def layer(block, x, condition, seeds):
            return constrain(block.causal(x, condition, seeds, attention), "batch", None, None), None

        if policy is not None:
            layer = nn.remat(layer, policy=policy, prevent_cse=False)
        layers = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=self.config.depth,
        )
        x, _ = layers(self.blocks, x, condition, seeds)
        return x
