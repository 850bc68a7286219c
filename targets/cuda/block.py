"""Thread blocks as CUDA has them. Instructions that TVM has no word for are device functions of one line of PTX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from planish.codegen.simt.block import Block, Box, Registers, bytes_of, rounded_bytes
from planish.codegen.tiles.float import Expr

_PREFIX = "planish_"
ARENA = "arena_"
"""The name of a kernel's shared memory, followed by its bytes, which ptxas does not report."""


def device_call(name: str, source: str, *arguments: Expr, result: str = "void") -> Expr:
    """A call of the device function `name`, whose CUDA text is `source` with NAME in place of its name."""
    full = _PREFIX + name
    return T.cuda.func_call(full, *arguments, source_code=source.replace("NAME", full).strip(), return_type=result)


_BYTES_OF_TWO = """
__device__ __forceinline__ unsigned NAME(unsigned a, unsigned b, unsigned places) { return __byte_perm(a, b, places); }"""
# One instruction has room for one constant; apart, they would be two.
_FIELDS_TIMES = """
__device__ __forceinline__ unsigned NAME(unsigned word, unsigned times, unsigned more) {
  unsigned fields, result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(fields) : "r"(word), "r"(0x000f000fu), "r"(0x00080008u));
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(result) : "r"(fields), "r"(times), "r"(more));
  return result;
}"""
_MAKE_GATE = """
__device__ __forceinline__ void NAME(void* gate, int arrivals) {
  unsigned at = (unsigned)__cvta_generic_to_shared(gate);
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(at), "r"(arrivals) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}"""
_ARRIVE = """
__device__ __forceinline__ void NAME(void* gate) {
  unsigned at = (unsigned)__cvta_generic_to_shared(gate);
  asm volatile("{\\n.reg .b64 state;\\nmbarrier.arrive.shared::cta.b64 state, [%0];\\n}" :: "r"(at) : "memory");
}"""
_EXPECT = """
__device__ __forceinline__ void NAME(void* gate, int bytes) {
  unsigned at = (unsigned)__cvta_generic_to_shared(gate);
  asm volatile("{\\n.reg .b64 state;\\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\\n}"
      :: "r"(at), "r"(bytes) : "memory");
}"""
_PASS_GATE = """
__device__ __forceinline__ void NAME(void* gate, int parity) {
  unsigned at = (unsigned)__cvta_generic_to_shared(gate), passed;
  do {
    asm volatile("{\\n.reg .pred p;\\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\\nselp.u32 %0, 1, 0, p;\\n}"
        : "=r"(passed) : "r"(at), "r"(parity) : "memory");
  } while (!passed);
}"""
_COPY_BOX = """
__device__ __forceinline__ void NAME(void* to, unsigned long long map, int column, int row, void* gate) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to), done = (unsigned)__cvta_generic_to_shared(gate);
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
      :: "r"(at), "l"(map), "r"(column), "r"(row), "r"(done) : "memory");
}"""
_DOT_S8 = "__device__ __forceinline__ int NAME(unsigned a, unsigned b, int c) { return __dp4a((int)a, (int)b, c); }"


def _mma(kind: str, sum_type: str, constraint: str, fresh: bool = False) -> str:
    held = "=" if fresh else "+"
    outputs = ", ".join(f'"{held}{constraint}"(d[{n}])' for n in range(4))
    sums = "{%10,%10,%10,%10}" if fresh else "{%0,%1,%2,%3}"
    zero = f', "{constraint}"(0)' if fresh else ""
    return f"""
__device__ __forceinline__ void NAME({sum_type}* d, const unsigned* a, const unsigned* b) {{
  asm("mma.sync.aligned.{kind} {{%0,%1,%2,%3}}, {{%4,%5,%6,%7}}, {{%8,%9}}, {sums};"
      : {outputs} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]){zero});
}}"""


_PRODUCTS_S8, _FRESH_PRODUCTS_S8 = (
    _mma("m16n8k32.row.col.s32.s8.s8.s32", "int", "r", fresh) for fresh in (False, True)
)

