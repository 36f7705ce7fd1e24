"""Random models on the GPU, and the same weights under Hugging Face transformers.

A 24B model in bf16 takes 48 GB, so two do not fit on one card. The peer is therefore built on the
meta device and its parameters are made views of ours: same numbers, no copy.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

from archloop import checkpoints
from archloop.runtimes.cuda.fused import FusedDecoder
from archloop.stack import presets
from archloop.stack.decoder import Decoder

DTYPE = torch.bfloat16


def random_decoder(name, seed=0):
    """A preset with random bf16 weights.

    Output projections are scaled down by the depth, as training usually starts: without that a
    random stack of 38 MoE blocks is chaotic, one near tie in a router changes every later choice,
    and comparing logits between kernels would say nothing.
    """
    torch.manual_seed(seed)
    with torch.device("meta"):
        decoder = Decoder(presets.load(name))
    decoder = decoder.to(DTYPE).to_empty(device="cuda").eval().requires_grad_(False)
    for buffer in decoder.buffers():
        buffer.zero_()
    for key, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        elif key.endswith(".conv"):
            parameter.uniform_(-(parameter.shape[1] ** -0.5), parameter.shape[1] ** -0.5)
        else:
            std = 0.1 if key.startswith("embedding") else parameter.shape[-1] ** -0.5
            if key.endswith(("out_proj.weight", "down_proj.weight", "down")):
                std *= (2 * decoder.spec.num_blocks) ** -0.5
            parameter.normal_(0.0, std)
    return decoder


def random_ids(decoder, batch, time):
    return torch.randint(0, decoder.spec.vocab_size, (batch, time), device="cuda")


def restart(state):
    """Empty a state without rewriting its caches: slots beyond the length are never read."""
    state.lengths_B.zero_()
    state.recount(0)
    for own in state.mixers.values():
        for name, tensor in own.tensors.items():
            if name not in ("k", "v"):
                tensor.zero_()


def balance(fused: FusedDecoder, rounds=40, rate=0.02):
    """Move the selection biases until random tokens load the experts nearly evenly.

    Returns the largest load over the mean, averaged over MoE blocks, before and after.
    """
    if not fused.moes:
        return None
    before = None
    for _ in range(rounds):
        state = fused.init_state(8, 512)
        fused.prefill(random_ids(fused.decoder, 8, 512), state)
        loads = fused.counts_LE.float()
        mean = loads.mean(1, keepdim=True)
        skew = float((loads.amax(1) / mean[:, 0]).mean())
        before = before or skew
        for row, index in enumerate(fused.moes):
            step = rate * (1 - loads[row] / mean[row]).clamp(-1, 1)
            fused.blocks[index].channel_mixer.expert_bias += step
    return before, skew


def peer_of(decoder, name):
    """The transformers model of a preset, of LFM2's over the decoder's own weights."""
    if not name.startswith("lfm2"):
        return _saved_peer(decoder, name.partition("-")[0])
    from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

    spec = decoder.spec
    kinds = ["full_attention" if kind == "gqa" else "conv" for kind in spec.layout]
    dense = [b for b in decoder.blocks if hasattr(b.channel_mixer, "gate_up_proj")]
    sparse = [b for b in decoder.blocks if hasattr(b.channel_mixer, "router")]
    sizes = {
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.d_model,
        "intermediate_size": dense[0].channel_mixer.down_proj.weight.shape[1],
        "num_hidden_layers": spec.num_blocks,
        "num_attention_heads": spec.d_model // 64,
        "num_key_value_heads": 8,
        "layer_types": kinds,
    }
    if sparse:
        experts, _, width = sparse[0].channel_mixer.down.shape
        config = Lfm2MoeConfig(
            **sizes, moe_intermediate_size=width, num_experts=experts, num_experts_per_tok=4,
            num_dense_layers=len(dense),
        )  # fmt: skip
        kind = Lfm2MoeForCausalLM
    else:
        config, kind = Lfm2Config(**sizes, block_auto_adjust_ff_dim=False), Lfm2ForCausalLM
    with torch.device("meta"):
        peer = kind(config)
    peer = peer.to(DTYPE).eval()
    views = peer_tensors(decoder)
    for key in [k for k, _ in peer.named_parameters()] + ["lm_head.weight"]:
        _place(peer, key, nn.Parameter(views.pop(key), requires_grad=False))
    for key in [k for k, _ in peer.named_buffers() if k.endswith("expert_bias")]:
        _place(peer, key, views.pop(key))
    assert not views, f"not in the peer: {sorted(views)[:4]}"
    rotary = "rotary_emb" if hasattr(peer.model, "rotary_emb") else "pos_emb"
    old = getattr(peer.model, rotary)
    setattr(peer.model, rotary, type(old)(config).to("cuda"))
    return peer


def peer_tensors(decoder):
    """Our tensors under the peer's names."""
    embedding = decoder.embedding.weight
    found = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": embedding,
        "model.embedding_norm.weight": decoder.norm.weight,
    }
    for index, block in enumerate(decoder.blocks):
        mixer, channel = block.mixers[0], block.channel_mixer
        parts = {
            "operator_norm.weight": block.mixer_norm.weight,
            "ffn_norm.weight": block.channel_norm.weight,
        }
        if hasattr(mixer, "conv"):
            parts["conv.conv.weight"] = mixer.conv[:, None]
            parts["conv.in_proj.weight"] = mixer.in_proj.weight
            parts["conv.out_proj.weight"] = mixer.out_proj.weight
        else:
            q, kv = mixer.num_heads * mixer.head_dim, mixer.num_kv_heads * mixer.head_dim
            projections = mixer.qkv_proj.weight.split([q, kv, kv])
            for letter, weight in zip("qkv", projections, strict=True):
                parts[f"self_attn.{letter}_proj.weight"] = weight
            parts["self_attn.out_proj.weight"] = mixer.out_proj.weight
            parts["self_attn.q_layernorm.weight"] = mixer.q_norm.weight
            parts["self_attn.k_layernorm.weight"] = mixer.k_norm.weight
        if hasattr(channel, "router"):
            parts["feed_forward.gate.weight"] = channel.router.weight
            parts["feed_forward.expert_bias"] = channel.expert_bias
            parts["feed_forward.experts.gate_up_proj"] = channel.gate_up
            parts["feed_forward.experts.down_proj"] = channel.down
        else:
            gate, up = channel.gate_up_proj.weight.chunk(2)
            parts["feed_forward.w1.weight"] = gate
            parts["feed_forward.w3.weight"] = up
            parts["feed_forward.w2.weight"] = channel.down_proj.weight
        found |= {f"model.layers.{index}.{key}": value for key, value in parts.items()}
    return found


def _saved_peer(decoder, layout):
    """transformers' model of a family, by way of files: a second copy of the weights."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(decoder, Path(folder) / "model", layout)
        peer = AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=DTYPE)
    return peer.to(decoder.embedding.weight.device).eval()


def _place(module, key, tensor):
    *path, leaf = key.split(".")
    parent = module.get_submodule(".".join(path))
    old = getattr(parent, leaf)
    assert old.shape == tensor.shape, f"{key}: {tuple(old.shape)} against {tuple(tensor.shape)}"
    kind = parent._parameters if leaf in parent._parameters else parent._buffers
    kind[leaf] = tensor
