/* SPDX-License-Identifier: Apache-2.0 */
/* What no table can say of the acme driver: its one device, how it takes memory, and the two hooks written by hand. */
#include "acme_hooks.h"

const struct hami_linear acme_linear = {.granule = 4096, .small_below = 0, .chunk = 0};

int acme_device(void) {
    char uuid[64];
    acmeUuid_fn ask = acme_real_acmeUuid();
    if (ask == NULL || ask(uuid, sizeof uuid) != ACME_OK) return HAMI_NO_DEVICE;
    return hami_device_find("uuid", uuid);
}

bool acme_may_wait(void *stream) {
    (void)stream; /* this driver has neither stream capture nor callbacks */
    return true;
}

uint64_t acme_context(void) {
    return 1;
}

/* This driver has no events: a launch is charged at its expected cost, and nothing is learned. */
static bool no_event(void **event) {
    *event = NULL;
    return false;
}

static bool never_recorded(void *event, void *stream) {
    (void)event;
    (void)stream;
    return false;
}

static bool never_done(void *event) {
    (void)event;
    return false;
}

static bool never_timed(void *from, void *to, uint64_t *ns) {
    (void)from;
    (void)to;
    *ns = 0;
    return false;
}

static void nothing_to_destroy(void *event) {
    (void)event;
}

const struct hami_event_calls acme_events = {no_event, never_recorded, never_done, never_timed, nothing_to_destroy};

acmeResult acme_hook_acmeMemory(acmeMemory_fn real, size_t *free_bytes, size_t *total_bytes) {
    acmeResult result = real(free_bytes, total_bytes);
    if (result != ACME_OK) return result;
    struct hami_memory_view view = hami_memory_view(acme_device());
    if (!view.limited) return result;
    *free_bytes = view.free;
    *total_bytes = view.total;
    return result;
}

/* The driver first, then our hook for what it answered: a name that the driver does not know stays unknown. */
acmeResult acme_hook_acmeFunction(acmeFunction_fn real, const char *name, void **address) {
    acmeResult result = real(name, address);
    if (result == ACME_OK) *address = hami_hook_for(&hami_library_acme, name, *address);
    return result;
}
