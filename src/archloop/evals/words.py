"""Words that questions are made of."""

NAMES = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack"),
    *("Kate", "Leo", "Mary", "Noah", "Olga", "Paul", "Quinn", "Ruth", "Sam", "Tina"),
    *("Ugo", "Vera", "Will", "Xenia", "Yuri", "Zoe"),
)
THINGS = (
    *("apple", "ball", "candle", "drum", "envelope", "feather", "glove", "hammer", "iron", "jar"),
    *("key", "lamp", "mirror", "needle", "orange", "pencil", "quilt", "rope", "spoon", "ticket"),
    *("umbrella", "vase", "watch", "yarn", "basket", "coin", "flag", "map", "ring", "stone"),
)
PLACES = (
    *("attic", "barn", "cellar", "dock", "entrance", "forest", "garden", "hall", "island"),
    *("kitchen", "library", "market", "office", "park", "roof", "station", "tower", "workshop"),
)
COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "white")
FILLER = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is bright.",
    "Here we go.",
    "There and back again.",
)
"""Sentences that mean nothing to any question (as RULER's repeated noise, arXiv 2404.06654)."""
