# SPDX-License-Identifier: Apache-2.0
"""C from a table: the wrappers that stand before a driver, their header, and the list of a shared object's libraries.

Text in, text out; nothing here touches a file. Names that the generated code makes up end with `_`, so that no parameter of a
driver function can collide with them (`declarations` refuses such parameters).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hami_interceptor.fakes import fake, fake_header
from hami_interceptor.table import Api, Row

__all__ = ["everything", "fake", "fake_header", "hooks_header", "libraries", "wrappers"]


def hooks_header(api: Api) -> str:
    """`<api>_hooks.h`: function types, the driver's own functions, and the declarations of the hand-written hooks."""
    return "\n".join(_header_lines(api)) + "\n"


def wrappers(api: Api) -> str:
    """`<api>_hooks.c`: every hooked symbol, exported, and the tables by which the core finds them."""
    return "\n".join(_wrapper_lines(api)) + "\n"


def libraries(apis: Sequence[Api]) -> str:
    """`libraries.c` of a shared object: the driver libraries that it stands before."""
    lines = [
        *_banner("the driver libraries that this shared object stands before", apis),
        '#include "hami_core.h"',
        "",
        *(f"extern const struct hami_library hami_library_{api.name};" for api in apis),
        "",
        "const struct hami_library *const hami_libraries[] = {",
        *(f"    &hami_library_{api.name}," for api in apis),
        "    NULL,",
        "};",
    ]
    return "\n".join(lines) + "\n"


def everything(api: Api) -> Mapping[str, str]:
    """All the C of one API, by file name."""
    return {
        f"{api.name}_hooks.h": hooks_header(api),
        f"{api.name}_hooks.c": wrappers(api),
        f"{api.name}_fake.h": fake_header(api),
        f"{api.name}_fake.c": fake(api),
    }


def _banner(what: str, apis: Sequence[Api]) -> Iterator[str]:
    yield "/* SPDX-License-Identifier: Apache-2.0 */"
    yield f"/* {what}; made by hami_interceptor from {', '.join(f'spec/{api.path.name}' for api in apis)}; change that instead. */"


# -- the header -------------------------------------------------------------------------------------------------


def _header_lines(api: Api) -> Iterator[str]:
    name, guard = api.name, f"{api.name.upper()}_HOOKS_H"
    others = _others(api)
    yield from _banner(f"{api.title}: function types, the driver's own functions and the hand-written hooks", [api])
    yield f"#ifndef {guard}"
    yield f"#define {guard}"
    yield ""
    yield "#include <stdatomic.h>"
    yield ""
    yield '#include "hami_core.h"'
    yield f'#include "{api.header}"'
    yield ""
    yield "#pragma GCC visibility push(hidden)"
    yield f"extern const struct hami_library hami_library_{name};"
    yield f"extern const struct hami_symbol {name}_symbols_[];"
    yield f"extern _Atomic(void *) {name}_reals_[]; /* the driver's own functions: hooked rows, in the order of the symbols */"
    yield f"extern _Atomic(void *) {name}_others_[]; /* and those that are not hooked */"
    yield "#pragma GCC visibility pop"
    yield ""
    yield f"/* What a driver answers when we refuse. */\nstatic inline {api.result} {name}_refusal(enum hami_verdict verdict) {{"
    yield f"    return verdict == HAMI_OVER_LIMIT ? {api.out_of_memory} : {api.refused};"
    yield "}"
    for row in api.rows:
        if row.args is not None:
            yield ""
            yield f"typedef {row.result} (*{row.symbol}_fn)({row.parameters});"
    for index, row in enumerate(api.hooked):
        yield from _real(api, row, f"{name}_reals_[{index}]", f"hami_real(&hami_library_{name}, &{name}_symbols_[{index}])")
    for index, row in enumerate(others):
        yield from _other(api, row, f"{name}_others_[{index}]")
    yield ""
    yield "#pragma GCC visibility push(hidden)"
    for row in api.hooked:
        if row.hook == "hand" and row.base == row.symbol:
            yield f"{row.result} {name}_hook_{row.symbol}({_joined(f'{row.symbol}_fn real_', row)});"
    yield "#pragma GCC visibility pop"
    yield ""
    yield "#endif"


def _others(api: Api) -> tuple[Row, ...]:
    return tuple(row for row in api.rows if not row.hooked and row.args is not None)


def _real(api: Api, row: Row, place: str, resolve: str) -> Iterator[str]:
    yield ""
    yield f"static inline {row.symbol}_fn {api.name}_real_{row.symbol}(void) {{"
    yield f"    void *address_ = atomic_load_explicit(&{place}, memory_order_acquire);"
    yield f"    if (HAMI_UNLIKELY(address_ == NULL)) address_ = {resolve};"
    yield f"    return ({row.symbol}_fn)address_;"
    yield "}"


