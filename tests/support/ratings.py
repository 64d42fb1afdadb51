"""Movie ratings of the shape that the tutorial starts from."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np

__all__ = ["REAL_RATINGS", "write_latent_ratings", "write_ratings"]

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


def write_latent_ratings(path: Path, *, rows: int, users: int, items: int, seed: int = 0) -> None:
    """Ratings that biases and an inner product of a user's and a film's hidden vectors decide, and noise.

    Popular films come more often, as in MovieLens; (rows, users, items) of its 100k set are 100,000, 943 and 1,682.
    """
    random = np.random.default_rng(seed)
    user_vectors, item_vectors = random.normal(size=(users, 3)), random.normal(size=(items, 3))
    user_bias, item_bias = random.normal(0, 0.5, users), random.normal(0, 0.5, items)
    genres = ["|".join(random.choice(_GENRES, 1 + i % 3, replace=False)) for i in range(items)]
    popularity = 1 / (np.arange(items) + 20)
    user = random.integers(0, users, rows)
    item = random.choice(items, rows, p=popularity / popularity.sum())
    taste = 0.15 * (user_vectors[user] * item_vectors[item]).sum(axis=1)
    stars = 3.5 + user_bias[user] + item_bias[item] + taste + random.normal(0, 0.8, rows)
    rating = np.clip(np.rint(stars), 1, 5).astype(int)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["user_id", "movie_id", "rating", "timestamp", "genres", "gender", "age", "occupation"]
        )
        for i, (u, m, r) in enumerate(zip(user.tolist(), item.tolist(), rating.tolist(), strict=True)):
            age = int(_AGES[u % len(_AGES)])
            writer.writerow([u, m, r, 956_703_932 + 60 * i, genres[m], "FM"[u % 2], age + u % 5, u % 21])
