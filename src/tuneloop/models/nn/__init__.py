"""What computes a model: our own decoder for a table of families, Transformers' classes for the rest."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # Passes within compute each row as they compute it alone.
    from tuneloop.models.nn.batch_invariance import batch_invariant as batch_invariant

    # Whether that holds now.
    from tuneloop.models.nn.batch_invariance import is_batch_invariant as is_batch_invariant

    # Make sure that a model can be computed so.
    from tuneloop.models.nn.batch_invariance import need_batch_invariance as need_batch_invariance

    # A product with a weight that does not depend on the number of rows.
    from tuneloop.models.nn.batch_invariance import product as product

    # Every so many layers one sees all, where windows alternate.
    from tuneloop.models.nn.families import PATTERN as PATTERN

    # How a family's layers differ from Llama's.
    from tuneloop.models.nn.families import Family as Family

    # The configuration of a model's language model.
    from tuneloop.models.nn.families import language_config as language_config

    # A tensor's name by Transformers' modules.
    from tuneloop.models.nn.families import module_name as module_name

    # The module of the language model in a model that also reads pictures.
    from tuneloop.models.nn.families import part_of as part_of

    # Whether a tensor is none of those that see pictures.
    from tuneloop.models.nn.families import reads_text as reads_text

    # Rows laid out one behind the other, each of which sees itself alone.
    from tuneloop.models.nn.llama import Documents as Documents

    # A decoder of one of the families.
    from tuneloop.models.nn.llama import Llama as Llama

    # Its numbers.
    from tuneloop.models.nn.llama import LlamaConfig as LlamaConfig

    # Inverse frequencies of the rotary embedding.
    from tuneloop.models.nn.llama import rope_frequencies as rope_frequencies

    # A frozen linear layer in four bits.
    from tuneloop.models.nn.quantised import Nf4Linear as Nf4Linear

    # Make sure that weights can be packed.
    from tuneloop.models.nn.quantised import need_bitsandbytes as need_bitsandbytes

    # Bring all linear layers but the vocabulary projection to four bits.
    from tuneloop.models.nn.quantised import quantise as quantise

    # The matrices of attention.
    from tuneloop.models.nn.shape import ATTENTION as ATTENTION

    # The matrices of the feed-forward layers.
    from tuneloop.models.nn.shape import FEED_FORWARD as FEED_FORWARD

    # Architectures whose sizes are known.
    from tuneloop.models.nn.shape import SIZED as SIZED

    # The numbers of a decoder that cost memory and time.
    from tuneloop.models.nn.shape import ModelShape as ModelShape

    # The matrices that are sized here, of the layers of an architecture.
    from tuneloop.models.nn.shape import nearest_matrices as nearest_matrices

    # The matrices to adapt, by a setting.
    from tuneloop.models.nn.shape import target_modules as target_modules

__getattr__, __dir__ = door(__name__)
