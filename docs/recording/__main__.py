"""What does the quick start look like? `python -m docs.recording` runs it, and draws what came into `docs/quick-start.svg`."""

from __future__ import annotations

from docs.recording.drawing import svg
from docs.recording.quick_start import PICTURE, README, TITLE, record, steps

if __name__ == "__main__":
    recording = record(steps(README))
    PICTURE.write_text(svg(TITLE, recording))