def _other(api: Api, row: Row, place: str) -> Iterator[str]:
    yield ""
    yield f"static inline {row.symbol}_fn {api.name}_real_{row.symbol}(void) {{"
    yield f"    void *address_ = atomic_load_explicit(&{place}, memory_order_acquire);"
    yield "    if (HAMI_UNLIKELY(address_ == NULL)) {"
    yield f'        address_ = hami_driver_symbol(&hami_library_{api.name}, "{row.symbol}");'
    yield f"        atomic_store_explicit(&{place}, address_, memory_order_release);"
    yield "    }"
    yield f"    return ({row.symbol}_fn)address_;"
    yield "}"


def _joined(first: str, row: Row) -> str:
    return ", ".join([first, *(parameter.declaration for parameter in row.args or ())])


# -- the wrappers -----------------------------------------------------------------------------------------------


def _wrapper_lines(api: Api) -> Iterator[str]:
    yield from _banner(f"{api.title}: the wrappers", [api])
    yield f'#include "{api.name}_hooks.h"'
    if any(row.hook == "launch" for row in api.rows):
        yield '#include "hami_gate.h"'
    for row in api.hooked:
        yield ""
        yield from _body(api, row)
        yield from _wrapper(api, row)
    yield ""
    yield from _tables(api)


def _wrapper(api: Api, row: Row) -> Iterator[str]:
    if row.hook == "launch":
        yield from _gated(api, row)
        return
    yield f"HAMI_EXPORT {row.result} {row.symbol}({row.parameters}) {{"
    if row.hook == "denied":
        yield from (f"    (void){name};" for name in row.names)
        yield f"    return {api.refused};"
        yield "}"
        return
    yield from _found(api, row)
    yield from _guarded(api, row)


def _gated(api: Api, row: Row) -> Iterator[str]:
    """A launch: without a limit it is a few loads and a jump. All that needs room on the stack lies in the other function."""
    index = api.hooked.index(row)
    yield f"static __attribute__((noinline)) {row.result} limited_{row.symbol}_({row.parameters}) {{"
    yield from _found(api, row)
    yield f"    if (HAMI_LIKELY(!hami_compute_limited())) return {_through(row)};"
    yield from _guarded(api, row)
    yield ""
    yield f"HAMI_EXPORT {row.result} {row.symbol}({row.parameters}) {{"
    yield f"    {row.symbol}_fn real_ = ({row.symbol}_fn)atomic_load_explicit(&{api.name}_reals_[{index}], memory_order_acquire);"
    yield f"    if (HAMI_LIKELY(real_ != NULL && hami_gate_open())) return {_through(row)};"
    yield f"    return limited_{row.symbol}_({', '.join(row.names)});"
    yield "}"


def _found(api: Api, row: Row) -> Iterator[str]:
    yield f"    {row.symbol}_fn real_ = {api.name}_real_{row.symbol}();"
    yield f"    if (HAMI_UNLIKELY(real_ == NULL)) return{'' if row.result == 'void' else f' {row.missing}'};"


def _through(row: Row) -> str:
    return f"real_({', '.join(row.names)})"


def _guarded(api: Api, row: Row) -> Iterator[str]:
    """The rest of a function whose `real_` is known: the driver calling itself goes through, everybody else to the body."""
    body = f"{api.name}_hook_{row.base}" if row.hook == "hand" else f"{row.hook}_{row.symbol}_"
    call = f"{body}({', '.join(['real_', *row.names])});"
    if row.result == "void":
        yield "    if (!hami_enter()) {"
        yield f"        {_through(row)};"
        yield "        return;"
        yield "    }"
        yield f"    {call}"
        yield "    hami_leave();"
    else:
        yield f"    if (!hami_enter()) return {_through(row)};"
        yield f"    {row.result} result_ = {call}"
        yield "    hami_leave();"
        yield "    return result_;"
    yield "}"


def _body(api: Api, row: Row) -> Iterator[str]:
    bodies = {"alloc": _alloc, "free": _free, "launch": _launch}
    if row.hook in bodies:
        yield f"static {row.result} {row.hook}_{row.symbol}_({_joined(f'{row.symbol}_fn real_', row)}) {{"
        yield from (f"    {line}" for line in bodies[row.hook](api, row))
        yield "}"
        yield ""


