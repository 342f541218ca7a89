"""lm-evaluation-harness with this package's models.

    python -m t5x_lite.lm_eval run --model t5x_lite --model_args path=runs/quickstart_lm \\
        --tasks hellaswag,wikitext

It is `lm_eval`, all of its verbs and flags, and knows one model more; the harness has no entry
points by which an installed package could add one to `lm_eval` itself. In Python,
`import t5x_lite.lm_eval` does the same. Written for lm-eval 0.4.13.
"""

import logging
import sys
from pathlib import Path
from typing import Any

from t5x_lite.errors import UserError
from t5x_lite.evaluation.harness import Judge, Pair
from t5x_lite.interop.origin import origin_of
from t5x_lite.interop.pretrained import from_pretrained
from t5x_lite.parallel.compile_cache import use_compile_cache
from t5x_lite.programs.eval import checkpoint_paths

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    missing = f"lm-evaluation-harness isn't here ({error}): pip install 'lm_eval>=0.4.13'."
    if __name__ == "__main__":
        sys.exit(f"error: {missing}")
    raise UserError(missing) from None

log = logging.getLogger(__name__)
_DEFAULT_DEVICE = "cuda:0"  # what the harness passes if nobody has chosen one


@register_model("t5x_lite")
class T5XLite(TemplateLM):
    """Args: path=RUN_OR_FOLDER, checkpoint=latest|best:METRIC|STEP, max_length=N, max_gen_toks=N,
    dtype=auto|float32|bfloat16, seed=N; batch_size is the harness's own flag."""

    def __init__(
        self,
        path: str,
        checkpoint: str = "latest",
        batch_size: int | str = 8,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        dtype: str = "auto",
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise UserError(f"batch_size={batch_size}: expected a number, 1 or more.")
        if device is not None:
            # The harness passes its default, too: only another one was somebody's choice.
            log.log(
                logging.INFO if device == _DEFAULT_DEVICE else logging.WARNING,
                "device=%s isn't used: JAX takes the accelerator that it finds, or what "
                "JAX_PLATFORMS in the environment names (cpu, cuda, tpu).",
                device,
            )
        self._judge: Judge = open_judge(
            str(path), str(checkpoint), int(batch_size), max_length, dtype
        )
        self._path, self._max_gen_toks, self._seed = str(path), int(max_gen_toks), int(seed)
        # As "causal", contexts and continuations are tokenized together, and then cut apart.
        self.backend = "seq2seq" if self._judge.separate else "causal"

    @property
    def eot_token_id(self) -> int:
        return self._judge.vocabulary.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self._judge.prefix_id

    @property
    def max_length(self) -> int:
        return self._judge.max_length

    @property
    def tokenizer_name(self) -> str:
        return self._path.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """What the harness keeps with its results."""
        if not chat_template:
            return None
        template, vocabulary = self._judge.template, self._judge.vocabulary
        jinja = template.jinja_for(vocabulary) if self._judge.reading.marks else None
        return jinja.text if jinja else repr(template)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Without ``add_generation_prompt`` the last message is gone on with, as `hf` does."""
        if add_generation_prompt == (chat_history[-1]["role"] == "assistant"):
            wanted = "the user's" if add_generation_prompt else "an assistant's, to be gone on with"
            raise UserError(f"the last message is the {chat_history[-1]['role']}'s, not {wanted}.")
        return self._judge.chat(chat_history)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self._judge.encode(string, special=add_special_tokens is not False)

    def _loglikelihood_tokens(
        self, requests: list, disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = self._judge.score(
            [Pair(list(given), list(scored)) for _, given, scored in requests]
        )
        for (text, _, _), answer in zip(requests, found, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return found

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts. A decoder-only model's start token isn't scored: it is nobody's text.

        An encoder-decoder, or a prefix LM, reads EOS, and writes the text and EOS.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self._judge.encode(text, special=self._judge.separate),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        found = [""] * len(requests)
        for numbers in groups.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1], self._max_gen_toks)
            texts = self._judge.write(
                [requests[i].args[0] for i in numbers],
                options["max_gen_toks"],
                options["until"],
                temperature=options.get("temperature", 0.0) if options.get("do_sample") else 0.0,
                top_k=int(options.get("top_k", 0)),
                top_p=float(options.get("top_p", 1.0)),
                seed=self._seed,
            )
            for i, text in zip(numbers, texts, strict=True):
                found[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return found


def open_judge(
    path: str,
    checkpoint: str = "latest",
    batch_size: int = 8,
    max_length: int | None = None,
    dtype: str = "auto",
) -> Judge:
    """The model at a path: a run's folder (and which checkpoint), a checkpoint, or Hugging Face's.

    Raises UserError: no such thing, or it doesn't say what its vocabulary is.
    """
    use_compile_cache()
    found = path
    if "://" in path or Path(path, "checkpoints").is_dir():
        [found] = checkpoint_paths(path, checkpoint)
    elif checkpoint != "latest":
        raise UserError(f"checkpoint={checkpoint} is for a run's folder, which {path} isn't.")
    model, params, vocabulary = from_pretrained(found, dtype=dtype)
    if vocabulary is None:
        raise UserError(f"{path} doesn't say what its vocabulary is: convert it with --vocabulary.")
    c = model.config
    reading = origin_of(found, c.architecture, c.vocab_size).reading
    return Judge(model, params, vocabulary, batch_size, max_length, reading)


def main() -> int:
    """`lm_eval`'s own command; a mistake in ours is one line."""
    from lm_eval.__main__ import cli_evaluate

    from t5x_lite.cli import status_of

    return status_of(cli_evaluate, debug="--debug" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
