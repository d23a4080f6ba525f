"""From a model's name to a folder with its files: local, the hub, a package, GGUF."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Kinds of tokens, by llama.cpp's numbers.
    from tuneloop.models.files.gguf import TokenKind as TokenKind

    # The GGUF name of a tensor.
    from tuneloop.models.files.gguf import gguf_name as gguf_name

    # Rows of q or k in llama.cpp's order.
    from tuneloop.models.files.gguf import permuted as permuted

    # A GGUF file's sizes as a `config.json` has them.
    from tuneloop.models.files.gguf import read_config as read_config

    # Read what comes before the weights of a GGUF file.
    from tuneloop.models.files.gguf import read_header as read_header

    # Write the tokenizer and the chat template of a GGUF file into a folder.
    from tuneloop.models.files.gguf import read_tokenizer as read_tokenizer

    # The package of the encoder that ships.
    from tuneloop.models.files.names import MINILM as MINILM

    # The encoder that ships.
    from tuneloop.models.files.names import MINILM_NAME as MINILM_NAME

    # What it is called in reports.
    from tuneloop.models.files.names import MINILM_TITLE as MINILM_TITLE

    # The model that ships.
    from tuneloop.models.files.names import PACKAGED as PACKAGED

    # Short names, with the hub's.
    from tuneloop.models.files.names import SHORT_NAMES as SHORT_NAMES

    # The package of the model that ships.
    from tuneloop.models.files.names import SMOLLM2 as SMOLLM2

    # The folder of a package's files, fetched where it is not here.
    from tuneloop.models.files.names import fetch_package as fetch_package

    # Whether a name or folder means an encoder.
    from tuneloop.models.files.names import is_encoder as is_encoder

    # Whether the hub gives a model to a token only.
    from tuneloop.models.files.names import is_gated as is_gated

    # Whether a model's files are here.
    from tuneloop.models.files.names import is_local as is_local

    # The name that people know a model by.
    from tuneloop.models.files.names import known_name as known_name

    # The folder of the encoder that ships, where it can be used.
    from tuneloop.models.files.names import minilm_folder as minilm_folder

    # Refuse a path that does not exist.
    from tuneloop.models.files.names import refuse_missing_path as refuse_missing_path

    # The folder with a model's configuration, weights and tokenizer.
    from tuneloop.models.files.names import resolve as resolve

__getattr__, __dir__ = door(__name__)
