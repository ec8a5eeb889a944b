"""Text to tf-idf vector, the same in training and in serving.

Follows the formulas of scikit-learn's TfidfVectorizer (smooth idf, l2 norm, unigrams), so its behaviour is familiar and
can be compared value by value; written here because the service must not carry scikit-learn.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Words of two or more letters: bare numbers in charted text are values, not vocabulary, and MIMIC blanks names as "___".
_TOKEN = re.compile(r"\b[^\W\d_]{2,}\b")


def tokenize(text: str) -> list[str]:
    """Lower-case words of two or more letters, in order."""
    return _TOKEN.findall(text.lower())


def fit_tfidf(texts: Iterable[str], *, min_count: int, max_features: int) -> dict[str, float]:
    """Vocabulary with inverse document frequencies: idf(t) = ln((1 + N) / (1 + df(t))) + 1.

    Keeps words found in at least `min_count` texts, the `max_features` most frequent of them (ties by spelling),
    in alphabetical order.
    """
    num_texts, counts = 0, Counter[str]()
    for text in texts:
        num_texts += 1
        counts.update(set(tokenize(text)))
    kept = sorted((w for w, n in counts.items() if n >= min_count), key=lambda w: (-counts[w], w))[:max_features]
    return {word: math.log((1 + num_texts) / (1 + counts[word])) + 1 for word in sorted(kept)}


def tfidf_vector(text: str, positions: Mapping[str, int], idf: Sequence[float]) -> NDArray[np.float32]:
    """The l2-normalised tf-idf vector (V,) of one text; all zeros when no word is known."""
    vector = np.zeros(len(positions), np.float32)
    for word, count in Counter(tokenize(text)).items():
        if (position := positions.get(word)) is not None:
            vector[position] = count * idf[position]
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm > 0 else vector
