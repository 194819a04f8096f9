"""Which pictures do the pages have? `python -m docs.pictures` draws them anew, beside this file."""

from __future__ import annotations

from pathlib import Path

from docs.pictures.batches import when_a_batch_leaves
from docs.pictures.deaths import who_notices_a_death
from docs.pictures.keys import which_keys_move
from docs.pictures.lives import replica_life, restarts
from docs.pictures.requests import life_of_a_request
from docs.pictures.structure import architecture, local_engine, ray_engine
from docs.pictures.waits import how_long_requests_wait

FOLDER = Path(__file__).parent
DRAWN = (
    architecture,
    life_of_a_request,
    when_a_batch_leaves,
    which_keys_move,
    replica_life,
    restarts,
    local_engine,
    ray_engine,
    how_long_requests_wait,
    who_notices_a_death,
)


def files() -> dict[Path, str]:
    """What each file holds."""
    return {FOLDER / f"{picture.name}.svg": picture.svg() for picture in (draw() for draw in DRAWN)}


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
