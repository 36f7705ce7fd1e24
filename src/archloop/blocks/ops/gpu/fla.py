"""flash-linear-attention's kernels (the `gpu` extra) in the place of our own, by request only.

`triton_kernels.from_fla` asks for them. Ours are the default: theirs try hundreds of
configurations at the first call of each shape, for minutes; in float32 they compute in TF32; they
hand out no states before each chunk, so that a block that reads another's state computes it again.
In bfloat16 they are right for decays that occur, and for GLA and HGRN2 a little faster once tuned
(`docs/mixers.md`).

They take tokens before heads, (B, T, N, width). Shape suffixes: as in `ops.chunks`.
"""

from torch import Tensor


def gla(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTV: Tensor, g_BNTK: Tensor) -> Tensor:
    """Gated linear attention (`ops.linear_attention`) from an empty state: (B, N, T, V)."""
    from fla.ops.gla import chunk_gla

    q, k, v, g = _by_token(q_BNTK, k_BNTK, v_BNTV, g_BNTK)
    o_BTNV: Tensor = chunk_gla(q.to(v.dtype), k.to(v.dtype), v, g, scale=1.0)[0]
    return o_BTNV.transpose(1, 2)


def kda(q_BNTK: Tensor, k_BNTK: Tensor, v_BNTV: Tensor, beta_BNT: Tensor, g_BNTK: Tensor) -> Tensor:
    """The delta rule with a decay per key channel (`ops.delta_rule`) from an empty state."""
    from fla.ops.kda import chunk_kda

    q, k, v, beta, g = _by_token(q_BNTK, k_BNTK, v_BNTV, beta_BNT, g_BNTK)
    o_BTNV: Tensor = chunk_kda(q.to(v.dtype), k.to(v.dtype), v, g, beta, scale=1.0)[0]
    return o_BTNV.transpose(1, 2)


def _by_token(*parts: Tensor) -> list[Tensor]:
    return [part.transpose(1, 2) for part in parts]
