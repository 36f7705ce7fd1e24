"""Lowered pieces put together as one ExecuTorch program, without lowering anything.

A program's method is a list of instructions over numbered values in one planned stretch of memory.
Pieces run one after another, so their instructions follow each other, their values get numbers of
their own, and they all plan the same stretch of memory anew; only the residual stream between two
pieces has a place apart, one of two in turns. Weights are named by their content: each copy of a
piece gets names, and bytes in the file, of its own, or copies would share one mapping of memory
and be faster than the stack they stand for.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from archloop.runtimes.pte.graph import DECODE, PREFILL

_ALIGNMENT = 128
_SHARED = {PREFILL: 3, DECODE: 2}
"""Inputs of a method before the state: what is given, the length, and in a pass the real tokens."""


class Copy(NamedTuple):
    """A piece of the program.

    Attributes:
        file: as `deserialize_pte_binary` gives it.
        weights: which copy of its weights it has: pieces of one file with equal numbers share.
    """

    file: Any
    weights: str


def linked(pieces: Sequence[Copy]) -> Any:
    """A file (`PTEFile`) with both methods of a stack, given its pieces' in order."""
    from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
    from executorch.exir._serialize._program import PTEFile

    first = pieces[0].file.program
    constants, delegates = [first.constant_buffer[0]], list[Any]()
    named = NamedDataStoreOutput(buffers=[], pte_data={}, external_data={})
    offsets = []
    for piece in pieces:
        program = piece.file.program
        # The first buffer stands for tensors without content.
        offsets.append((len(constants) - 1, len(delegates)))
        constants += program.constant_buffer[1:]
        names = _named(piece, named)
        delegates += [_renamed(each, names) for each in program.backend_delegate_data]
    plans = [_Plan(method, pieces, offsets).linked() for method in (PREFILL, DECODE)]
    program = replace(
        first,
        execution_plan=plans,
        constant_buffer=constants,
        backend_delegate_data=delegates,
    )
    return PTEFile(program=program, named_data=named)


def _named(piece: Copy, into: Any) -> dict[str, str]:
    """Add a piece's weights to those of the file; new names by old ones."""
    names: dict[str, str] = {}
    if piece.file.named_data is None:
        return names
    for old, entry in piece.file.named_data.pte_data.items():
        names[old] = _name(piece.weights, old)
        if names[old] not in into.pte_data:
            into.buffers.append(piece.file.named_data.buffers[entry.buffer_index])
            # A file that was read does not say how its weights were aligned.
            into.pte_data[names[old]] = replace(
                entry, buffer_index=len(into.buffers) - 1, alignment=_ALIGNMENT
            )
    return names


def _name(copy: str, old: str) -> str:
    """A weight's name in a copy: as long as the old one, so that it fits in its place.

    Old names are checksums of 64 digits, or the word `scale_` and one.
    """
    digits = hashlib.sha512(f"{copy} {old}".encode()).hexdigest()
    assert len(old) <= len(digits), old
    return digits[: len(old)]


def _renamed(data: Any, names: dict[str, str]) -> Any:
    """A delegate's content with its weights' new names."""
    content = bytes(data.data)
    # The longest first: the checksum behind `scale_` may be a name too.
    for old in sorted(names, key=len, reverse=True):
        content = content.replace(old.encode(), names[old].encode())
    return replace(data, data=content)


