"""lm-evaluation-harness both ways: its tasks on our models, our evaluations on its models.

    lm_eval.simple_evaluate(model=as_lm(model), tasks=["hellaswag"])
    evaluation.run(FromLM(HFLM(pretrained=folder)))

The harness asks in text and we ask in token ids, so `as_lm` cuts text with our model's tokenizer,
as the harness's own models cut it, and `FromLM` takes bytes for ids and gives text. It needs
lm_eval, which is imported when the first of the two is used.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.errors import UserError
from archloop.evals.codecs import ByteCodec
from archloop.evals.text_tasks import codec_of, continuation
from archloop.evals.verbs import Continuation, Likelihood, Model, Prompt, TextCodec

MAX_NEW_TOKENS = 256
"""Of a reply, where a task of the harness does not say."""


def as_lm(model: Model) -> Any:
    """A model as the harness's `lm_eval.api.model.LM`.

    Requests are taken whole: what is longer than the model can take is an error and not cut.

    Raises:
        UserError: lm_eval is not installed, or the model has no tokenizer.
    """
    api, codec = _api(), codec_of(model)

    class OurModel(api.model.LM):  # type: ignore[misc, name-defined]  # imported above
        """Each request's arguments to one of our verbs."""

        def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
            asked = [_continuation(codec, model, *each.args) for each in requests]
            return [(found.nats, found.is_greedy) for found in model.loglikelihood(asked)]

        def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
            rows = [[*_start(model), *codec.encode(each.args[0])] for each in requests]
            return [float(log.sum()) for log in model.loglikelihood_rolling(rows)]

        def generate_until(self, requests: Sequence[Any]) -> list[str]:
            return model.generate_until([_prompt(codec, model, *each.args) for each in requests])

    return OurModel()


class FromLM(Model):
    """A model of the harness, asked by two of our verbs; its ids are the bytes of text.

    Args:
        lm: an `lm_eval.api.model.LM`.
    """

    vocab_size = 256
    codec: TextCodec = ByteCodec()

    def __init__(self, lm: Any) -> None:
        self._lm, self._api = lm, _api()

    def predict(self, ids_NT: NDArray[np.int64], asked_NT: NDArray[np.bool_]) -> Any:
        """Raises UserError: the harness asks in text."""
        raise UserError("a model of lm_eval is asked in text, not for tokens at positions")

    def loglikelihood(self, requests: Sequence[Continuation]) -> list[Likelihood]:
        """See `Model.loglikelihood`."""
        pairs = [(self._text(each.prefix), self._text(each.continuation)) for each in requests]
        answers = self._lm.loglikelihood(list(self._instances("loglikelihood", pairs)))
        return [Likelihood(float(nats), bool(greedy)) for nats, greedy in answers]

    def loglikelihood_rolling(self, rows: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """Raises UserError: the harness has one value for a text."""
        raise UserError("a model of lm_eval has one value for a text, not one for each token")

    def generate_until(self, requests: Sequence[Prompt]) -> list[str]:
        """See `Model.generate_until`."""
        pairs = [(self._text(each.ids), _settings(each)) for each in requests]
        answers = self._lm.generate_until(list(self._instances("generate_until", pairs)))
        return [str(reply) for reply in answers]

    def _text(self, ids: Sequence[int]) -> str:
        return self.codec.decode(ids)

    def _instances(self, request_type: str, arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        for index, each in enumerate(arguments):
            yield self._api.instance.Instance(
                request_type=request_type,
                doc={},
                arguments=each,
                idx=index,
                metadata=("", index, 1),
            )


def _api() -> Any:
    try:
        import lm_eval.api.instance
        import lm_eval.api.model
    except ImportError as error:
        raise UserError(
            "lm-evaluation-harness is not here; install it with: pip install 'archloop[evals]'"
        ) from error
    return lm_eval.api


def _settings(prompt: Prompt) -> dict[str, Any]:
    """The harness's words for a greedy reply."""
    return {"until": list(prompt.stops), "max_gen_toks": prompt.max_new_tokens, "do_sample": False}


def _start(model: Model) -> tuple[int, ...]:
    """What stands before an empty context, so that the first token is predicted from something.

    Raises:
        UserError: the model's tokenizer has no such token.
    """
    if not model.start:
        raise UserError("the model's tokenizer has no token that begins a text, and one is needed")
    return model.start


def _continuation(codec: TextCodec, model: Model, context: str, following: str) -> Continuation:
    if not context:
        return Continuation(_start(model), codec.encode(following))
    # Spaces at a context's end belong to what follows, as the harness's own models have it.
    bare = context.rstrip()
    return continuation(codec, model.start, bare, context[len(bare) :] + following)


def _prompt(codec: TextCodec, model: Model, context: str, settings: Any) -> Prompt:
    until = settings.get("until") or ()
    stops = (until,) if isinstance(until, str) else tuple(until)
    count = int(settings.get("max_gen_toks", MAX_NEW_TOKENS))
    return Prompt([*model.start, *codec.encode(context)], stops, count)
