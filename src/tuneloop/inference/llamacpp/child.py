"""llama.cpp behind a connection: this runs in a separate process, so that a crash in it is an answer and not the end.

`llamacpp.LlamaCpp` starts it and calls `LlamaCppChild`'s methods by their names. Computation is the library's; here are
calls of its C interface, which the wheel `llama-cpp-py-sync` brings.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from tuneloop.core.parent import end_with_parent

if TYPE_CHECKING:
    import numpy as np

BATCH = 512  # tokens that are computed at once
MOST_SEQUENCES = 256  # that llama.cpp keeps apart in one context
RANDOM_SEED = 0xFFFFFFFF  # this one llama.cpp takes for "any"
Logprob = tuple[float, list[tuple[int, float]]]  # of a token, and of the likeliest ones in its place


class RefusedByLlamaCpp(Exception):
    """llama.cpp can't do what was requested; the message says what."""


class LlamaCppChild:
    """One model, and what is requested of it."""

    def __init__(self) -> None:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        self.ffi, self.lib = get_ffi(), get_lib()
        self.lib.llama_backend_init()
        self.model = self.vocab = self.context = None
        self.size = 0  # tokens that the context holds
        self.threads = 1
        self.exact = False
        self.adapters: list[Any] = []
        self.scales: list[float] = []
        self.at, self.next, self.began, self.first = 0, 0, 0.0, 0.0  # of the answer that is being written
        self.sampler: Any = None  # llama.cpp's chain that draws its tokens; None: the likeliest
        self.top: int | None = None  # likeliest tokens whose log probabilities are returned; None: none
        self.logprob: Logprob | None = None  # of `next`
        self.last: np.ndarray[Any, Any] | None = None  # logits (V) from which `pick` takes the next token

    def load(self, file: str, adapters: Sequence[str], threads: int, exact: bool) -> dict[str, Any]:
        """Open a GGUF file with LoRA files on top.

        Args:
            exact: keep keys and values in fp32 and attend step by step, to compare with another engine; else as usual.
        """
        lib, ffi = self.lib, self.ffi
        params = lib.llama_model_default_params()
        self.model = lib.llama_model_load_from_file(file.encode(), params)
        if self.model == ffi.NULL:
            raise RefusedByLlamaCpp("llama.cpp can't load the file")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.threads, self.exact = threads, exact
        self.adapters = [lib.llama_adapter_lora_init(self.model, path.encode()) for path in adapters]
        for path, adapter in zip(adapters, self.adapters, strict=True):
            if adapter == ffi.NULL:
                raise RefusedByLlamaCpp(f"llama.cpp can't load the adapter {path}")
        self.scales = [1.0] * len(self.adapters)
        size = lib.llama_vocab_n_tokens(self.vocab)
        ends = [i for i in range(size) if lib.llama_vocab_is_eog(self.vocab, i)]
        facts = {"vocabulary": size, "context": lib.llama_model_n_ctx_train(self.model), "ends": ends}
        return facts | {"bos": lib.llama_vocab_bos(self.vocab), "eos": lib.llama_vocab_eos(self.vocab)}

    def tokenize(self, texts: Sequence[str], opening: bool, control: bool) -> list[list[int]]:
        """Token ids of texts.

        Args:
            opening: put the beginning-of-text token first where the file says so.
            control: read the names of control tokens as these tokens.
        """
        tokens = []
        for text in texts:
            data = text.encode()
            room = len(data) + 8
            ids = self.ffi.new("llama_token[]", room)
            count = self.lib.llama_tokenize(self.vocab, data, len(data), ids, room, opening, control)
            if count < 0:
                raise RefusedByLlamaCpp("the buffer was too small")
            tokens.append(list(ids[0:count]))
        return tokens

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """What the model gives each next token after each token of a text (T, V), fp32."""
        import numpy as np

        self._clear(len(ids))
        return np.concatenate([rows.copy() for rows in self._read(ids, every=True)])

    def begin(
        self,
        ids: Sequence[int],
        limit: int,
        sampling: Mapping[str, Any] | None = None,
        top: int | None = None,
        constrained: bool = False,
    ) -> None:
        """Read a prompt; `more` then writes the answer to it, of at most `limit` tokens in all.

        Args:
            sampling: the fields of a `Sampling`; None: the likeliest answer.
            top: return log probabilities, and those of so many likeliest tokens; None: none.
            constrained: `pick` writes it, a token at a time, of those that are allowed.
        """
        self.began = time.perf_counter()
        self._clear(len(ids) + limit)
        self._make_sampler(sampling, ids, limit)
        self.top = top
        (last,) = self._read(ids)
        self.at, self.last = len(ids), last.copy() if constrained else None
        if not constrained:
            self.next = self._pick(last)
        self.first = 1000 * (time.perf_counter() - self.began)

    def pick(self, bits: bytes) -> dict[str, Any]:
        """The next token of the answer, of those that are allowed; see `more`.

        Args:
            bits: for each token of the vocabulary whether it is, the lowest bit first.
        """
        import numpy as np

        if self.last is None:  # the token before is read only now that another one is wanted
            last = self._read_next(self.next)
        else:
            last, self.last = self.last, None
        allowed = np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8), count=len(last), bitorder="little"))
        if not len(allowed):
            raise RefusedByLlamaCpp("no token may come next")
        self.next = self._pick(last, allowed)
        return self._part([self.next], [self.logprob])

    def _make_sampler(self, sampling: Mapping[str, Any] | None, ids: Sequence[int], limit: int) -> None:
        """Make llama.cpp's chain of samplers, in our engine's order: penalty, temperature, top_k, top_p, min_p."""
        lib = self.lib
        if self.sampler is not None:
            lib.llama_sampler_free(self.sampler)
            self.sampler = None
        if sampling is None:
            return
        self.sampler = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        size = lib.llama_vocab_n_tokens(self.vocab)
        parts = [lib.llama_sampler_init_penalties(size, len(ids) + limit, sampling["repetition_penalty"], 0.0, 0.0)]
        if sampling["temperature"] > 0:
            parts += [
                lib.llama_sampler_init_temp(sampling["temperature"]),
                lib.llama_sampler_init_top_k(sampling["top_k"]),
                lib.llama_sampler_init_top_p(sampling["top_p"], 1),
                lib.llama_sampler_init_min_p(sampling["min_p"], 1),
                lib.llama_sampler_init_dist(sampling["seed"] % RANDOM_SEED),
            ]
        else:
            parts.append(lib.llama_sampler_init_greedy())
        for part in parts:
            lib.llama_sampler_chain_add(self.sampler, part)
        for token in ids:
            lib.llama_sampler_accept(self.sampler, token)

    def _pick(self, last: np.ndarray[Any, Any], allowed: np.ndarray[Any, Any] | None = None) -> int:
        """The next token after the one that was read last, by its logits (V); its log probabilities are kept.

        Args:
            allowed: ids of the tokens that may come; None: all.
        """
        logs = _log_softmax(last) if self.top is not None else None
        if self.sampler is None:
            token = int(last.argmax() if allowed is None else allowed[last[allowed].argmax()])
        elif allowed is not None:
            token = self._sample(last, allowed)
        else:
            token = int(self.lib.llama_sampler_sample(self.sampler, self.context, -1))  # it takes note of it, too
        if logs is not None:
            likeliest = (-logs).argsort(kind="stable")[: self.top].tolist()
            self.logprob = (float(logs[token]), [(i, float(logs[i])) for i in likeliest])
        return token

    def _sample(self, last: np.ndarray[Any, Any], allowed: np.ndarray[Any, Any]) -> int:
        """A token of those that are allowed, drawn by the chain of samplers."""
        import numpy as np

        data = self.ffi.new("llama_token_data[]", len(allowed))
        view = np.frombuffer(self.ffi.buffer(data), np.dtype([("id", "i4"), ("logit", "f4"), ("p", "f4")]))
        view["id"], view["logit"] = allowed, last[allowed]
        tokens = self.ffi.new("llama_token_data_array *", {"data": data, "size": len(allowed), "selected": -1})
        self.lib.llama_sampler_apply(self.sampler, tokens)
        token = int(tokens.data[tokens.selected].id)
        self.lib.llama_sampler_accept(self.sampler, token)
        return token

    def more(self, limit: int, ends: Sequence[int]) -> dict[str, Any]:
        """The next tokens of the answer, up to one of the `ends`, which is part of it, or `limit` of them.

        Returns:
            `ids`, and milliseconds from `begin` to the first and to the last token: `first`, `total`.
            Also `logprobs`, where `begin` wants them: of each token its own, and the likeliest ones.
        """
        stops, tokens, logprobs = set(ends), [self.next], [self.logprob]
        while tokens[-1] not in stops and len(tokens) < limit:
            tokens.append(self._pick(self._read_next(tokens[-1])))
            logprobs.append(self.logprob)
        if tokens[-1] not in stops and self.at < self.size:
            self.next = self._pick(self._read_next(tokens[-1]))
        return self._part(tokens, logprobs)

    def _part(self, tokens: list[int], logprobs: list[Logprob | None]) -> dict[str, Any]:
        """Tokens of the answer, with milliseconds to the first one of all and to now."""
        part = {"ids": tokens, "first": self.first, "total": 1000 * (time.perf_counter() - self.began)}
        return part if self.top is None else part | {"logprobs": logprobs}

    def _read_next(self, token: int) -> np.ndarray[Any, Any]:
        """Read a written token; returns the logits behind it."""
        (last,) = self._read([token], start=self.at)
        self.at += 1
        return last

    def fit(self, ids: Sequence[int]) -> tuple[list[float], list[bool]]:
        """Of each token but the first: -log likelihood after those before it, and whether it is the likeliest."""
        import numpy as np

        self._clear(len(ids))
        losses: list[float] = []
        hits: list[bool] = []
        for rows in self._read(ids, every=True):
            targets = np.asarray(ids[len(losses) + 1 : len(losses) + 1 + len(rows)])
            rows = rows[: len(targets)]
            highest = rows.max(1)
            normaliser = np.log(np.exp(rows - highest[:, None]).sum(1, dtype=np.float64)) + highest
            losses += (normaliser - rows[np.arange(len(targets)), targets]).tolist()
            hits += (rows.argmax(1) == targets).tolist()
        return losses, hits

    def score(self, ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        """The log likelihood of each answer after a prompt, summed over its tokens.

        Answers that begin alike share that part: each is a sequence of llama.cpp's, a token belongs to several.
        """
        starts = range(0, len(answers), MOST_SEQUENCES - 1)
        return [log for i in starts for log in self._score(ids, answers[i : i + MOST_SEQUENCES - 1])]

    def _score(self, ids: Sequence[int], answers: Sequence[Sequence[int]]) -> list[float]:
        nodes: dict[tuple[int, ...], list[int]] = {}  # what is read behind the prompt -> the answers that begin so
        for number, answer in enumerate(answers):
            for length in range(1, len(answer)):
                nodes.setdefault(tuple(answer[:length]), []).append(number)
        self._clear(len(ids) + len(nodes), len(answers))
        memory = self.lib.llama_get_memory(self.context)
        (last,) = self._read(ids)
        after: dict[tuple[int, ...], np.ndarray[Any, Any]] = {(): _log_softmax(last)}
        for number in range(1, len(answers)):
            self.lib.llama_memory_seq_cp(memory, 0, number, -1, -1)
        paths = sorted(nodes, key=lambda path: (len(path), path))
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            places = [(path[-1], len(ids) + len(path) - 1, nodes[path]) for path in part]
            rows = self._decode(places, [True] * len(part))
            after |= {path: _log_softmax(row) for path, row in zip(part, rows, strict=True)}
        return [sum(float(after[tuple(a[:n])][a[n]]) for n in range(len(a))) for a in answers]

    def quantise(self, source: str, out: str, kind: int, importance: Mapping[str, Any], threads: int) -> int:
        """Write a GGUF file in another type.

        Args:
            kind: number in llama.cpp's `llama_ftype`.
            importance: tensor -> mean square of each of its inputs, fp32; empty: all count alike.
        """
        ffi, lib = self.ffi, self.lib
        params = lib.llama_model_quantize_default_params()
        params.nthread, params.ftype = threads, kind
        values_in_use = []  # what the entries point at
        if importance:
            entries = ffi.new("struct llama_model_imatrix_data[]", len(importance) + 1)  # the last one is empty
            for entry, (name, values) in zip(entries, importance.items(), strict=False):
                values_in_use += [ffi.new("char[]", name.encode()), ffi.from_buffer("float[]", values)]
                entry.name, entry.data, entry.size = *values_in_use[-2:], len(values)
            params.imatrix = entries
        if lib.llama_model_quantize(source.encode(), out.encode(), ffi.addressof(params)):
            raise RefusedByLlamaCpp("llama.cpp can't quantise the file")
        return 0

    # -- the context

    def _clear(self, tokens: int, sequences: int = 1) -> None:
        """Forget what was read, and see to it that there is room."""
        lib, ffi = self.lib, self.ffi
        if self.context and tokens <= self.size and sequences <= lib.llama_n_seq_max(self.context):
            lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
            return
        if self.context:
            lib.llama_free(self.context)
        self.size = -(-max(tokens, 2048) // 1024) * 1024
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = self.size, BATCH, BATCH
        params.n_seq_max = MOST_SEQUENCES if sequences > 1 else 1
        params.kv_unified = True
        params.n_threads = params.n_threads_batch = self.threads
        if self.exact:
            params.type_k = params.type_v = 0  # GGML_TYPE_F32
            params.flash_attn_type = 0
        self.context = lib.llama_init_from_model(self.model, params)
        if self.context == ffi.NULL:
            raise RefusedByLlamaCpp(f"llama.cpp has no memory for a context of {self.size:,} tokens")
        self._apply()

    def apply(self, scales: Sequence[float]) -> None:
        """Set the scale of each adapter for what follows; 0: it does not apply."""
        self.scales = list(scales)
        if self.context:
            self._apply()

    def _apply(self) -> None:
        pairs = [(adapter, scale) for adapter, scale in zip(self.adapters, self.scales, strict=True) if scale]
        adapters = self.ffi.new("struct llama_adapter_lora *[]", [adapter for adapter, _ in pairs])
        scales = self.ffi.new("float[]", [scale for _, scale in pairs])
        if self.lib.llama_set_adapters_lora(self.context, adapters, len(pairs), scales):
            raise RefusedByLlamaCpp("llama.cpp can't apply the adapter")

    def _read(self, ids: Sequence[int], *, start: int = 0, every: bool = False) -> Iterator[np.ndarray[Any, Any]]:
        """Read tokens into sequence 0; gives logits.

        Returns:
            After the last token (V), or with `every` blocks of those after each token (n, V); valid until the next
                call.
        """
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            is_last = first + BATCH >= len(ids)
            outputs = [every or (is_last and i == len(part) - 1) for i in range(len(part))]
            rows = self._decode([(token, start + first + i, [0]) for i, token in enumerate(part)], outputs)
            if every:
                yield rows
            elif is_last:
                yield rows[0]

    def _decode(
        self, tokens: Sequence[tuple[int, int, Sequence[int]]], outputs: Sequence[bool]
    ) -> np.ndarray[Any, Any]:
        """Compute tokens, each with its position and sequences; the logits (n, V) after those with an output."""
        import numpy as np

        batch = self.lib.llama_batch_init(len(tokens), 0, max(len(sequences) for _, _, sequences in tokens))
        try:
            batch.n_tokens = len(tokens)
            for i, (token, position, sequences) in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, outputs[i]
                batch.n_seq_id[i] = len(sequences)
                for j, sequence in enumerate(sequences):
                    batch.seq_id[i][j] = sequence
            failed = self.lib.llama_decode(self.context, batch)
        finally:
            self.lib.llama_batch_free(batch)
        if failed:
            raise RefusedByLlamaCpp(f"llama.cpp can't compute these tokens (llama_decode gave {failed})")
        size, count = self.lib.llama_vocab_n_tokens(self.vocab), sum(outputs)
        if not count:
            return np.empty((0, size), np.float32)
        logits = self.ffi.buffer(self.lib.llama_get_logits(self.context), 4 * size * count)
        return np.frombuffer(logits, np.float32).reshape(count, size)


def _log_softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Log probabilities (V), fp64."""
    import numpy as np

    shifted = logits.astype(np.float64) - float(logits.max())
    logs: np.ndarray[Any, Any] = shifted - np.log(np.exp(shifted).sum())
    return logs


def main() -> None:
    """Answer until the other end is closed: each question is a method's name and its arguments."""
    end_with_parent()  # also in the middle of an answer, or of a file that is quantised
    connection = Connection(int(sys.argv[1]))
    server = LlamaCppChild()
    connection.send(("done", None))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("done", getattr(server, name)(*arguments)))
        except RefusedByLlamaCpp as error:
            connection.send(("refused", str(error)))


if __name__ == "__main__":
    main()
