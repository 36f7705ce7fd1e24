"""Other packages' layers beside our mixers: how each is built with ours' sizes, and called as ours.

A package is imported when one of its layers is built, so that a missing one, or one that refuses
this machine, costs its own rows only. Every `Peer` answers as our mixers do, `forward`,
`init_state` and `step`, so that one function measures both. `tests/oracles` compares outputs.

Shape suffixes: B batch, T time, D model width.
"""

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from archloop import registry
from archloop.blocks.ops import triton_kernels


class PeerState:
    """A layer's own cache, whatever that is; None where it is still empty."""

    def __init__(self, fresh: Callable[[], Any]) -> None:
        self.fresh = fresh
        self.reset()

    def reset(self) -> None:
        self.cache = self.fresh()
        self.num_tokens = 0


class Peer(nn.Module, ABC):
    """A layer of another package with the calls of our mixers."""

    decodes = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def fresh_cache(self) -> Any:
        return None

    @abstractmethod
    def run(self, x_BTD: Tensor, state: PeerState | None) -> Tensor:
        """Outputs (B, T, D); takes in and moves on the state, if given."""

    def init_state(self, batch_size: int, max_context: int) -> PeerState:
        return PeerState(self.fresh_cache)

    def forward(
        self, x_BTD: Tensor, state: PeerState | None = None
    ) -> tuple[Tensor, PeerState | None]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and state is None):
            y_BTD = self.run(x_BTD, state)
        if state is not None:
            state.num_tokens += x_BTD.shape[1]
        return y_BTD, state

    def step(self, x_BD: Tensor, state: PeerState, *, positions_B: Tensor) -> tuple[Tensor, Any]:
        y_B1D, _ = self(x_BD[:, None], state)
        return y_B1D[:, 0], state


class Transformers(Peer):
    """A recurrent layer of transformers; `cache_name` is what its forward calls the cache."""

    def __init__(self, layer: nn.Module, config: Any, cache_name: str = "cache_params") -> None:
        super().__init__(layer)
        self.config, self.cache_name = config, cache_name

    def fresh_cache(self) -> Any:
        return importlib.import_module("transformers").DynamicCache(config=self.config)

    def run(self, x_BTD: Tensor, state: PeerState | None) -> Tensor:
        cache = {} if state is None else {self.cache_name: state.cache}
        found = self.layer(x_BTD, **self.arguments(x_BTD, state), **cache)
        y_BTD: Tensor = found[0] if isinstance(found, tuple) else found
        return y_BTD

    def arguments(self, x_BTD: Tensor, state: PeerState | None) -> dict[str, Any]:
        return {}


class TransformersAttention(Transformers):
    """Attention of transformers over SDPA; `rotary` where it takes angles from outside.

    Without a mask SDPA is causal by itself; a window that is shorter than the input needs one.
    """

    def __init__(
        self, layer: nn.Module, config: Any, rotary: nn.Module | None = None, window: int = 0
    ) -> None:
        super().__init__(layer, config, "past_key_values")
        self.rotary, self.window = rotary, window

    def arguments(self, x_BTD: Tensor, state: PeerState | None) -> dict[str, Any]:
        past, time = 0 if state is None else state.num_tokens, x_BTD.shape[1]
        steps_T = torch.arange(past, past + time, device=x_BTD.device)
        mask = None
        if 0 < self.window < time:
            back_TT = steps_T[:, None] - steps_T
            mask = ((back_TT >= 0) & (back_TT < self.window))[None, None]
        if self.rotary is None:
            return {"attention_mask": mask}
        angles = self.rotary(x_BTD, steps_T[None])
        return {"position_embeddings": angles, "attention_mask": mask}


class NcpsCfC(Peer):
    """The whole-sequence CfC of ncps; its cache is the cell's state."""

    def run(self, x_BTD: Tensor, state: PeerState | None) -> Tensor:
        h_BD = None if state is None else state.cache
        if h_BD is None:  # its own zeros would be float32
            h_BD = x_BTD.new_zeros(x_BTD.shape[0], x_BTD.shape[2])
        y_BTD: Tensor
        y_BTD, h_BD = self.layer(x_BTD, h_BD)
        if state is not None:
            state.cache = h_BD
        return y_BTD


