"""Largest errors of every checkpoint layout's examples against transformers, float32 on a CPU.

    python benchmarks/layout_parity.py

Random weights (norms near what they begin with); errors over the largest logit. `whole`: all tokens
at once; `steps`: 51 tokens, then one at a time; `padded`: 9 tokens of padding on the left. `exact`:
transformers against the same weights here in float64, which tells whose rounding an error is.
"""

import json
import sys
import tempfile

import torch
import transformers

from archloop import checkpoints, registry
from archloop.checkpoints import families

LENGTH, PREFILL, PADDING = 70, 51, 9


def peer(example, std):
    """transformers' model of an example, every parameter drawn."""
    settings = {key: value for key, value in example.items() if key != "model_type"}
    config = transformers.AutoConfig.for_model(example["model_type"], **settings)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            begun = parameter.clone() if "norm" in name else 0
            parameter.normal_(std=std).add_(begun)
    return model


@torch.no_grad()
def errors(example, std):
    """Largest errors by way of running."""
    theirs = peer(example, std)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = checkpoints.load(folder)
    seeded = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(0, ours.vocab_size, (2, LENGTH), generator=seeded)
    wanted_BTV = theirs(ids_BT).logits
    scale = float(wanted_BTV.abs().max())

    def error(found, wanted):
        return float((found - wanted).abs().max()) / scale

    state = ours.init_state(2, LENGTH)
    ours.prefill(ids_BT[:, :PREFILL], state)
    steps = [
        error(ours.step(ids_BT[:, at], state), wanted_BTV[:, at]) for at in range(PREFILL, LENGTH)
    ]
    padded_BT = torch.nn.functional.pad(ids_BT, (PADDING, 0))
    mask_BT = torch.arange(LENGTH + PADDING)[None].expand(2, -1) >= PADDING
    padded_BTV = ours(padded_BT, mask_BT=mask_BT)[:, PADDING:]
    return {
        "whole": error(ours(ids_BT), wanted_BTV),
        "steps": max(steps),
        "padded": error(padded_BTV, wanted_BTV),
        "exact": error(ours.double()(ids_BT), wanted_BTV.double()),
    }


def main():
    """Print a table and one JSON line."""
    transformers.logging.set_verbosity_error()
    found = {}
    for name in sys.argv[1:] or registry.names("layouts"):
        layout = families.layout(name)
        each = [errors(example, layout.example_std) for example in layout.examples]
        found[name] = {key: max(row[key] for row in each) for key in each[0]}
        print(f"| {name} | " + " | ".join(f"{e:.1e}" for e in found[name].values()) + " |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
