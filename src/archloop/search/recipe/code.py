"""What of a plug-in's source runs: the text without docstrings, comments and layout.

A study is tied to the code of its plug-ins. An edit of words alone makes no other study of it.
"""

import ast
import io
import tokenize

_LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER}
_HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def what_runs(source: bytes) -> bytes:
    """The code of a Python file; of what is no Python, all bytes.

    Statements stay on lines of their own and blocks keep their depth, so that different code gives
    different bytes.
    """
    try:
        said = _docstrings(ast.parse(source))
        tokens = list(tokenize.tokenize(io.BytesIO(source).readline))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return source
    kept: list[str] = []
    left_out = False
    for token in tokens:
        if token.type in _LAYOUT:
            continue
        is_docstring = token.type == tokenize.STRING and token.start[0] in said
        ends_docstring = token.type == tokenize.NEWLINE and left_out
        left_out = is_docstring
        if is_docstring or ends_docstring:
            continue
        # Of layout, only that there is another line and another depth counts.
        is_structure = token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE)
        kept.append(tokenize.tok_name[token.type] if is_structure else token.string)
    return "\0".join(kept).encode("utf-8", "surrogatepass")


def _docstrings(tree: ast.Module) -> set[int]:
    """First lines of the docstrings."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, _HAVE_DOCSTRINGS) and ast.get_docstring(node, clean=False) is not None:
            found.add(node.body[0].lineno)
    return found
