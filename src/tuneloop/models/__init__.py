"""Models by name: loaded with tokenizer and template, an encoder with its head, the result of a training."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # An encoder with its head.
    from tuneloop.models.encoder import Classifier as Classifier

    # A loaded encoder: texts to vectors.
    from tuneloop.models.encoder import Encoder as Encoder

    # What reads labels from vectors.
    from tuneloop.models.encoder import Head as Head

    # The folder of an encoder with a head, of a run or an artifact.
    from tuneloop.models.encoder import encoder_folder as encoder_folder

    # Load an encoder.
    from tuneloop.models.encoder import load_encoder as load_encoder

    # The encoder that ships, as a function from texts to vectors.
    from tuneloop.models.encoder import minilm_embedder as minilm_embedder

    # The encoder with a head in a run or an artifact.
    from tuneloop.models.encoder import open_classifier as open_classifier

    # What an encoder reads of a conversation.
    from tuneloop.models.encoder import text_of_turns as text_of_turns

    # The `config.json` of Llama 3 in all sizes, and of a tiny one.
    from tuneloop.models.load import SIZES as SIZES

    # A loaded causal language model.
    from tuneloop.models.load import Model as Model

    # A model's `config.json`, checked.
    from tuneloop.models.load import config_of as config_of

    # A hash that distinguishes models without reading all their bytes.
    from tuneloop.models.load import fingerprint as fingerprint

    # The transformer blocks of a network.
    from tuneloop.models.load import layers_of as layers_of

    # Load a model by folder, short name or hub name.
    from tuneloop.models.load import load_model as load_model

    # Only the tokenizer and template of a model, without torch.
    from tuneloop.models.load import load_tokenizer as load_tokenizer

    # Whether only several cards together have room for a model.
    from tuneloop.models.load import needs_several_cards as needs_several_cards

    # A safetensors file of weights, to read tensors one by one.
    from tuneloop.models.load import opened as opened

    # A Llama with random weights.
    from tuneloop.models.load import random_model as random_model

    # A model's modules, their weights without values.
    from tuneloop.models.load import skeleton as skeleton

    # The safetensors files of a model's folder.
    from tuneloop.models.load import weight_files as weight_files

    # The base model that an adapter names.
    from tuneloop.models.trained import base_of_adapter as base_of_adapter

    # Put a run's result into its base model.
    from tuneloop.models.trained import load_trained as load_trained

    # A finished run, an adapter alone, or else a model.
    from tuneloop.models.trained import target_kind as target_kind

    # Tokenizer and template next to an adapter.
    from tuneloop.models.trained import template_of_adapter as template_of_adapter

    # Where a run's result is.
    from tuneloop.models.trained import trained_folder as trained_folder

__getattr__, __dir__ = door(__name__)