class S5Torch(Peer):
    """A layer of s5-pytorch. It stays float32: its complex parameters have no smaller type."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0, dtype=torch.float32)).device)

        return super()._apply(moved, recurse)

    def run(self, x_BTD: Tensor, state: PeerState | None) -> Tensor:
        y_BTD: Tensor
        if state is None:
            y_BTD = self.layer(x_BTD.float())
            return y_BTD.to(x_BTD.dtype)
        y_BTD, state.cache = self.layer(x_BTD.float(), state=state.cache, return_state=True)
        return y_BTD.to(x_BTD.dtype)


class LiquidS5(S5Torch):
    """Steps by the package's other form: given a state, its parallel one decays it wrongly."""

    def step(self, x_BD: Tensor, state: PeerState, *, positions_B: Tensor) -> tuple[Tensor, Any]:
        with torch.no_grad():
            rows = zip(x_BD.float(), state.cache, strict=True)
            found = [self.layer.seq.forward_rnn(x_D, h_P) for x_D, h_P in rows]
        y_BD, state.cache = (torch.stack(parts) for parts in zip(*found, strict=True))
        return y_BD.to(x_BD.dtype), state


class Fla(Peer):
    """A layer of flash-linear-attention: Triton kernels, so a GPU."""

    def __init__(self, name: str, **sizes: Any) -> None:
        if not torch.cuda.is_available():
            raise RuntimeError("flash-linear-attention's kernels need a GPU")
        layer = getattr(importlib.import_module("fla.layers"), name)
        super().__init__(layer(**sizes, layer_idx=0))

    def fresh_cache(self) -> Any:
        return importlib.import_module("fla.models.utils").Cache()

    def run(self, x_BTD: Tensor, state: PeerState | None) -> Tensor:
        cache = {} if state is None else {"past_key_values": state.cache, "use_cache": True}
        y_BTD: Tensor = self.layer(x_BTD, **cache)[0]
        return y_BTD


class OnFla(Peer):
    """A mixer of ours on flash-linear-attention's kernels."""

    decodes = False

    def run(self, x_BTD: Tensor, state: PeerState | None) -> Tensor:
        with triton_kernels.from_fla():
            y_BTD: Tensor = self.layer(x_BTD)[0]
        return y_BTD


def num_params(module: nn.Module) -> int:
    """Real numbers: a complex parameter counts twice."""
    return sum(p.numel() * (1 + p.is_complex()) for p in module.parameters())


def _sizes(mixer: str, d_model: int) -> dict[str, int]:
    """What our default configuration comes to at this width."""
    sizes: dict[str, int] = registry.get("mixers", mixer).Config().sizes(d_model)
    return sizes


@cache
def _model(name: str) -> Any:
    """A modeling file of transformers, imported as if fla were missing.

    Else its layers would run fla's kernels, which tune for minutes or refuse: `SLOW_TO_TUNE`.
    """
    importlib.import_module("transformers").logging.set_verbosity_error()
    kept = {"fla": sys.modules["fla"]} if "fla" in sys.modules else {}
    sys.modules["fla"] = None
    try:
        return importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    finally:
        del sys.modules["fla"]
        sys.modules.update(kept)


def short_conv(d_model: int) -> Peer:
    model, sizes = _model("lfm2"), _sizes("short_conv", d_model)
    config = model.Lfm2Config(
        hidden_size=d_model,
        conv_L_cache=sizes["kernel"],
        num_hidden_layers=1,
        layer_types=["conv"],
    )
    return Transformers(model.Lfm2ShortConv(config, 0), config, "past_key_values")


