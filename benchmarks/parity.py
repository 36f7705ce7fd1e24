"""Fast paths against plain ones, and our model against transformers, block by block.

Errors are relative to the largest reference value of the same block (`max`) and norm over norm
(`rms`). In a MoE block two scores may lie so close that another rounding of the router's input
swaps them. Experts are therefore chosen once, by the fast path's own kernels, and the plain form
computes with these: every token is compared. How many tokens the plain router would have sent
elsewhere is reported beside it (`rerouted`), with the largest difference between the two routers'
scores on the same input (`score`). A choice can only differ where the plain scores of the experts
swapped are within twice that; more is an error (`check_choices`).
"""

import torch
from torch.nn import functional as F

from archloop.blocks.base import Span
from archloop.blocks.ops.experts import sorted_experts
from archloop.blocks.stream import Stream
from archloop.runtimes.cuda.half import Call
from archloop.runtimes.cuda.kernels import experts, gemv, rows


def rms(out, ref):
    """Norm of the difference over the norm of the reference; NaN passes nothing."""
    out, ref = out.float(), ref.float()
    return float((out - ref).norm() / ref.norm())


def worst(out, ref):
    """Largest difference over the largest reference value."""
    out, ref = out.float(), ref.float()
    return float((out - ref).abs().max() / ref.abs().max())


def fast_choice(fused, index, x_XD, one):
    """Router logits (X, E) and chosen experts (X, K) of the fast path, by its own kernels."""
    half = fused.of_channels[index]
    form, top_k = half.form, half.form.top_k
    num_experts = form.router.shape[0]
    if one:
        logits_XE = x_XD.new_empty(1, num_experts)
        gemv.linear(x_XD[0], form.router, logits_XE[0], norm=half.norm)
    else:
        logits_XE = F.linear(rows.norm(x_XD, *half.norm), form.router)
    counts_E = torch.zeros(num_experts, dtype=torch.int32, device=x_XD.device)
    _, bins_EX = experts.route(
        logits_XE, form.bias_E, counts_E, top_k, normalize=True, routed_scale=1.0
    )
    filled_EX = torch.arange(bins_EX.shape[1], device=x_XD.device) < counts_E[:, None]
    expert_P = filled_EX.nonzero()[:, 0]
    chosen_P = torch.full((x_XD.shape[0] * top_k,), -1, device=x_XD.device)
    chosen_P[bins_EX[filled_EX].long()] = expert_P
    return logits_XE, chosen_P.view(-1, top_k)


def check_choices(block, x_XD, logits_XE, chosen_XK):
    """Share of tokens that the plain router sends elsewhere, and the largest score difference."""
    moe = block.channel_mixer
    plain_XE = moe.router(block.channel_norm(x_XD)).sigmoid()
    score = float((plain_XE.float() - logits_XE.sigmoid().float()).abs().max())
    ranked_XE = plain_XE + moe.expert_bias
    best_XK = ranked_XE.topk(moe.config.top_k, dim=-1).values
    # The worst that was chosen against the best that could have been: 0 where the sets agree.
    lost_X = best_XK[:, -1] - ranked_XE.gather(1, chosen_XK).amin(1)
    lost = float(lost_X.max())
    assert lost <= 2 * score + 1e-6, f"a choice off by {lost}, scores by {score}"
    return float((lost_X > 0).float().mean()), score


def summary(errors):
    """Worst errors by kind of half block; of experts also the mean share of tokens rerouted."""
    found = {}
    for kind in sorted({error["kind"] for error in errors}):
        mine = [error for error in errors if error["kind"] == kind]
        found[kind] = {key: max(e[key] for e in mine) for key in ("rms", "max")}
        if kind == "moe":
            found[kind]["rerouted"] = sum(e["rerouted"] for e in mine) / len(mine)
            found[kind]["score"] = max(e["score"] for e in mine)
    return found


def _error(kind, out, ref, **more):
    return {"kind": kind, "rms": rms(out, ref), "max": worst(out, ref), **more}


