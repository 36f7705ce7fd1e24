"""The words of the page, for a reader who meets them first."""

GLOSSARY = (
    ("stack", "the blocks of one decoder; its drawing has a column for each block"),
    ("trial", "one stack that was tried, with all that was measured and trained of it"),
    ("reference preset", "a known stack, measured and trained first, that all others are beside"),
    ("proxy", "the stack at a small width, trained briefly, whose scores stand for its quality"),
    ("rung", "how long a proxy was trained; only trials that earned it reach a higher rung"),
    ("quality", "scores of the proxy, on the scale between two anchor stacks"),
    ("latency", "time to the first token and 256 further ones, over the reference preset's"),
    ("memory", "peak memory less the empty engine's, over the reference preset's"),
    ("TTFT", "time to first token: from the prompt to the first token of the reply"),
    ("decode step", "time for each further token; p50 is the median, p95 what 5% exceed"),
    ("on the front", "no other is surely better in everything, and it beats the reference"),
    ("tied", "what was measured does not tell whether it is on the front"),
    ("dominated", "another trial, which is named, is better in everything"),
    ("budget", "a limit on a measured figure; who breaks it is never trained"),
    ("straddles", "the interval of a figure still contains its limit after the last look"),
    ("hypervolume", "the room that the front has won up to the reference point; larger is better"),
    ("noise floor", "what the reference preset, measured beside itself, seems to differ from it"),
)
