/* SPDX-License-Identifier: Apache-2.0 */
/* A made-up driver for a made-up device of 1 GiB: it counts bytes, so that a test can see what really reached it. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "acme_fake.h"

#define CAPACITY ((size_t)1 << 30)

static _Atomic size_t used;
static _Atomic uint64_t next = 0x1000000;

acmeResult fake_acmeMalloc(acmePointer *out, size_t bytes) {
    if (atomic_fetch_add(&used, bytes) + bytes > CAPACITY) {
        atomic_fetch_sub(&used, bytes);
        return ACME_OUT_OF_MEMORY;
    }
    *out = atomic_fetch_add(&next, (bytes + 4095) / 4096 * 4096);
    return ACME_OK;
}

acmeResult fake_acmeFree(acmePointer pointer) {
    return pointer % 4096 == 0 ? ACME_OK : ACME_NOT_FOUND;
}

acmeResult fake_acmeMemory(size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = CAPACITY - atomic_load(&used);
    *total_bytes = CAPACITY;
    return ACME_OK;
}

acmeResult fake_acmeUuid(char *text, size_t length) {
    snprintf(text, length, "ACME-0000-0001");
    return ACME_OK;
}

acmeResult fake_acmeFunction(const char *name, void **address) {
    for (size_t i = 0; i < acme_fake_count; i++) {
        if (strcmp(acme_fake_rows[i].name, name) != 0) continue;
        *address = acme_fake_rows[i].address;
        return ACME_OK;
    }
    return ACME_NOT_FOUND;
}
