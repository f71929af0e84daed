# SPDX-License-Identifier: Apache-2.0
"""C from a table: a driver that is not there. It exports every row of the table, counts each call, and answers "ok".

A process that starts with HAMI_FAKE_FAULTS in its environment can make any call fail: while the variable names a symbol, as in
`cuMemCreate=2 cuMemMap=1`, that symbol answers this code and does nothing. Tests set and clear it as they go.

A launch with `fake = "launch"` is answered by `<api>_fake_launch(stream)` of the hand-written C: work that takes time, and no more.
A row with `fake = "hand"` is answered by `fake_<symbol>` of the hand-written C in `fakes/<api>/`. The table of rows lets that C
serve the driver's own resolver; the addresses there are the fake's own, whatever stands before it.
"""

from __future__ import annotations

from collections.abc import Iterator

from hami_interceptor.table import Api, Row


def fake_header(api: Api) -> str:
    """`<api>_fake.h`: what the generated and the hand-written half of a fake driver know of each other."""
    return "\n".join(_header_lines(api)) + "\n"


def fake(api: Api) -> str:
    """`<api>_fake.c`: the generated half of a fake driver."""
    return "\n".join(_lines(api)) + "\n"


def _by_hand(row: Row) -> bool:
    return row.fake == "hand"


def _header_lines(api: Api) -> Iterator[str]:
    name, guard = api.name, f"{api.name.upper()}_FAKE_H"
    yield "/* SPDX-License-Identifier: Apache-2.0 */"
    yield f"/* A fake {api.library}: what its generated and its hand-written half know of each other; made by hami_interceptor from spec/{api.path.name}. */"
    yield f"#ifndef {guard}"
    yield f"#define {guard}"
    yield ""
    yield "#include <stddef.h>"
    yield "#include <stdint.h>"
    yield ""
    yield f'#include "{api.header}"'
    yield ""
    yield '#define HAMI_FAKE_EXPORT __attribute__((visibility("default")))'
    yield ""
    yield f"struct {name}_fake_row {{"
    yield "    const char *name;"
    yield "    void *address; /* the fake's own, even when an interceptor stands before it */"
    yield "    int since;     /* driver versions, 0: not stated */"
    yield "    int until;"
    yield "};"
    yield f"extern const struct {name}_fake_row {name}_fake_rows[]; /* sorted by name */"
    yield f"extern const size_t {name}_fake_count;"
    yield ""
    yield f"extern _Thread_local const char *{name}_fake_called; /* the symbol that this thread called last: tells twins apart */"
    yield ""
    yield "/* Exported, for tests: how often a symbol was called in this process; an unknown one: never. */"
    yield f"HAMI_FAKE_EXPORT unsigned long {name}_fake_calls(const char *symbol);"
    yield ""
    if any(row.fake == "launch" for row in api.rows):
        yield f"{api.result} {name}_fake_launch(void *stream);"
    for row in api.rows:
        if _by_hand(row) and row.base == row.symbol:
            yield f"{row.result} fake_{row.symbol}({row.parameters});"
    yield ""
    yield "#endif"


def _lines(api: Api) -> Iterator[str]:
    name = api.name
    yield "/* SPDX-License-Identifier: Apache-2.0 */"
    yield f"/* A fake {api.library}, the generated half; made by hami_interceptor from spec/{api.path.name}; change that instead. */"
    yield "#include <stdatomic.h>"
    yield "#include <stdbool.h>"
    yield "#include <stdlib.h>"
    yield "#include <string.h>"
    yield ""
    yield f'#include "{name}_fake.h"'
    yield ""
    yield f"static _Atomic unsigned long calls_[{len(api.rows)}];"
    yield f"_Thread_local const char *{name}_fake_called;"
    yield from _faults()
    for index, row in enumerate(api.rows):
        yield ""
        yield from _function(api, row, index)
    yield ""
    for row in api.rows:
        yield f'extern __typeof__({row.symbol}) own_{row.symbol}_ __attribute__((alias("{row.symbol}"), visibility("hidden")));'
    yield ""
    yield f"const struct {name}_fake_row {name}_fake_rows[] = {{"
    yield from (f'    {{"{row.symbol}", (void *)own_{row.symbol}_, {row.since}, {row.until}}},' for row in api.rows)
    yield "};"
    yield f"const size_t {name}_fake_count = {len(api.rows)};"
    yield ""
    yield f"unsigned long {name}_fake_calls(const char *symbol) {{"
    yield f"    for (size_t i = 0; i < {name}_fake_count; i++)"
    yield f"        if (strcmp({name}_fake_rows[i].name, symbol) == 0) return atomic_load(&calls_[i]);"
    yield "    return 0;"
    yield "}"


def _faults() -> Iterator[str]:
    """Whether there are any at all is asked once: a driver without them must answer as fast as before."""
    yield "static _Atomic int faults_; /* 0: not asked yet, 1: none in this process, 2: perhaps */"
    yield "static __attribute__((noinline)) bool named_fault_(const char *symbol, int *code) {"
    yield '    const char *at = getenv("HAMI_FAKE_FAULTS");'
    yield "    atomic_store_explicit(&faults_, at == NULL && atomic_load(&faults_) != 2 ? 1 : 2, memory_order_relaxed);"
    yield "    size_t length = strlen(symbol);"
    yield "    while (at != NULL && *at != '\\0') {"
    yield '        at += strspn(at, " ");'
    yield "        if (strncmp(at, symbol, length) == 0 && at[length] == '=') {"
    yield "            *code = atoi(at + length + 1);"
    yield "            return true;"
    yield "        }"
    yield '        at += strcspn(at, " ");'
    yield "    }"
    yield "    return false;"
    yield "}"
    yield "static inline bool faulty_(const char *symbol, int *code) {"
    yield "    return atomic_load_explicit(&faults_, memory_order_relaxed) != 1 && named_fault_(symbol, code);"
    yield "}"


def _function(api: Api, row: Row, index: int) -> Iterator[str]:
    yield f"HAMI_FAKE_EXPORT {row.result} {row.symbol}({row.parameters}) {{"
    yield f"    atomic_fetch_add_explicit(&calls_[{index}], 1, memory_order_relaxed);"
    yield f'    {api.name}_fake_called = "{row.symbol}";'
    if row.result == api.result:
        yield "    int fault_;"
        yield f'    if (__builtin_expect(faulty_("{row.symbol}", &fault_), 0)) return ({row.result})fault_;'
    if _by_hand(row):
        yield f"    {'' if row.result == 'void' else 'return '}fake_{row.base}({', '.join(row.names)});"
    elif row.fake == "launch":
        yield from (f"    (void){name};" for name in row.names)
        yield f"    return {api.name}_fake_launch((void *)({row.stream}));"
    else:
        yield from (f"    (void){name};" for name in row.names)
        yield from _answer(api, row)
    yield "}"


def _answer(api: Api, row: Row) -> Iterator[str]:
    if row.result == api.result:
        yield f"    return {api.ok};"
    elif row.result != "void":
        yield f"    static {row.result} nothing;"
        yield "    return nothing;"