def _attention_sizes(mixer: str, d_model: int) -> dict[str, Any]:
    sizes = _sizes(mixer, d_model)
    return {
        "hidden_size": d_model,
        "num_attention_heads": sizes["num_heads"],
        "num_key_value_heads": sizes["num_kv_heads"],
        "head_dim": sizes["head_dim"],
        "num_hidden_layers": 1,
        "max_position_embeddings": 131_072,
        "attn_implementation": "sdpa",
    }


def gqa(d_model: int) -> Peer:
    model = _model("lfm2")
    config = model.Lfm2Config(**_attention_sizes("gqa", d_model), layer_types=["full_attention"])
    rotary = model.Lfm2RotaryEmbedding(config)
    return TransformersAttention(model.Lfm2Attention(config, 0), config, rotary)


def swa(d_model: int) -> Peer:
    model, window = _model("mistral"), registry.get("mixers", "swa").Config().window
    config = model.MistralConfig(**_attention_sizes("swa", d_model), sliding_window=window)
    rotary = model.MistralRotaryEmbedding(config)
    return TransformersAttention(model.MistralAttention(config, 0), config, rotary, window)


def mla(d_model: int) -> Peer:
    model, sizes = _model("kimi_linear"), _sizes("mla", d_model)
    config = model.KimiLinearConfig(
        hidden_size=d_model,
        num_hidden_layers=1,
        layer_types=["full_attention"],
        num_attention_heads=sizes["num_heads"],
        num_key_value_heads=sizes["num_heads"],
        kv_lora_rank=sizes["latent_dim"],
        qk_nope_head_dim=sizes["head_dim"],
        qk_rope_head_dim=sizes["shared_key_dim"],
        v_head_dim=sizes["head_dim"],
        attn_implementation="sdpa",
    )
    return TransformersAttention(model.KimiLinearAttention(config, 0), config)


def kda(d_model: int) -> Peer:
    model, sizes = _model("kimi_linear"), _sizes("kda", d_model)
    config = model.KimiLinearConfig(
        hidden_size=d_model,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_heads=sizes["num_heads"],
        linear_head_dim=sizes["head_dim"],
        linear_conv_kernel_dim=sizes["kernel"],
    )
    layer = model.KimiLinearDeltaAttention(config, 0)
    with torch.no_grad():  # its constructor leaves these as it finds the memory
        layer.forget_gate.A_log.uniform_(1, 16).log_()
        layer.forget_gate.dt_bias.normal_()
    return Transformers(layer, config)


def gated_deltanet(d_model: int) -> Peer:
    model, sizes = _model("qwen3_next"), _sizes("gated_deltanet", d_model)
    config = model.Qwen3NextConfig(
        hidden_size=d_model,
        num_hidden_layers=1,
        layer_types=["linear_attention"],
        linear_num_key_heads=d_model // sizes["head_dim"],
        linear_num_value_heads=sizes["num_heads"],
        linear_key_head_dim=sizes["head_dim"],
        linear_value_head_dim=sizes["head_dim"],
        linear_conv_kernel_dim=sizes["kernel"],
    )
    return Transformers(model.Qwen3NextGatedDeltaNet(config, 0), config)


def mamba(d_model: int) -> Peer:
    model, sizes = _model("mamba"), _sizes("mamba", d_model)
    config = model.MambaConfig(
        hidden_size=d_model,
        num_hidden_layers=1,
        expand=sizes["d_inner"] // d_model,
        state_size=sizes["state_dim"],
        time_step_rank=sizes["dt_rank"],
        conv_kernel=sizes["kernel"],
    )
    return Transformers(model.MambaMixer(config, 0), config)


def mamba2(d_model: int) -> Peer:
    model, sizes = _model("mamba2"), _sizes("mamba2", d_model)
    config = model.Mamba2Config(
        hidden_size=d_model,
        num_hidden_layers=1,
        expand=sizes["d_inner"] // d_model,
        num_heads=sizes["num_heads"],
        head_dim=sizes["head_dim"],
        state_size=sizes["state_dim"],
        n_groups=sizes["num_groups"],
        conv_kernel=sizes["kernel"],
    )
    return Transformers(model.Mamba2Mixer(config, 0), config)


