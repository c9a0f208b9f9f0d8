"""Any model that sentence-transformers can load, on the CPU or a GPU, in this process.

A text gets the same vector alone and in a batch, up to 1e-5 in float32: padding changes the order of
sums. (A model that is stored in a shorter type has that type's precision.) Vectors are the model's
own output, normalised only if the model does it. Nothing is cut: a text over the model's limit is
refused.
"""

from __future__ import annotations

import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ragingest.documents import Chunk, EmbeddedBatch, Vectors
from ragingest.embedders.tokenizing import FastTokenizer
from ragingest.errors import RejectedError, TerminalError, UsageError
from ragingest.memory import SystemGauge
from ragingest.protocols import EmbedderLimits, Query
from ragingest.settings import MemoryLimit

__all__ = ["SentenceTransformersEmbedder", "tokens_at_once"]

FEWEST_TEXTS = 32
MOST_TEXTS = 256

USUAL_TOKENS = 512
"""How long a chunk is taken to be at most, where the model takes longer ones."""

MEMORY_SHARE = 0.25
"""Of the memory that is free once the model is loaded; the rest is for everything else."""

BYTES_PER_NUMBER = 4
NUMBERS_PER_TOKEN = 16
"""What a layer holds of a token, in units of the hidden size: its input and output (2), queries, keys,
values and their sum (4), the feed-forward layer before and after its activation (4 each), and the
residuals (2)."""

CPU_TOKENS = 2_048
"""In one forward pass on the CPU. Measured with MiniLM on one core, a text took 40 ms in passes of 2,048
tokens, 47 ms of 4,096, 52 ms of 16,384: they fit the caches less, and hold more padding."""

UNLIMITED_TOKENS = 1 << 31
"""transformers writes 1e30 where a tokenizer has no limit."""

HUB_SECONDS = 20.0

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?").fullmatch
_SHORTAGE = re.compile(r"out of memory|not enough memory|can't allocate memory", re.IGNORECASE).search


