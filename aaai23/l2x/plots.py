"""Reviews with their selected words marked, beside the ranges that people annotated: as a web page and as a PNG."""

from __future__ import annotations

import html
import itertools
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from aaai23.harness.files import write_atomically
from aaai23.l2x.config import ANNOTATIONS_FILE
from aaai23.l2x.data import L2XData
from aaai23.l2x.model import Explainer
from aaai23.plots import picture

LEGEND = "yellow: selected by the model; green underline: annotated for this aspect by people"
SAMPLE_LEGEND = "yellow: selected by the model; green underline: where the sample data speak of this aspect"
STYLE = """body{font:16px/1.7 Georgia,serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
mark{background:#ffe066;border-radius:3px;padding:0 2px}.r{border-bottom:3px solid #2b8a3e}
small{color:#666}article{margin:1.5rem 0}"""

LETTER = 10 / 110
"""Inches that a letter of the font below is wide, in whole pixels, as Agg draws it."""


@dataclass(frozen=True)
class ExplainedReview:
    """One review: its words, and for each whether it was selected and whether it was annotated."""

    words: list[str]
    selected: list[bool]
    relevant: list[bool]
    predicted: float


@torch.inference_mode()
def explain(model: Explainer, data: L2XData, data_dir: Path, count: int, longest: int = 140) -> list[ExplainedReview]:
    """Return the first `count` annotated reviews of at most `longest` words with the trained model's choice."""
    model.eval()
    explained: list[ExplainedReview] = []
    with open(data_dir / ANNOTATIONS_FILE, encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            words = json.loads(line)["x"]
            if len(explained) == count:
                break
            if len(words) > min(longest, data.annotated.tokens.shape[1]):
                continue
            tokens = data.annotated.tokens[row : row + 1].to(model.selector.embedding.device)
            selected = model.select(tokens)[0, -len(words) :] > 0
            relevant = data.annotated.relevant[row, -len(words) :]
            explained.append(ExplainedReview(words, selected.tolist(), relevant.tolist(), model(tokens).item()))
    return explained


def write_html(path: Path, reviews: list[ExplainedReview], title: str, sample_data: bool) -> None:
    """Write a page of reviews."""
    legend = SAMPLE_LEGEND if sample_data else LEGEND
    body = "\n".join(_article(review) for review in reviews)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{legend}</p>\n{body}\n</html>\n"
    )
    write_atomically(path, page.encode())


def _article(review: ExplainedReview) -> str:
    words = []
    for word, selected, relevant in zip(review.words, review.selected, review.relevant, strict=True):
        text = html.escape(word)
        text = f"<mark>{text}</mark>" if selected else text
        words.append(f'<span class="r">{text}</span>' if relevant else text)
    return f"<article><small>predicted rating {review.predicted:.2f}</small><br>{' '.join(words)}</article>"


def write_png(path: Path, reviews: list[ExplainedReview], title: str, sample_data: bool, columns: int = 96) -> None:
    """Draw the same as a picture, in lines of `columns` letters."""
    lines = [line for review in reviews for line in (*_wrapped(review, columns), [])]
    size, height = columns * LETTER, len(lines) + 3
    with picture(path, figsize=(size + 0.4, height * 0.21), dpi=110) as figure:
        axes = figure.add_axes((0.2 / (size + 0.4), 0, size / (size + 0.4), 1))
        axes.set(xlim=(0, columns), ylim=(height - 2.5, -2.5))
        axes.axis("off")
        font = {"family": "DejaVu Sans Mono", "size": 10.2, "va": "center"}
        axes.text(0, -2, title, fontdict=font, weight="bold")
        axes.text(0, -1, SAMPLE_LEGEND if sample_data else LEGEND, fontdict=font, color="#666666")
        for row, line in enumerate(lines):
            column = 0
            for word, selected, relevant in line:
                axes.text(
                    column, row, word, fontdict=font, bbox={"fc": "#ffe066", "lw": 0, "pad": 1} if selected else None
                )
                if relevant:
                    axes.plot([column, column + len(word)], [row + 0.45] * 2, color="#2b8a3e", lw=1.6)
                column += len(word) + 1


def _wrapped(review: ExplainedReview, columns: int) -> Iterator[list[tuple[str, bool, bool]]]:
    """Yield lines of (word, selected, relevant)."""
    words = zip(review.words, review.selected, review.relevant, strict=True)
    for line in textwrap.wrap(" ".join(review.words), columns, break_on_hyphens=False, break_long_words=False):
        yield list(itertools.islice(words, line.count(" ") + 1))
