"""Who dies when memory runs out: a worker, whose trial is marked, and not the study."""

from pathlib import Path


def prefer_as_victim() -> None:
    """Ask the kernel to end this process first; other systems choose by themselves."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")