class SentenceTransformersEmbedder:
    """A model of sentence-transformers.

    A call takes 32 to 256 texts: as many of the longest usual length as `tokens_at_once` allows. Its
    texts go through the model sorted by length, in passes of no more padded tokens than that. One
    pass runs at a time, since it uses all cores or the whole GPU.
    """

    name = "sentence-transformers"
    sparse = False

    def __init__(
        self,
        model: str,
        dimensions: int | None = None,
        *,
        device: str = "auto",
        max_texts: int | None = None,
        download: bool = True,
        say: Callable[[str], None] = lambda _sentence: None,
    ) -> None:
        """Load a model.

        Args:
            model: a folder, or a name at Hugging Face.
            dimensions: cut vectors to so many, which a Matryoshka model is made for; None: all.
            device: auto (a GPU if there is one), cpu, cuda, cuda:N or mps.
            max_texts: texts in a call; None: sized to the free memory.
            download: get the model from Hugging Face if it is not on this machine.
            say: is told before a download, which may take minutes.

        Raises:
            UsageError: the package, the model or the device is missing, or does not fit.
            TerminalError: the model could not be downloaded, or its first text not embedded.
        """
        self.model = model
        self._lock = threading.Lock()
        self._model = _load(model, _checked(device), download, say)
        self.tokenizer = FastTokenizer(_tokenizer_of(self._model, model))
        self._special = int(self.tokenizer.splitter_backend().num_special_tokens_to_add(False))
        self._prompt = _prompt(self._model, "document", "passage", "corpus")
        self._query_prompt = _prompt(self._model, "query")
        own = self._forward(["dimensions"])
        if own is None:
            raise UsageError(f"{model} does not fit into the memory of {self._device}", "use --device cpu")
        own_dimensions = own.shape[1]
        if dimensions is not None and dimensions > own_dimensions:
            raise UsageError(
                f"{model} makes {own_dimensions} dimensions, not {dimensions}",
                "give fewer, or leave --dimensions out",
            )
        self._model.truncate_dim = dimensions
        self.dimensions: int = dimensions or own_dimensions
        most = self._model.max_seq_length
        self._most: int | None = None if most is None or most > UNLIMITED_TOKENS else int(most)
        free = _free_bytes(self._model.device)
        self._room = tokens_at_once(free, own_dimensions, cpu=self._model.device.type == "cpu")
        usual = min(self._most or USUAL_TOKENS, USUAL_TOKENS)
        self.limits = EmbedderLimits(
            max_texts=max_texts or min(MOST_TEXTS, max(FEWEST_TEXTS, self._room // usual)),
            max_bytes=4 * 1024 * 1024,
            max_tokens_per_text=None if self._most is None else max(1, self._most - self._around(self._prompt)),
        )

    @property
    def _device(self) -> str:
        return str(self._model.device)

    def embed(self, chunks: Sequence[Chunk]) -> EmbeddedBatch:
        lengths = self._lengths(chunks)
        order = np.argsort(-lengths, kind="stable")
        vectors = np.empty((len(chunks), self.dimensions), dtype=np.float32)
        start = 0
        while start < len(order):
            longest = int(lengths[order[start]])
            rows = order[start : start + max(1, self._room // longest)]
            made = self._forward([chunks[row].text for row in rows])
            if made is not None:
                vectors[rows] = made
                start += len(rows)
            elif len(rows) > 1:
                self._room = len(rows) * longest // 2
            else:
                raise RejectedError(
                    "out_of_memory",
                    f"the text has {longest:,} tokens, for which {self._device} has not enough memory",
                )
        return EmbeddedBatch(list(chunks), vectors)

    def embed_query(self, text: str) -> Query:
        length = len(self.tokenizer.encode([text])[0])
        if not length:
            raise UsageError("the search text is empty", "give some words to search for")
        if self._most is not None and length + self._around(self._query_prompt) > self._most:
            raise UsageError(
                f"the search text has {length:,} tokens, too many for {self.model}", "search for less at once"
            )
        vectors = self._forward([text], query=True)
        if vectors is None:
            raise TerminalError(f"{self._device} has not enough memory for the search text", "use --device cpu")
        return Query(vectors[0])

    def close(self) -> None:
        pass

    def _around(self, prompt: str) -> int:
        """Tokens that come with every text; where prompt and text meet, one more than they have apart."""
        return self._special + (len(self.tokenizer.encode([prompt])[0]) + 1 if prompt else 0)

    def _lengths(self, chunks: Sequence[Chunk]) -> npt.NDArray[np.intp]:
        """Tokens of each text as the model will see it.

        Raises:
            RejectedError: one has none, or more than the model takes.
        """
        unknown = [chunk.text for chunk in chunks if chunk.tokens is None]
        fresh = iter(self.tokenizer.encode(unknown) if unknown else ())
        own = [len(next(fresh) if chunk.tokens is None else chunk.tokens) for chunk in chunks]
        if not all(own):
            raise RejectedError("no_tokens", "the text has nothing in it that the embedder knows")
        seen = own
        if self._prompt:
            seen = [len(tokens) for tokens in self.tokenizer.encode([self._prompt + c.text for c in chunks])]
        lengths = np.array(seen, dtype=np.intp) + self._special
        if self._most is not None and lengths.max() > self._most:
            raise RejectedError(
                "too_many_tokens",
                f"the text has {own[int(lengths.argmax())]:,} tokens, more than the "
                f"{self.limits.max_tokens_per_text:,} that {self.model} takes; leave --no-chunk out to have it split, or add --truncate to have it cut",
            )
        return lengths

    def _forward(self, texts: list[str], *, query: bool = False) -> Vectors | None:
        """One pass through the model; None if there was not enough memory."""
        encode = self._model.encode_query if query else self._model.encode_document
        prompt = self._query_prompt if query else self._prompt
        with self._lock:
            try:
                rows = encode(texts, prompt=prompt, batch_size=len(texts), show_progress_bar=False)
                return np.asarray(rows, dtype=np.float32)
            except (RuntimeError, MemoryError) as error:
                if not isinstance(error, MemoryError) and not _SHORTAGE(str(error)):
                    raise TerminalError(
                        f"{self.model} failed on {self._device}: {_first_line(error)}", "try --device cpu"
                    ) from error
            if self._model.device.type == "cuda":
                import torch

                torch.cuda.empty_cache()
        return None


def tokens_at_once(free_bytes: int, hidden: int, *, cpu: bool) -> int:
    """How many padded tokens may go through a model in one pass: at least one text's.

    A quarter of the free memory, divided by 16 float32 numbers for each unit of the hidden size
    (taken to be the model's dimensions): 1/4 * free / (16 * 4 bytes * hidden). On the CPU no more
    than 2,048. Attention scores are left out, since PyTorch's attention does not keep them; where it
    does, a pass that finds no memory is halved.
    """
    tokens = int(MEMORY_SHARE * free_bytes) // (NUMBERS_PER_TOKEN * BYTES_PER_NUMBER * hidden)
    return max(1, min(tokens, CPU_TOKENS) if cpu else tokens)


# -- loading -----------------------------------------------------------------------------------------


def _checked(device: str) -> str | None:
    """The device for PyTorch; None: its choice.

    Raises:
        UsageError: PyTorch is missing, or does not see that device.
    """
    try:
        import torch
    except ImportError as error:
        raise _missing(error) from None
    if device == "auto":
        return None
    kind, _, number = device.partition(":")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {device}: PyTorch sees {torch.cuda.device_count()} CUDA devices",
            "use --device cpu, or install a PyTorch that fits the GPU's driver",
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: PyTorch sees no Apple GPU", "use --device cpu")
    return device


def _load(model: str, device: str | None, download: bool, say: Callable[[str], None]) -> Any:
    """The model, from this machine if it is there."""
    local = Path(model).is_dir()
    if not local and not _HUB_NAME(model):
        raise UsageError(f"there is no folder {model}", "give --model a folder, or a name at Hugging Face")
    with _quiet():
        try:
            return _open(model, device, offline=True)
        except OSError as error:
            if local:
                raise _unusable(model, error) from None
        if not download:
            raise UsageError(
                f"the model {model} is not on this machine", f"get it with: hf download {_repository(model)}"
            )
        _ask_for(model)
        say(f"downloading the model {model} from Hugging Face")
        return _open(model, device, offline=False)


def _open(model: str, device: str | None, *, offline: bool) -> Any:
    try:
        from huggingface_hub.utils import disable_progress_bars
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging as transformers_logging
    except ImportError as error:
        raise _missing(error) from None
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        return SentenceTransformer(model, device=device, local_files_only=offline)
    except OSError:
        if offline:
            raise
        raise TerminalError(f"the model {model} could not be downloaded whole", "try again") from None
    except Exception as error:  # what is in a model's files decides what can go wrong
        raise _unusable(model, error) from error


def _ask_for(model: str) -> None:
    """See that Hugging Face has the model, since downloading alone takes a minute to find out that it has not.

    Raises:
        UsageError: it has not.
        TerminalError: it cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(_repository(model), timeout=HUB_SECONDS)
    except RepositoryNotFoundError:
        raise UsageError(
            f"there is no model {model}: no such folder here, and none of that name at Hugging Face that this "
            "machine may see",
            "check --model; for a gated or private model set HF_TOKEN",
        ) from None
    except Exception as error:  # noqa: BLE001  # its HTTP library differs from version to version
        raise TerminalError(
            f"the model {model} is not on this machine, and Hugging Face cannot be reached: {_first_line(error)}",
            "give --model the folder of a model, or try again with a connection",
        ) from None


def _repository(model: str) -> str:
    return model if "/" in model else f"sentence-transformers/{model}"


def _tokenizer_of(loaded: Any, model: str) -> Any:
    """A copy of the model's own tokenizer, so that counting in other threads does not disturb it."""
    from tokenizers import Tokenizer

    backend = getattr(loaded.tokenizer, "backend_tokenizer", loaded.tokenizer)
    if not isinstance(backend, Tokenizer):
        raise UsageError(
            f"{model} has no fast tokenizer, by which texts could be measured", "use another --model for text"
        )
    return Tokenizer.from_str(backend.to_str())


def _prompt(loaded: Any, *names: str) -> str:
    """What the model wants before a text: the first of these prompts that it has, else its default one."""
    name = next((name for name in names if name in loaded.prompts), loaded.default_prompt_name)
    return loaded.prompts.get(name) or ""


def _free_bytes(device: Any) -> int:
    """Free memory of the GPU, or else of the container or machine."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    reading = SystemGauge(MemoryLimit(share=1.0)).read()
    return max(0, reading.limit - reading.used)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries' warnings and log lines off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _missing(error: ImportError) -> UsageError:
    return UsageError(
        f"--embedder sentence-transformers needs packages that are not installed: {_first_line(error)}",
        "pip install 'ragingest[sentence-transformers]'",
    )


def _unusable(model: str, error: Exception) -> UsageError:
    return UsageError(
        f"sentence-transformers cannot load {model}: {_first_line(error)}",
        "check --model: a folder of a model, or its name at Hugging Face",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
