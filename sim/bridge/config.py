"""The description of a decoder: one for all families.

Families differ in a few switches (`sim.bridge.architectures` reads them).
"""

from dataclasses import dataclass
from typing import Literal

from sim.bridge.config_file import Activation
from sim.bridge.rope import Rope

Norm = Literal["rms", "layer"]


@dataclass(frozen=True)
class Config:
    """A decoder-only transformer. Hashable, so that it is part of a compiled program's key.

    Attributes:
        family: a key of `sim.bridge.architectures.FAMILIES`.
        vocab_size: V.
        d_model: d, of the residual stream.
        num_layers: L, the number of blocks.
        num_heads, num_kv_heads: of queries; of keys and values (grouped-query attention if fewer).
        head_dim: of a head; ``num_heads * head_dim`` need not be d.
        d_mlp: width of the MLP.
        max_seq_len: the longest sequence.
        norm, eps: of all norms.
        activation, gated: of the MLP, ``down(act(gate x) * up x)`` if gated, else ``down(act(up x))``.
        learned_positions: added to the embedding; otherwise positions are rotary.
        rope: of layers without a window; None with learned positions.
        local_rope: of layers with one, if it differs.
        nope_layers: layers without any positions.
        windows: for each layer, how many positions back it sees, itself included; None for all.
        qkv_bias, out_bias, mlp_bias: which projections have biases.
        qk_norm: whether queries and keys are normalised.
        whole_qk_norm: whether that is over all heads at once and not head by head.
        pre_norm: whether a norm is before attention and MLP.
        post_norm: whether a norm follows attention and MLP.
        parallel_residual: whether the MLP reads the stream that attention reads, and not the one after it.
        query_scale: what attention logits are multiplied with.
        embedding_scale: what embeddings are multiplied with.
        residual_scale: what attention and MLP add is multiplied with.
        logit_scale: what logits are multiplied with.
        attention_softcap, final_softcap: ``c tanh(x / c)`` on attention logits, on logits.
        tied: whether the unembedding is the embedding.
    """

    family: str
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_mlp: int
    max_seq_len: int
    norm: Norm = "rms"
    eps: float = 1e-6
    activation: Activation = "silu"
    gated: bool = True
    learned_positions: bool = False
    rope: Rope | None = None
    local_rope: Rope | None = None
    windows: tuple[int | None, ...] = ()
    nope_layers: tuple[int, ...] = ()
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    whole_qk_norm: bool = False
    pre_norm: bool = True
    post_norm: bool = False
    parallel_residual: bool = False
    query_scale: float = 1.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_softcap: float | None = None
    final_softcap: float | None = None
    tied: bool = True

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The kinds of rotary positions that occur, `rope` first."""
        return tuple(rope for rope in (self.rope, self.local_rope) if rope is not None)

    @property
    def rope_kind_of_layer(self) -> tuple[int, ...]:
        """Which of `ropes` every layer uses; their number for a layer without positions."""
        local = [int(window is not None and self.local_rope is not None) for window in self.windows]
        return tuple(len(self.ropes) if i in self.nope_layers else which for i, which in enumerate(local))

    @property
    def longrope_switch_length(self) -> int | None:
        """The length beyond which a sequence has other rotary frequencies; None if there is none that the context holds."""
        lengths = [
            rope.original_context_length
            for rope in self.ropes
            if rope.scaling == "longrope" and rope.long_freq_factors != rope.freq_factors
        ]
        return lengths[0] if lengths and lengths[0] < self.max_seq_len else None
