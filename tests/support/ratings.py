"""Movie ratings of the shape that the tutorial starts from."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np

__all__ = ["REAL_RATINGS", "write_ratings"]

REAL_RATINGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "movielens_sample.csv"
COLUMNS = [
    "user_id",
    "movie_id",
    "rating",
    "timestamp",
    "title",
    "genres",
    "gender",
    "age",
    "occupation",
    "zip",
]
_GENRES = np.array(["Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi", "Thriller", "War"])
_AGES = np.array([1, 18, 25, 35, 45, 50, 56])


def write_ratings(path: Path, *, rows: int = 200) -> None:
    """Real ratings where they are at hand, else as many made-up ones, always the same."""
    if REAL_RATINGS.is_file():
        shutil.copyfile(REAL_RATINGS, path)
    else:
        write_made_up_ratings(path, rows=rows)


def write_made_up_ratings(path: Path, *, rows: int) -> None:
    """Users like some genres more than others."""
    random = np.random.default_rng(7)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for i in range(rows):
            user, movie = int(random.integers(1, 6041)), int(random.integers(1, 3953))
            genres = sorted({_GENRES[(movie + k * k) % len(_GENRES)] for k in range(1 + movie % 3)})
            liked = _GENRES[user % len(_GENRES)] in genres
            rating = int(np.clip(random.normal(4.2 if liked else 3.3, 1.0), 1, 5))
            writer.writerow(
                [
                    user,
                    movie,
                    rating,
                    956_703_932 + 1000 * i,
                    f"Movie, The {movie} ({1940 + movie % 60})",
                    "|".join(genres),
                    "FM"[user % 2],
                    _AGES[user % len(_AGES)],
                    user % 21,
                    f"{10_000 + user:05d}",
                ]
            )