_LOAD_MATRICES = {
    2: """
__device__ __forceinline__ void NAME(unsigned* d, const void* row) {
  unsigned at = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "r"(at) : "memory");
}""",
    4: """
__device__ __forceinline__ void NAME(unsigned* d, const void* row) {
  unsigned at = (unsigned)__cvta_generic_to_shared(row);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(at) : "memory");
}""",
}

# With fewer than 16 source bytes the rest is filled with zeros.
_COPY_ASYNC = """
__device__ __forceinline__ void NAME(void* to, const void* from, int bytes) {
  unsigned at = (unsigned)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(at), "l"(from), "r"(bytes) : "memory");
}"""


def plain(instructions: str) -> str:
    """A device function of instructions without operands."""
    return f'__device__ __forceinline__ void NAME() {{ asm volatile("{instructions}" ::: "memory"); }}'


def wait_for_previous() -> Expr:
    """Wait until the kernels before this one are done, and what they wrote can be read."""
    return device_call("wait_for_previous", plain("griddepcontrol.wait;"))


def _group_products(columns: int, fresh: bool, positive: bool) -> str:
    """The descriptor of B: lines of 128 bytes with exchanged pieces (1 << 62), eight of them 1024 bytes apart (64 << 32)."""
    count = columns // 2
    sums = ",".join(f"%{n}" for n in range(count))
    outputs = ", ".join(f'"+r"(d[{n}])' for n in range(count))
    a = ",".join(f"%{count + n}" for n in range(4))
    return f"""
__device__ __forceinline__ void NAME(int* d, const unsigned* a, const void* b, int beyond) {{
  unsigned at = (unsigned)__cvta_generic_to_shared(b);
  unsigned long long first = (unsigned long long)((at & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
  unsigned long long described = first + (beyond >> 4);
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, {int(not fresh)}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{columns}k32.s32.{"us"[not positive]}8.s8 {{{sums}}}, {{{a}}}, %{count + 4}, p;\\n}}"
      : {outputs} : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(described));
}}"""


def _group_wait(sets: int, count: int) -> str:
    """The sums are named as operands, so that no read of them moves before the wait."""
    held = ", ".join(f'"+r"(d[{n}])' for n in range(count))
    return f"""
__device__ __forceinline__ void NAME(int* d) {{
  asm volatile("wgmma.wait_group.sync.aligned {sets};" : {held} :: "memory");
}}"""


_COMMIT = '__device__ __forceinline__ void NAME() { asm volatile("cp.async.commit_group;" ::: "memory"); }'


def _wait(groups: int) -> str:
    return f'__device__ __forceinline__ void NAME() {{ asm volatile("cp.async.wait_group {groups};" ::: "memory"); }}'


def _load(count: int, space: str) -> str:
    vector = f".v{count}" if count > 1 else ""
    places = ",".join(f"%{n}" for n in range(count))
    outputs = ", ".join(f'"=r"(d[{n}])' for n in range(count))
    listed = f"{{{places}}}" if count > 1 else places
    address = '"r"((unsigned)__cvta_generic_to_shared(from))' if space == "shared" else '"l"(from)'
    # Shared memory changes: its loads must stay between the barriers around them.
    clobber = ' : "memory"' if space == "shared" else ""
    return f"""
__device__ __forceinline__ void NAME(unsigned* d, const void* from) {{
  asm volatile("ld.{space}{vector}.u32 {listed}, [%{count}];" : {outputs} : {address}{clobber});
}}"""


class _Registers:
    """An array that is indexed by constants only, so that ptxas keeps it in registers."""

    def __init__(self, name: str, size: int, dtype: str) -> None:
        self.size, self.dtype = size, dtype
        self.buffer = IRBuilder.name(name, T.alloc_buffer((size,), dtype, scope="local"))

    def __getitem__(self, at: int) -> Expr:
        return self.buffer[at]

    def __setitem__(self, at: int, value: Expr) -> None:
        T.buffer_store(self.buffer, value, [at])

    def address(self, at: int) -> Expr:
        return T.address_of(self.buffer[at])


