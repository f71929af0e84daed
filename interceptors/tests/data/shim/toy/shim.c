/* SPDX-License-Identifier: Apache-2.0 */
/* The toy front end's hand-written half: one device, and hooks so plain that a test can say what must come out. */
#include <string.h>

#include "toy_hooks.h"

const struct hami_linear toy_linear = {.granule = 4096, .small_below = 0, .chunk = 0};

static bool no_create(void **event) {
    *event = NULL;
    return false;
}

static bool no_record(void *event, void *stream) {
    (void)event;
    (void)stream;
    return false;
}

static bool no_done(void *event) {
    (void)event;
    return false;
}

static bool no_elapsed(void *from, void *to, uint64_t *ns) {
    (void)from;
    (void)to;
    *ns = 0;
    return false;
}

static void no_destroy(void *event) {
    (void)event;
}

const struct hami_event_calls toy_events = {no_create, no_record, no_done, no_elapsed, no_destroy};

int toy_device(void) {
    return hami_device_find("uuid", "TOY-0");
}

bool toy_may_wait(void *stream) {
    return stream != (void *)1; /* the stream that is being captured */
}

uint64_t toy_context(void) {
    return 7;
}

uint64_t toy_array_taken(toyPointer array) {
    return array % 4096;
}

toyStream toy_stream_of_thread(toyStream stream) {
    return stream == NULL ? (toyStream)2 : stream;
}

toyResult toy_hook_toyInfo(toyInfo_fn real, size_t *free, size_t *total) {
    toyResult result = real(free, total);
    if (result != TOY_OK) return result;
    struct hami_memory_view view = hami_memory_view(toy_device());
    *free = view.free;
    *total = view.total;
    return TOY_OK;
}

const char *toy_hook_toyName(toyName_fn real, int device, const char *(*name)(int)) {
    return name != NULL ? name(device) : real(device, name);
}

void toy_hook_toyForget(toyForget_fn real, toyPointer pointer) {
    real(pointer);
}

toyResult toy_hook_toyReset(toyReset_fn real) {
    toySync_fn sync = toy_real_toySync();
    return sync == NULL ? TOY_MISSING : real();
}

toyResult toy_hook_toyGetProcAddress(toyGetProcAddress_fn real, const char *symbol, void **address) {
    toyResult result = real(symbol, address);
    if (result == TOY_OK) *address = hami_hook_for(&hami_library_toy, symbol, *address);
    return result;
}
