"""An engine's session generates what the decoder does, one row at a time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from archloop.errors import UserError
from archloop.generation.drafts import verify
from archloop.generation.generation import generate
from archloop.generation.sampling import Sampling
from archloop.generation.session import SessionModel
from archloop.generation.transcript import Transcript
from archloop.runtimes.exporting import export
from archloop.runtimes.torch_eager import TorchEager
from archloop.stack.decoder import Decoder
from checkpoints import folders


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return folders.decoder(folders.spec(vocab_size=61))


@pytest.fixture(scope="module")
def model(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SessionModel]:
    folder: Path = tmp_path_factory.mktemp("artifact")
    runtime = TorchEager()
    manifest = export(runtime, decoder, folder, "fp32")
    session = runtime.load(folder, manifest, torch.get_num_threads(), 48)
    yield SessionModel(session, manifest.precision)
    session.close()


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, seed=3)], ids=str)
def test_the_same_tokens_over_several_turns(
    decoder: Decoder, model: SessionModel, sampling: Sampling
) -> None:
    ours, theirs = Transcript(decoder, 48), Transcript(model, 48)
    for prompt in ([3, 1, 4, 1, 5], [9, 2], [6]):
        (wanted,) = generate(decoder, prompt, 8, sampling, transcript=ours)
        (found,) = generate(model, prompt, 8, sampling, transcript=theirs)
        assert found == wanted
    assert theirs.replace([9, 9, 9]) == 0
    (anew,) = generate(model, [8], 5, sampling, transcript=theirs)
    assert anew == generate(decoder, [9, 9, 9, 8], 5, sampling)[0]


def test_what_a_session_cannot_do_is_said(model: SessionModel) -> None:
    with pytest.raises(UserError, match="has one row, not 2"):
        generate(model, [[1], [2]], 3)
    with pytest.raises(UserError, match="50 tokens do not fit into a session of 48"):
        Transcript(model, 50)
    transcript = Transcript(model, 20)
    generate(model, [1, 2], 2, transcript=transcript)
    with pytest.raises(UserError, match="gives no logits of whole drafts"):
        verify(transcript, [1])
    with pytest.raises(UserError, match="cannot be copied"):
        transcript.fork()
