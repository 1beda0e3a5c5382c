"""Files of gensim and word2vec: a trained model in, word vectors out."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from crossfluence.errors import CorpusError, ResultFileError, import_optional
from crossfluence.extend import write_atomically

from .module import SkipGram

VECTORS = (".txt", ".bin", ".kv")


def load_word2vec(path: str | os.PathLike[str]) -> Any:
    """A model that gensim's `Word2Vec.save` wrote, for `SkipGram.from_gensim` and `Sampling.from_gensim`.

    Such a file is a Python pickle: opening it runs what is in it. Open files of your own, or of people you trust.

    Args:
        path: The file; large models have others beside it, which must be there too.

    Returns:
        A `gensim.models.Word2Vec`.

    Raises:
        CorpusError: If there is no such file, or it holds something else.
        MissingExtraError: If gensim is not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise CorpusError(f"There is no file {file}; needed what gensim's Word2Vec.save wrote.")
    load = import_optional("gensim.models", "Reading a model of gensim", "words").Word2Vec.load
    try:
        return load(str(file), rethrow=True)
    except Exception as error:  # whatever a pickle of something else may raise
        raise CorpusError(
            f"{file.name} is not what gensim's Word2Vec.save wrote ({str(error) or type(error).__name__}). Vectors "
            f"alone are not enough: needed the whole model, with its context vectors."
        ) from error


def write_vectors(model: SkipGram, path: str | os.PathLike[str]) -> None:
    """Writes the word vectors, in float32, in the format that the file's ending names.

    Args:
        model: Trained tables.
        path: `.txt` or `.bin` for word2vec's text and binary formats, `.kv` for gensim's `KeyedVectors`.

    Raises:
        ResultFileError: If the ending is another, or the file cannot be written.
        MissingExtraError: If gensim is not installed.
    """
    refuse_ending(Path(path))
    keyed = model.to_gensim()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "vectors")
        if Path(path).suffix == ".kv":
            keyed.save(str(file), sep_limit=sys.maxsize)  # one file, however large
        else:
            keyed.save_word2vec_format(str(file), binary=Path(path).suffix == ".bin")
        write_atomically(path, file.read_bytes())


def refuse_ending(path: Path) -> None:
    """Makes sure that the ending of a file names a format of word vectors.

    Args:
        path: The file.

    Raises:
        ResultFileError: If it does not.
    """
    if path.suffix not in VECTORS:
        raise ResultFileError(
            f"{path} must end in .txt or .bin (word2vec's formats) or .kv (gensim's KeyedVectors) to hold word vectors."
        )