def plain_mix(decoder, x_BTD, index, state, span):
    """The stream after a block's mixers by their own code."""
    stream = Stream(x_BTD)
    decoder.mix(stream, index, decoder.blocks[index], state, span, {})
    return stream.plain()


@torch.no_grad()
def compare_prefill_blocks(fused, ids_BT):
    """Every half block on the plain path's own input: kind and errors of each."""
    decoder, errors = fused.decoder, []
    batch, time = ids_BT.shape
    plain, mine = decoder.init_state(batch, time), fused.init_state(batch, time)
    positions = torch.arange(time, device=ids_BT.device).expand(batch, time)
    fused.counts_LE.zero_()
    x_BTD = decoder.embed(ids_BT)
    for index, block in enumerate(fused.blocks):
        kind = decoder.spec.layout[index]
        ref = plain_mix(decoder, x_BTD, index, plain, Span(positions))
        out = x_BTD.flatten(0, 1).clone()
        fused.add(fused.of_mixers[index], out, Call(mine, 0, time))
        errors.append(_error(kind, out, ref.flatten(0, 1)))
        for name, tensor in mine.mixers[index, 0].tensors.items():
            errors.append(_error(f"{kind} state", tensor, plain.mixers[index, 0][name]))
        errors.append(_compare_channel(fused, index, ref.flatten(0, 1), one=False))
        x_BTD = block.channel(ref)
    return errors


@torch.no_grad()
def compare_step_blocks(fused, ids_B, state):
    """As `compare_prefill_blocks` for one decode step from `state`, which is left as it was."""
    decoder, errors = fused.decoder, []
    one = ids_B.shape[0] == 1
    x_BD = decoder.embed(ids_B)
    fused.counts_LE.zero_()
    for index, block in enumerate(fused.blocks):
        kind, own = decoder.spec.layout[index], state.mixers[index, 0]
        before = own.snapshot()
        stream = Stream(x_BD)
        decoder.mix_step(stream, index, block, state, state.lengths_B, {})
        ref = stream.plain()
        after = own.snapshot()
        own.restore(before)
        out = x_BD.clone()
        if one:
            fused.add_one(fused.of_mixers[index], out[0], Call(state))
        else:
            fused.add(fused.of_mixers[index], out, Call(state))
        errors.append(_error(kind, out, ref))
        for name, tensor in own.tensors.items():
            errors.append(_error(f"{kind} state", tensor, after[name]))
        own.restore(before)
        del before, after
        errors.append(_compare_channel(fused, index, ref, one=one))
        x_BD = block.channel(ref)
    return errors


def _compare_channel(fused, index, x_XD, *, one):
    block, out = fused.blocks[index], x_XD.clone()
    if one:
        fused.add_one(fused.of_channels[index], out[0], Call(None))
    else:
        fused.add(fused.of_channels[index], out, Call(None))
    if not hasattr(block.channel_mixer, "router"):
        return _error("swiglu", out, block.channel(x_XD))
    logits_XE, chosen_XK = fast_choice(fused, index, x_XD, one)
    rerouted, score = check_choices(block, x_XD, logits_XE, chosen_XK)
    ref = _forced_channel(fused, index, x_XD, chosen_XK, fast=False)
    return _error("moe", out, ref, rerouted=rerouted, score=score)


# --- against transformers -----------------------------------------------------------------------