class _Plan:
    """One method of all pieces, as it is put together."""

    def __init__(
        self, method: str, pieces: Sequence[Copy], offsets: Sequence[tuple[int, int]]
    ) -> None:
        self._method, self._offsets = method, offsets
        self._plans = [
            next(plan for plan in piece.file.program.execution_plan if plan.name == method)
            for piece in pieces
        ]
        self._values: list[Any] = []
        self._instructions: list[Any] = []
        self._operators: list[Any] = []
        self._delegates: list[Any] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []

    def linked(self) -> Any:
        """The method of the whole."""
        place = max(_stream_bytes(plan) for plan in self._plans)
        arena = 0
        for number, plan in enumerate(self._plans):
            self._add(number, plan, place)
            assert len(plan.non_const_buffer_sizes) <= 2, "one stretch of memory a piece"
            arena = max([arena, *plan.non_const_buffer_sizes[1:]])
        last = self._plans[-1]
        return replace(
            last,
            values=self._values,
            inputs=self._inputs,
            outputs=self._outputs,
            chains=[
                replace(
                    last.chains[0],
                    inputs=[],
                    outputs=[],
                    instructions=self._instructions,
                    stacktrace=None,
                )
            ],
            operators=self._operators,
            delegates=self._delegates,
            non_const_buffer_sizes=[0, 2 * place + arena],
        )

    def _add(self, number: int, plan: Any, place: int) -> None:
        """One piece more."""
        from executorch.exir.schema import Tensor

        shared = _SHARED[self._method]
        where: dict[int, int] = {}
        if self._inputs:
            where = dict(zip(plan.inputs[:shared], self._inputs[:shared], strict=True))
            where[plan.inputs[0]] = self._outputs[-1]
        for index in range(len(plan.values)):
            if index not in where:
                where[index] = len(self._values)
                # Written below, once every value has its number.
                self._values.append(None)
        is_last = number == len(self._plans) - 1
        stream = None if is_last else plan.outputs[-1]
        for index, value in enumerate(plan.values):
            if self._values[where[index]] is not None:
                continue
            content = value.val
            if isinstance(content, Tensor):
                content = self._tensor(content, self._offsets[number][0], 2 * place)
                if index == stream:
                    content = _at(content, (number % 2) * place)
            else:
                content = _renumbered(content, where)
            self._values[where[index]] = replace(value, val=content)
        if not self._inputs:
            self._inputs = [where[index] for index in plan.inputs[:shared]]
        self._inputs += [where[index] for index in plan.inputs[shared:]]
        # What a piece changes in place is no output of the whole.
        self._outputs = [where[index] for index in plan.outputs[-2 if is_last else -1 :]]
        self._add_instructions(plan, where, self._offsets[number][1])

    def _tensor(self, tensor: Any, constants: int, start: int) -> Any:
        """A piece's tensor with its content or its memory where the whole has them."""
        if tensor.data_buffer_idx > 0:
            tensor = replace(tensor, data_buffer_idx=tensor.data_buffer_idx + constants)
        if tensor.allocation_info is None:
            return tensor
        return _at(tensor, tensor.allocation_info.memory_offset + start)

    def _add_instructions(self, plan: Any, where: dict[int, int], delegates: int) -> None:
        from executorch.exir import schema

        operators = [self._operator(operator) for operator in plan.operators]
        first_delegate, start = len(self._delegates), len(self._instructions)
        for each in plan.delegates:
            moved = replace(each.processed, index=each.processed.index + delegates)
            self._delegates.append(replace(each, processed=moved))
        assert len(plan.chains) == 1, "a method is one chain of instructions"
        for instruction in plan.chains[0].instructions:
            call = instruction.instr_args
            if isinstance(call, schema.KernelCall):
                args = [where[index] for index in call.args]
                call = replace(call, op_index=operators[call.op_index], args=args)
            elif isinstance(call, schema.DelegateCall):
                args = [where[index] for index in call.args]
                index = call.delegate_index + first_delegate
                call = replace(call, delegate_index=index, args=args)
            elif isinstance(call, schema.MoveCall):
                call = replace(call, move_from=where[call.move_from], move_to=where[call.move_to])
            elif isinstance(call, schema.JumpFalseCall):
                call = replace(
                    call,
                    cond_value_index=where[call.cond_value_index],
                    destination_instruction=call.destination_instruction + start,
                )
            else:
                call = replace(call, value_index=where[call.value_index])
            self._instructions.append(replace(instruction, instr_args=call))

    def _operator(self, operator: Any) -> int:
        """Number of an operator in the whole."""
        if operator not in self._operators:
            self._operators.append(operator)
        return self._operators.index(operator)


def _stream_bytes(plan: Any) -> int:
    """Room for the largest tensor that a piece gives to the next."""
    tensor = plan.values[plan.outputs[-1]].val
    size = 4
    for each in tensor.sizes:
        size *= each
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _at(tensor: Any, offset: int) -> Any:
    """A planned tensor at another place."""
    assert tensor.allocation_info is not None, "what a piece gives has planned memory"
    moved = replace(
        tensor.allocation_info,
        memory_offset_low=offset & 0xFFFFFFFF,
        memory_offset_high=offset >> 32,
    )
    return replace(tensor, allocation_info=moved)


def _renumbered(content: Any, where: dict[int, int]) -> Any:
    """A value that holds numbers of other values."""
    from executorch.exir.schema import IntList, OptionalTensorList, TensorList

    if isinstance(content, IntList | TensorList | OptionalTensorList):
        return replace(content, items=[where.get(index, index) for index in content.items])
    return content
