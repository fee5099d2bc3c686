"""Learn to write: which character of a text comes next (many-to-many, softmax)."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.network import Softmax
from bptt.options import PredictOptions, TextOptions
from bptt.tasks.base import Batch, Shard, Sizes, Task
from bptt.tasks.reading.characters import Characters
from bptt.tasks.reading.corpus import find_documents, one_document, read_bytes, split
from bptt.tasks.reading.user_files import encoding_name, kind_of_binary
from bptt.tasks.reading.vocabulary import START, UNKNOWN, Vocabulary, code_points
from bptt.tasks.scoring.compression import unigram_entropy, xz_bits
from bptt.tasks.streams.text import TextStream, held_out_batches
from bptt.typed import Json

SAMPLE_LENGTH = 500  # characters of the sample in the report
CONTEXT = 2000  # characters of a file's end that a continuation is read from


class Text(Task):
    """A character model of a text: files are documents, the vocabulary is what the training part holds.

    The files are read block by block, never as a whole. Raises InputError for what is not a text, or too little of it.
    """

    name: ClassVar[str] = "text"
    carries_state: ClassVar[bool] = True
    unit: ClassVar[str] = "characters"
    metric: ClassVar[str] = "bits per character"

    def __init__(self, options: TextOptions) -> None:
        _check_sizes(options)
        self._options = options
        training, held_out = split(find_documents(options.data, options.glob))
        self._training, self._held_out = Characters(training), Characters(held_out)
        self._check_amount()
        self._vocabulary = Vocabulary(self._training.known)

    def _check_amount(self) -> None:
        o, has, needs = self._options, self._training.total, self._options.batch * self._options.chunk
        if has < needs or not self._held_out.total:
            raise InputError(
                f"the text has {has:,} characters to train on and {self._held_out.total:,} held out, but {o.batch} lanes "
                f"(--batch) of at least {o.chunk} (--chunk) need {needs:,}: give more text or a smaller --batch"
            )

    def sizes(self) -> Sizes:
        """The sizes of the network: as many classes as symbols. (Classes 0 and 1 are never a target, and soon unlearned.)"""
        return Sizes(outputs=len(self._vocabulary), head="softmax", symbols=len(self._vocabulary))

    def stream(self, shard: Shard) -> TextStream:
        """Training batches x, y int64 [chunk, this process's lanes], in which every character counts."""
        return TextStream(self._training, self._vocabulary, self._options.batch, self._options.chunk, shard)

    def validation(self, shard: Shard) -> Iterator[Batch]:
        """Batches of the held-out documents, in as many lanes as the training has; see `held_out_batches`."""
        return held_out_batches(self._held_out, self._vocabulary, self._options.batch, self._options.chunk, shard)

    def score(self, loss: float) -> float:
        """Return nats as bits per character.

        A character that the training part does not hold counts as symbol 1 here; `report` adds the bits to spell it.
        """
        return loss / math.log(2)

    def report(self, model: nn.Module) -> Json:
        """Return bits per character on the held-out text, of the model, of unigrams and of xz; and a sample.

        An unknown character costs the model the bits of symbol 1, and log2(number of characters it does not know).
        """
        model.eval()
        text, v = self._held_out, self._vocabulary
        unknown = int(text.counts.sum() - text.counts[code_points(v.characters)].sum())
        bits = self._nats(model) / math.log(2) + unknown * v.bits_to_spell
        sample = _continuation(model, v, "", SAMPLE_LENGTH, PredictOptions.temperature, self._options.seed)
        return {
            "bits per character, held-out text": bits / text.total,
            "bits per character, unigram entropy of the same text": unigram_entropy(text),
            "bits per character, xz -9e of the same text": xz_bits(text) / text.total,
            "characters held out": text.total,
            "characters to train on": self._training.total,
            "characters held out that the training part does not hold": unknown,
            **self._encodings(),
            "sample": "".join(sample),
        }

    def _encodings(self) -> Json:
        """Return how many files are in UTF-16, if any are."""
        paths = {d.path for d in (*self._training.documents, *self._held_out.documents) if d.codec != "utf-8"}
        return {"files in UTF-16": len(paths)} if paths else {}

    def _nats(self, model: nn.Module) -> float:
        """Return the sum of the losses over the held-out part, in nats."""
        device, dtype = _device_and_dtype(model)
        head, state, total = Softmax(), None, torch.zeros((), dtype=torch.float64, device=device)
        with torch.no_grad():
            for batch in self.validation(Shard()):
                b = batch.to(device, dtype)
                z, state = model(b.x, state) if b.reset is None else model(b.x, state, reset=b.reset)
                total += head.losses(z, b.y)[b.mask].double().sum()
        return float(total)

    def spec(self) -> Json:
        """What a run folder keeps: the vocabulary's characters, in the order of their symbols from 2 on."""
        return {"vocabulary": self._vocabulary.characters}

    def encode_as(self, spec: Json) -> None:
        """Encode the text with the run's vocabulary from now on; a character that is not in it is symbol 1."""
        self._vocabulary = Vocabulary(spec["vocabulary"])

    def fingerprint(self) -> Json:
        """What identifies the text: of both parts, numbers of documents and bytes, and hashes of borders and contents."""
        parts = {"training": self._training, "held out": self._held_out}
        return {
            name: {"documents": len(p.documents), "bytes": p.size, "borders": p.borders_digest, "content": p.digest}
            for name, p in parts.items()
        }

    @staticmethod
    def predict(model: nn.Module, spec: Json, options: PredictOptions) -> Iterator[str]:
        """Return `length` characters that continue `prompt`, or the end of the file `data`, or an empty document.

        They are drawn one by one; the prompt is not repeated.
        """
        if options.length < 1:
            raise InputError(f"--length is {options.length}: at least 1 character is wanted")
        if not options.temperature >= 0:
            raise InputError(f"--temperature is {options.temperature}: 0 (the likeliest always) or more is wanted")
        prompt = options.prompt if options.prompt is not None else _end_of(options.data) if options.data else ""
        model.eval()
        vocabulary = Vocabulary(spec["vocabulary"])
        return _continuation(model, vocabulary, prompt, options.length, options.temperature, options.seed)


def _check_sizes(options: TextOptions) -> None:
    for name in ("batch", "chunk", "embedding"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} is {getattr(options, name)}: 1 or more is wanted")


def _device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    parameter = next(model.parameters())
    return parameter.device, parameter.dtype


def _end_of(path: Path) -> str:
    """Return the last characters of a text file, at most CONTEXT. Raises InputError for what is not a text."""
    document = one_document(path)
    begin = max(document.begin, document.end - 4 * CONTEXT)
    begin -= (begin - document.begin) % document.unit
    data = read_bytes(path, begin, document.end)
    inside, unit = 0, document.unit
    while begin > document.begin and inside < 4 and document.splits_character(data, inside):
        inside += unit
    wanted = "a UTF-8 text to continue is wanted, or --prompt"
    zero = document.find("\0", data)
    if zero >= 0:
        kind = kind_of_binary(data) if document.codec == "utf-8" else "binary"
        raise InputError(f"{path} is {kind}, it has a NUL byte at byte {begin + zero}: {wanted}")
    try:
        text = data[inside:].decode(document.codec)
    except UnicodeDecodeError as e:
        place = f"byte {begin + inside + e.start} ({e.reason})"
        raise InputError(f"{path} is not {encoding_name(document.codec)} at {place}: {wanted}") from e
    return text[-CONTEXT:]


def _continuation(
    model: nn.Module, vocabulary: Vocabulary, prompt: str, length: int, temperature: float, seed: int
) -> Iterator[str]:
    """Yield `length` characters that continue a document which begins with `prompt`."""
    device, _ = _device_and_dtype(model)
    generator = torch.Generator().manual_seed(seed)
    symbols = [START, *vocabulary.encode(prompt).tolist()]
    state: Any = None
    for _ in range(length):
        with torch.no_grad():
            z, state = model(torch.tensor(symbols, device=device).unsqueeze(1), state)
        symbols = [_draw(z[-1, 0], temperature, generator)]
        yield vocabulary.character(symbols[0])


def _draw(z: Tensor, temperature: float, generator: torch.Generator) -> int:
    """Return a symbol drawn from softmax(z / temperature), z [K]; never START or UNKNOWN, which stand for no character."""
    z = z[UNKNOWN + 1 :].double().cpu()
    if temperature == 0:
        return int(z.argmax()) + UNKNOWN + 1
    y = torch.softmax((z - z.max()) / temperature, dim=-1)
    return int(torch.multinomial(y, 1, generator=generator)) + UNKNOWN + 1