def _alloc(api: Api, row: Row) -> Iterator[str]:
    reserve, keep = "hami_reserve(", f"hami_book_keep(HAMI_BOOK_{row.book.upper()}, {row.key}, &hold_, {row.actual or 'bytes_'}, bytes_)"
    if row.how:
        reserve, keep = f"hami_linear_reserve(&{api.name}_linear, ", f"hami_linear_keep(&{api.name}_linear, {row.key}, {row.actual or 'bytes_'}, &hold_)"
    yield f"uint64_t bytes_ = (uint64_t)({row.size});"
    yield "struct hami_hold hold_;"
    yield f"enum hami_verdict verdict_ = {reserve}{row.device or f'{api.name}_device()'}, bytes_, &hold_);"
    yield f"if (HAMI_UNLIKELY(verdict_ != HAMI_OK)) return {api.name}_refusal(verdict_);"
    yield f"{row.result} result_ = real_({', '.join(row.names)});"
    yield f"if (HAMI_UNLIKELY(result_ != {api.ok})) {{"
    yield "    hami_give_back(&hold_);"
    yield "    return result_;"
    yield "}"
    yield f"(void){keep}; /* the size reserved is an upper bound: keeping it cannot pass the limit */"
    yield "return result_;"


def _free(api: Api, row: Row) -> Iterator[str]:
    take, give, undo = (
        f"hami_book_take(HAMI_BOOK_{row.book.upper()}, {row.key}, &entry_)",
        "hami_give_back(&entry_.hold)",
        f"hami_book_return(HAMI_BOOK_{row.book.upper()}, &entry_)",
    )
    if row.how:
        linear = f"&{api.name}_linear"
        take, give, undo = f"hami_linear_take({linear}, {row.key}, &entry_)", f"hami_linear_freed({linear}, &entry_)", f"hami_linear_return({linear}, &entry_)"
    yield "struct hami_entry entry_;"
    yield f"bool ours_ = {take}; /* before the driver may hand it out again */"
    yield f"{row.result} result_ = real_({', '.join(row.names)});"
    yield "if (!ours_) return result_;"
    yield f"if (HAMI_LIKELY(result_ == {api.ok})) {{"
    yield f"    {give};"
    yield "} else {"
    yield f"    {undo};"
    yield "}"
    yield "return result_;"


def _launch(api: Api, row: Row) -> Iterator[str]:
    device, stream = row.device or f"{api.name}_device()", "stream_"
    yield f"void *{stream} = (void *)({row.stream});"
    yield "struct hami_launch launch_;"
    yield f"enum hami_verdict verdict_ = hami_launch_begin({device}, {row.function}, {row.work}, {api.name}_may_wait({stream}), &launch_);"
    yield f"if (HAMI_UNLIKELY(verdict_ != HAMI_OK)) return {api.name}_refusal(verdict_);"
    yield f"bool timed_ = launch_.sample && hami_sample_before(&{api.name}_events, &launch_, {stream}, {api.name}_context());"
    yield f"{row.result} result_ = real_({', '.join(row.names)});"
    yield f"if (HAMI_UNLIKELY(timed_)) hami_sample_after(&{api.name}_events, &launch_, {stream}, result_ == {api.ok});"
    yield f"if (HAMI_UNLIKELY(result_ != {api.ok})) hami_launch_failed(&launch_);"
    yield "return result_;"


def _tables(api: Api) -> Iterator[str]:
    name, hooked = api.name, api.hooked
    yield "/* The hooks by names that no other library's symbol can take the place of. */"
    for row in hooked:
        yield f'extern __typeof__({row.symbol}) hook_{row.symbol}_ __attribute__((alias("{row.symbol}"), visibility("hidden")));'
    yield ""
    yield f"_Atomic(void *) {name}_reals_[{max(1, len(hooked))}];"
    yield f"_Atomic(void *) {name}_others_[{max(1, len(_others(api)))}];"
    yield ""
    yield f"const struct hami_symbol {name}_symbols_[{max(1, len(hooked))}] = {{"
    yield from (f'    {{"{row.symbol}", (void *)hook_{row.symbol}_, &{name}_reals_[{index}], 0}},' for index, row in enumerate(hooked))
    yield "};" if hooked else "    {NULL, NULL, NULL, 0},\n};"
    yield ""
    yield f"static const char *const known_[{len(api.rows)}] = {{"
    yield from (f'    "{row.symbol}",' for row in api.rows)
    yield "};"
    yield ""
    if api.fallbacks:
        quoted = "".join(f'"{soname}", ' for soname in api.fallbacks)
        yield f"static const char *const fallbacks_[] = {{{quoted}NULL}};"
        yield ""
    yield f"const struct hami_library hami_library_{name} = {{"
    yield f'    .api = "{name}",'
    yield f'    .soname = "{api.library}",'
    yield f'    .prefix = "{api.prefix}",'
    yield f"    .symbols = {name}_symbols_,"
    yield f"    .count = {len(hooked)},"
    yield "    .known = known_,"
    yield f"    .known_count = {len(api.rows)},"
    if api.fallbacks:
        yield "    .fallbacks = fallbacks_,"
    yield "};"
