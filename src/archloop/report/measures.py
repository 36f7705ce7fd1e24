"""What quality is made of, in words: which scores count, and between which anchor stacks."""

from archloop.store.record import StudyRecord


def quality_in_words(study: StudyRecord) -> str:
    """The scale of quality in a sentence; empty before it was measured."""
    if study.scale is None:
        return "" if study.reference is None else "no score tells the anchor stacks apart"
    scores = ", ".join(
        f"{name} (0 at {anchor.low:.4g} of {anchor.lacks}, 1 at {anchor.high:.4g} of {anchor.has})"
        for name, anchor in study.scale.anchors.items()
    )
    num = len(study.scale.spreads)
    if num == 1:
        return f"quality, in standard deviations over the anchor stacks, is {scores}"
    return (
        f"quality is the mean over {num} categories, each in standard deviations over the anchor "
        f"stacks, of {scores}"
    )
