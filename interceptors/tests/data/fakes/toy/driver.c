/* SPDX-License-Identifier: Apache-2.0 */
/* The toy driver's hand-written half: addresses that never repeat, and a resolver that knows every row. */
#include <stdatomic.h>
#include <string.h>

#include "toy_fake.h"

static _Atomic uint64_t next = 0x100000;

toyResult fake_toyAlloc(toyPointer *out, size_t bytes) {
    if (bytes > ((size_t)1 << 40)) return TOY_OUT_OF_MEMORY;
    *out = atomic_fetch_add(&next, (bytes + 4095) & ~(size_t)4095);
    return TOY_OK;
}

toyResult fake_toyFree(toyPointer pointer) {
    return pointer % 4096 == 0 ? TOY_OK : TOY_MISSING;
}

toyResult fake_toyInfo(size_t *free, size_t *total) {
    *free = (size_t)3 << 30;
    *total = (size_t)4 << 30;
    return TOY_OK;
}

toyResult fake_toyGetProcAddress(const char *symbol, void **address) {
    for (size_t i = 0; i < toy_fake_count; i++) {
        if (strcmp(toy_fake_rows[i].name, symbol) != 0) continue;
        *address = toy_fake_rows[i].address;
        return TOY_OK;
    }
    return TOY_MISSING;
}