def _address(registers: Registers, at: int) -> Expr:
    assert isinstance(registers, _Registers)
    return registers.address(at)


class CudaBlock(Block):
    """A block of the kernel that is being launched."""

    def __init__(
        self, index: tuple[Expr, ...], threads: int, thread: Expr, shared_bytes: int, overlaps: bool = False
    ) -> None:
        self.index, self.threads, self._thread, self._overlaps = index, threads, thread, overlaps
        # One buffer for all: TVM would lay out several of its own accord.
        self._arena = None
        if shared_bytes:
            self._arena = IRBuilder.name(
                f"{ARENA}{shared_bytes}", T.alloc_buffer((shared_bytes,), "uint8", scope="shared.dyn", align=1024)
            )
        self._shared_bytes, self._taken = shared_bytes, 0

    def registers(self, name: str, size: int, dtype: str = "float32") -> Registers:
        return _Registers(name, size, dtype)

    def shared(self, name: str, size: int, dtype: str = "float32") -> Any:
        start = self._taken
        self._taken += rounded_bytes(size, dtype)
        return self._view(name, start, size, dtype)

    def shared_again(self, name: str, size: int, dtype: str = "float32") -> Any:
        return self._view(name, 0, size, dtype)

    def _view(self, name: str, start: int, size: int, dtype: str) -> Any:
        assert self._arena is not None, "a block with shared memory states its bytes"
        assert start + rounded_bytes(size, dtype) <= self._shared_bytes, (start, size, dtype, self._shared_bytes)
        count = bytes_of(dtype)
        view = T.decl_buffer(
            (size,), dtype, data=self._arena.data, elem_offset=start // count, scope="shared.dyn", align=count
        )
        return IRBuilder.name(name, view)

    @contextmanager
    def phase(self) -> Iterator[Expr]:
        yield T.cast(self._thread, "int32")

    def barrier(self) -> None:
        T.evaluate(T.cuda.cta_sync())

    def warp_barrier(self) -> None:
        T.evaluate(T.cuda.warp_sync())

    def gates(self, count: int = 1, arrivals: int | None = None) -> Any:
        gates = self.shared("gates", count, "uint64")
        with T.If(T.cast(self._thread, "int32") == 0), T.Then():
            for number in range(count):
                arriving = T.int32(self.threads if arrivals is None else arrivals)
                T.evaluate(device_call("make_gate", _MAKE_GATE, T.address_of(gates[number]), arriving))
        return gates

    def arrive(self, gates: Any, number: Expr | int = 0) -> None:
        T.evaluate(device_call("arrive", _ARRIVE, T.address_of(gates[number])))

    def expect(self, gates: Any, number: Expr | int, bytes: int) -> None:
        T.evaluate(device_call("expect", _EXPECT, T.address_of(gates[number]), T.int32(bytes)))

    def pass_gate(self, gates: Any, turn: Expr, number: Expr | int = 0) -> None:
        T.evaluate(device_call("pass_gate", _PASS_GATE, T.address_of(gates[number]), T.cast(turn % 2, "int32")))

    def wait_for_inputs(self) -> None:
        if self._overlaps:
            T.evaluate(wait_for_previous())

    def exchange(self, result: Registers, source: Registers, mask: int) -> None:
        source_text = f"""
__device__ __forceinline__ {_C[source.dtype]} NAME({_C[source.dtype]} x) {{
  return __shfl_xor_sync(0xffffffffu, x, {mask});
}}"""
        result[0] = device_call(f"exchange_{source.dtype}_{mask}", source_text, source[0], result=source.dtype)

    def dot_s8(self, sums: Registers, at: int, a: Expr, b: Expr) -> None:
        sums[at] = device_call("dot_s8", _DOT_S8, a, b, sums[at], result="int32")

    def bytes_of_two(self, first: Expr, second: Expr, places: tuple[int, int, int, int]) -> Expr:
        selector = T.uint32(sum(place << 4 * number for number, place in enumerate(places)))
        return device_call("bytes_of_two", _BYTES_OF_TWO, first, second, selector, result="uint32")

    def fields_times(self, word: Expr, times: Expr, more: Expr) -> Expr:
        return device_call("fields_times", _FIELDS_TIMES, word, times, more, result="uint32")

    def products_s8(
        self, sums: Registers, at: int, a: Registers, a_at: int, b: Registers, b_at: int, fresh: bool = False
    ) -> None:
        name, source = ("fresh_products_s8", _FRESH_PRODUCTS_S8) if fresh else ("products_s8", _PRODUCTS_S8)
        T.evaluate(device_call(name, source, _address(sums, at), _address(a, a_at), _address(b, b_at)))

    def group_products_s8(
        self,
        sums: Registers,
        at: int,
        columns: int,
        a: Registers,
        a_at: int,
        shared: Any,
        place: Expr,
        beyond: int = 0,
        fresh: bool = False,
        positive: bool = False,
    ) -> None:
        kind = f"{'_fresh' if fresh else ''}{'_positive' if positive else ''}"
        name, line = f"group_products_s8_{columns}{kind}", T.address_of(shared[place])
        text = _group_products(columns, fresh, positive)
        T.evaluate(device_call(name, text, _address(sums, at), _address(a, a_at), line, T.int32(beyond)))

    def group_start(self) -> None:
        T.evaluate(device_call("group_start", plain("wgmma.fence.sync.aligned;")))

    def group_commit(self) -> None:
        T.evaluate(device_call("group_commit", plain("wgmma.commit_group.sync.aligned;")))

    def group_wait(self, sets: int, sums: Registers, at: int, count: int) -> None:
        T.evaluate(device_call(f"group_wait_{sets}_{count}", _group_wait(sets, count), _address(sums, at)))

    def share(self) -> None:
        T.evaluate(device_call("share", plain("fence.proxy.async.shared::cta;")))

    def load_matrices(self, result: Registers, at: int, count: int, shared: Any, place: Callable[[Expr], Expr]) -> None:
        row = T.address_of(shared[place(T.cast(self._thread, "int32"))])
        T.evaluate(device_call(f"load_matrices_{count}", _LOAD_MATRICES[count], _address(result, at), row))

    def copy_async(
        self, shared: Any, at: Expr, source: Any, index: tuple[Expr, ...], valid: Expr | None = None
    ) -> None:
        count = T.int32(16) if valid is None else T.Select(valid, T.int32(16), T.int32(0))
        # What is not copied is not read, but its address must exist.
        if valid is not None:
            index = tuple(T.Select(valid, i, T.cast(T.int32(0), i.ty.dtype)) for i in index)
        start = T.address_of(source[index])
        T.evaluate(device_call("copy_async", _COPY_ASYNC, T.address_of(shared[at]), start, count))

    def copy_box(
        self, gates: Any, number: Expr | int, shared: Any, at: Expr, box: Box, index: tuple[Expr, Expr]
    ) -> None:
        gate, place = T.address_of(gates[number]), T.address_of(shared[at])
        row, column = (T.cast(i, "int32") for i in index)
        T.evaluate(device_call("copy_box", _COPY_BOX, place, T.address_of(box.map), column, row, gate))

    def commit(self) -> None:
        T.evaluate(device_call("commit", _COMMIT))

    def wait(self, groups: int) -> None:
        T.evaluate(device_call(f"wait_{groups}", _wait(groups)))

    def load_vector(
        self, result: Registers, at: int, count: int, source: Any, index: tuple[Expr, ...], keep: bool = False
    ) -> None:
        space, name = ("global.nc", f"load_{count}") if keep else ("global.nc.L1::no_allocate", f"stream_{count}")
        T.evaluate(device_call(name, _load(count, space), _address(result, at), T.address_of(source[index])))

    def load_shared(self, result: Registers, at: int, count: int, shared: Any, place: Expr) -> None:
        text = _load(count, "shared")
        T.evaluate(device_call(f"load_shared_{count}", text, _address(result, at), T.address_of(shared[place])))


_C = {"float32": "float", "int32": "int", "uint32": "unsigned"}
