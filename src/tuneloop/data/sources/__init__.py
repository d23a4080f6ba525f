"""Files, folders, addresses and the standard input to records."""

from typing import TYPE_CHECKING

from tuneloop.core.lazy import door

if TYPE_CHECKING:
    # The chunks of a file, in order.
    from tuneloop.data.sources.chunks import chunks_of as chunks_of

    # The names of the columns of a CSV file.
    from tuneloop.data.sources.chunks import header_of as header_of

    # A piece of a source that can be parsed on its own, in any process.
    from tuneloop.data.sources.parse import Chunk as Chunk

    # A file to read.
    from tuneloop.data.sources.parse import SourceFile as SourceFile

    # One record of a source.
    from tuneloop.data.sources.parse import SourceRecord as SourceRecord

    # The records of a chunk and its rejects, in the order of their lines.
    from tuneloop.data.sources.parse import parse_chunk as parse_chunk

    # What a `dataset_info.json` near a file says of it.
    from tuneloop.data.sources.read import entry_of as entry_of

    # The files behind paths, globs, folders and addresses, each once.
    from tuneloop.data.sources.read import find_files as find_files

    # A source and the sheet that it names.
    from tuneloop.data.sources.read import named_sheet as named_sheet

    # The records of one file.
    from tuneloop.data.sources.read import read_file as read_file

    # The records of files, globs, folders and the standard input.
    from tuneloop.data.sources.read import read_records as read_records

__getattr__, __dir__ = door(__name__)