def _record(peer, ids_BT):
    """Logits, and per layer its input, its output and the experts that it chose."""
    inputs, outputs, chosen, handles = {}, {}, {}, []
    for index, layer in enumerate(peer.model.layers):

        def save(module, args, kwargs, output, i=index):
            inputs[i] = (args[0] if args else kwargs["hidden_states"]).clone()
            outputs[i] = (output[0] if isinstance(output, tuple) else output).clone()

        handles.append(layer.register_forward_hook(save, with_kwargs=True))
        if hasattr(layer.feed_forward, "gate"):

            def choose(module, args, output, i=index):
                chosen[i] = output[-1].clone()

            handles.append(layer.feed_forward.gate.register_forward_hook(choose))
    logits = peer(ids_BT, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits, inputs, outputs, chosen


def _forced_channel(fused, index, x_XD, experts_XK, fast):
    """The channel half of a block with the experts of each token given."""
    block = fused.blocks[index]
    moe, h_XD = block.channel_mixer, block.channel_norm(x_XD)
    if not hasattr(moe, "router"):
        return block.channel(x_XD)
    scores = moe.router(h_XD).sigmoid().gather(-1, experts_XK)
    weights_XK = scores / (scores.sum(-1, keepdim=True) + 1e-6) * moe.config.routed_scale
    if not fast:
        return x_XD + sorted_experts(h_XD, weights_XK, experts_XK, moe.gate_up, moe.down)
    num_experts, pairs = moe.gate_up.shape[0], experts_XK.flatten()
    order = pairs.argsort(stable=True)
    counts = pairs.bincount(minlength=num_experts)
    place = (
        torch.arange(len(pairs), device=pairs.device) - (counts.cumsum(0) - counts)[pairs[order]]
    )
    bins = torch.zeros(num_experts, x_XD.shape[0], dtype=torch.int32, device=pairs.device)
    bins[pairs[order], place] = order.to(torch.int32)
    y_XKD = experts.experts(
        h_XD, weights_XK.float().flatten(), bins, counts.to(torch.int32), moe.gate_up, moe.down
    )
    return x_XD + y_XKD.float().sum(1).to(x_XD.dtype)


@torch.no_grad()
def compare_with_peer(fused, peer, ids_BT, kernel_choices):
    """Each block on the peer's inputs and choices, then both models running free.

    Args:
        fused: ours.
        peer: transformers, over the same weights.
        ids_BT: prompt.
        kernel_choices: functions that switch the peer to another of its own kernel sets; the
            first is its default.
    """
    decoder, (batch, time) = fused.decoder, ids_BT.shape
    kernel_choices[0](peer)
    ref_logits, inputs, outputs, chosen = _record(peer, ids_BT)
    positions = torch.arange(time, device=ids_BT.device).expand(batch, time)
    blocks = {"plain": [], "fused": []}
    for index in range(len(fused.blocks)):
        x_BTD, ref = inputs[index], outputs[index]
        mine = fused.init_state(batch, time)
        mixed = plain_mix(decoder, x_BTD, index, None, Span(positions)).flatten(0, 1)
        fast = x_BTD.flatten(0, 1).clone()
        fused.add(fused.of_mixers[index], fast, Call(mine, 0, time))
        experts_XK = chosen.get(index)
        plain = _forced_channel(fused, index, mixed, experts_XK, fast=False).view_as(ref)
        fast = _forced_channel(fused, index, fast, experts_XK, fast=True).view_as(ref)
        for name, out in (("plain", plain), ("fused", fast)):
            blocks[name].append({"max": worst(out, ref), "rms": rms(out, ref)})
    del inputs, outputs
    free = {
        "plain": decoder(ids_BT),
        "fused": _fused_logits(fused, ids_BT),
    }
    for number, choose in enumerate(kernel_choices[1:]):
        choose(peer)
        free[f"peer_other_{number}"] = peer(ids_BT, use_cache=False).logits
    kernel_choices[0](peer)
    return {
        "blocks": {
            name: {
                "worst_max": max(b["max"] for b in each),
                "worst_rms": max(b["rms"] for b in each),
            }
            for name, each in blocks.items()
        },
        "free": {
            name: {
                "rms": rms(logits, ref_logits),
                "argmax_disagrees": float(
                    (logits.argmax(-1) != ref_logits.argmax(-1)).float().mean()
                ),
            }
            for name, logits in free.items()
        },
    }


def _fused_logits(fused, ids_BT):
    """Logits of every token through the fused prefill."""
    batch, time = ids_BT.shape
    state = fused.init_state(batch, time)
    x_XD, call = fused.decoder.embed(ids_BT.flatten()), Call(state, 0, time)
    fused.counts_LE.zero_()
    for half in fused.halves:
        fused.add(half, x_XD, call)
    return fused.decoder.logits(fused.decoder.norm(x_XD)).view(batch, time, -1)
