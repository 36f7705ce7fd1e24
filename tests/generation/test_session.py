"""An engine's session generates what the decoder does, one row at a time."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from archloop.errors import UserError
from archloop.generation.drafts import verify
from archloop.generation.generation import generate
from archloop.generation.model import Model, stream
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


@pytest.mark.parametrize("longest", [48, 60, None])
def test_a_reply_ends_where_the_session_is_full(tmp_path: Path, longest: int | None) -> None:
    decoder = folders.decoder(folders.spec(vocab_size=261, max_context=longest))
    speaking = Model(decoder, folders.tokenizer())
    ids = [70, 71, 72, 73]
    (wanted,) = generate(decoder, ids, 45, decode=speaking.decode)
    runtime = TorchEager()
    manifest = export(runtime, decoder, tmp_path / "artifact", "fp32")
    with closing(runtime.load(tmp_path / "artifact", manifest, 1, 48)) as session:
        engine = SessionModel(session, manifest.precision)
        found = "".join(stream(speaking, ids, max_new_tokens=1000, engine=engine))
        assert session.num_tokens == 48
        with pytest.raises(UserError, match=r"prompt has 49 tokens and .* 48; shorten it"):
            next(stream(speaking, [70] * 49, engine=engine))
    assert found == wanted.text
    assert len(wanted.ids) == 45


def test_a_reply_may_fill_the_session(decoder: Decoder, model: SessionModel) -> None:
    ids = [3, 1, 4, 1]
    assert generate(model, ids, 45) == generate(decoder, ids, 45)
    with pytest.raises(UserError, match="49 tokens do not fit into a session of 48"):
        generate(model, ids, 46)


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
