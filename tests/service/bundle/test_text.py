"""Text to tf-idf, against scikit-learn."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from service.bundle import text as module
from service.bundle.text import fit_tfidf, tfidf_vector, tokenize

WORDS = ["fever", "pain", "Chest", "the", "café", "x", "b12", "___", "no"]
texts = st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), min_size=1, max_size=8)


def test_words_are_letters() -> None:
    """Words have two or more letters, in lower case; numbers, blanks of de-identified notes and single letters are none."""
    assert tokenize("Pt. ___ had CHEST pain x 3 days, b12 5.5; caf\u00e9") == ["pt", "had", "chest", "pain", "days", "caf\u00e9"]


def test_a_very_long_word_takes_no_time() -> None:
    """A hostile text cannot make the tokenizer slow."""
    assert tokenize("a" * 1_000_000 + "1") == []


@settings(deadline=None)
@given(texts)
def test_vectors_are_those_of_scikit_learn(corpus: list[str]) -> None:
    """Vocabulary, idf and vectors equal TfidfVectorizer's with the same token pattern."""
    idf = fit_tfidf(corpus, min_count=1, max_features=100)
    if not idf:
        return
    reference = TfidfVectorizer(token_pattern=module._TOKEN.pattern, vocabulary=list(idf)).fit(corpus)
    assert sorted(idf) == sorted(TfidfVectorizer(token_pattern=module._TOKEN.pattern).fit(corpus).vocabulary_)
    np.testing.assert_allclose(list(idf.values()), reference.idf_, atol=1e-6)
    positions = {word: i for i, word in enumerate(idf)}
    found = [tfidf_vector(text, positions, np.float32(list(idf.values()))) for text in corpus]
    np.testing.assert_allclose(found, reference.transform(corpus).toarray(), atol=1e-6)
    assert {vector.dtype for vector in found} == {np.dtype(np.float32)}


def test_rare_words_and_words_beyond_the_limit_are_left_out() -> None:
    """`min_count` counts texts, not occurrences; the most frequent stay, ties go by spelling, the order is alphabetical."""
    corpus = ["pain pain fever", "fever cough", "cough zebra fever", "apple ague"]
    assert list(fit_tfidf(corpus, min_count=2, max_features=10)) == ["cough", "fever"]
    assert list(fit_tfidf(corpus, min_count=1, max_features=3)) == ["ague", "cough", "fever"]
    assert fit_tfidf([], min_count=1, max_features=3) == {}


def test_text_of_unknown_words_is_all_zeros() -> None:
    """Where no word is known the vector is zero, not NaN."""
    assert tfidf_vector("unknown", {"fever": 0}, np.float32([1.0])).tolist() == [0.0]