def cfc(d_model: int) -> Peer:
    width = _sizes("cfc", d_model)["d_backbone"]
    layer = importlib.import_module("ncps.torch").CfC(
        d_model, d_model, proj_size=d_model, backbone_units=width, backbone_layers=1
    )
    return NcpsCfC(layer)


def s5(d_model: int) -> Peer:
    """The block, with norms and a feed-forward layer as large as ours' gate."""
    modes = _sizes("s5", d_model)["num_modes"]
    block = importlib.import_module("s5").S5Block
    return S5Torch(block(d_model, modes, bidir=False, glu=False, ff_mult=0.5))


def liquid_s4(d_model: int) -> Peer:
    """One state space for all channels, with as many modes as make ours' parameters."""
    layer = importlib.import_module("s5").S5
    return LiquidS5(layer(d_model, d_model // 2, liquid=True))


def fla_gla(d_model: int) -> Peer:
    """Its default four heads, as in earlier records."""
    return Fla("GatedLinearAttention", hidden_size=d_model, num_heads=4)


def fla_hgrn2(d_model: int) -> Peer:
    head_dim = _sizes("hgrn2", d_model)["head_dim"]
    return Fla("HGRN2Attention", hidden_size=d_model, expand_ratio=head_dim)


def fla_kda(d_model: int) -> Peer:
    sizes = _sizes("kda", d_model)
    heads = {"num_heads": sizes["num_heads"], "head_dim": sizes["head_dim"]}
    return Fla("KimiDeltaAttention", hidden_size=d_model, **heads, conv_size=sizes["kernel"])


def fla_gated_deltanet(d_model: int) -> Peer:
    sizes = _sizes("gated_deltanet", d_model)
    return Fla(
        "GatedDeltaNet",
        hidden_size=d_model,
        expand_v=1,
        head_dim=sizes["head_dim"],
        num_heads=d_model // sizes["head_dim"],
        num_v_heads=sizes["num_heads"],
        conv_size=sizes["kernel"],
    )


Build = Callable[[int], Peer]


def on_fla(mixer: str) -> tuple[str, Build]:
    return f"{mixer} on fla's kernels", lambda d_model: OnFla(
        registry.get("mixers", mixer).Config().build(d_model)
    )


GLA = "fla GatedLinearAttention"
PEERS: dict[str, tuple[str, Build]] = {
    "short_conv": ("transformers Lfm2ShortConv", short_conv),
    "gqa": ("transformers Lfm2Attention", gqa),
    "swa": ("transformers MistralAttention", swa),
    "mla": ("transformers KimiLinearAttention", mla),
    "kda": ("transformers KimiLinearDelta", kda),
    "gated_deltanet": ("transformers Qwen3NextGDN", gated_deltanet),
    "mamba": ("transformers MambaMixer", mamba),
    "mamba2": ("transformers Mamba2Mixer", mamba2),
    "cfc": ("ncps CfC", cfc),
    "s5": ("s5-pytorch S5Block", s5),
    "liquid_s4": ("s5-pytorch S5, liquid", liquid_s4),
    "gla": (GLA, fla_gla),
}
"""Of each mixer that has one: the layer's name, and what builds it at a width."""

SLOW_TO_TUNE: dict[str, list[tuple[str, Build]]] = {
    "gla": [on_fla("gla")],
    "hgrn2": [on_fla("hgrn2"), ("fla HGRN2Attention", fla_hgrn2)],
    "kda": [on_fla("kda"), ("fla KimiDeltaAttention", fla_kda)],
    "gated_deltanet": [("fla GatedDeltaNet", fla_gated_deltanet)],
}
"""What runs fla's kernels and tunes for minutes at the first call, or refuses some Tritons."""

TUNED = frozenset([GLA, *(label for peers in SLOW_TO_TUNE.values() for label, _ in peers)])
"""Layers whose first call may take as long as it wants."""
