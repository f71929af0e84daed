/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A core that only writes down what the generated wrappers ask of it, in order, and answers as the test has set it: so that a
 * test of the generator fails for the generator's reasons alone.
 */
#include <dlfcn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hami_core.h"

static char record[4096];
static int kept;
static int verdict, inside, missing, ours = 1, limited, sample;

HAMI_EXPORT const char *recorded(void) {
    return record;
}

HAMI_EXPORT void keep(int now) {
    kept = now;
}

HAMI_EXPORT void set(int new_verdict, int new_inside, int new_missing, int new_ours, int new_limited, int new_sample) {
    verdict = new_verdict, inside = new_inside, missing = new_missing, ours = new_ours, limited = new_limited, sample = new_sample;
    record[0] = '\0';
}

static void __attribute__((format(printf, 1, 2))) note(const char *format, ...) {
    size_t length = strlen(record);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(record + length, sizeof record - length, format, arguments);
    va_end(arguments);
}

static void *driver(void) {
    return dlopen(getenv("TOY_DRIVER"), RTLD_NOW | RTLD_LOCAL);
}

void *hami_real(const struct hami_library *library, const struct hami_symbol *symbol) {
    (void)library;
    if (missing) return NULL;
    void *address = dlsym(driver(), symbol->name);
    note("real(%s) ", symbol->name);
    if (kept) atomic_store(symbol->real, address); /* else each call writes it down */
    return address;
}

void *hami_driver_symbol(const struct hami_library *library, const char *name) {
    (void)library;
    note("driver(%s) ", name);
    return missing ? NULL : dlsym(driver(), name);
}

void *hami_hook_for(const struct hami_library *library, const char *name, void *address) {
    for (size_t i = 0; i < library->count; i++)
        if (strcmp(library->symbols[i].name, name) == 0) return library->symbols[i].hook;
    note("unknown(%s) ", name);
    return address;
}

bool hami_enter(void) {
    if (!inside) note("enter ");
    return !inside;
}

void hami_leave(void) {
    note("leave ");
}

int hami_device_find(const char *kind, const char *value) {
    note("find(%s=%s) ", kind, value);
    return 3;
}

struct hami_memory_view hami_memory_view(int device) {
    return (struct hami_memory_view){.total = 100 + (uint64_t)device, .used = 40, .free = 60, .limited = true};
}

static enum hami_verdict reserved(const char *how, int device, uint64_t bytes, struct hami_hold *hold) {
    note("%s(%d, %lu)=%d ", how, device, (unsigned long)bytes, verdict);
    *hold = (struct hami_hold){.device = device, .bytes = bytes, .flags = 0};
    return (enum hami_verdict)verdict;
}

enum hami_verdict hami_reserve(int device, uint64_t bytes, struct hami_hold *hold) {
    return reserved("reserve", device, bytes, hold);
}

enum hami_verdict hami_linear_reserve(const struct hami_linear *how, int device, uint64_t bytes, struct hami_hold *hold) {
    note("granule %lu: ", (unsigned long)how->granule);
    return reserved("linear_reserve", device, bytes, hold);
}

void hami_give_back(struct hami_hold *hold) {
    note("give_back(%lu) ", (unsigned long)hold->bytes);
}

enum hami_verdict hami_book_keep(enum hami_book book, uint64_t key, struct hami_hold *hold, uint64_t actual, uint64_t tag) {
    note("keep(%d, %s, %lu of %lu, tag %lu) ", book, key ? "key" : "0", (unsigned long)actual, (unsigned long)hold->bytes, (unsigned long)tag);
    return HAMI_OK;
}

enum hami_verdict hami_linear_keep(const struct hami_linear *how, uint64_t pointer, uint64_t bytes, struct hami_hold *hold) {
    (void)how;
    note("linear_keep(%s, %lu of %lu) ", pointer ? "key" : "0", (unsigned long)bytes, (unsigned long)hold->bytes);
    return HAMI_OK;
}

static bool taken(const char *how, uint64_t key, struct hami_entry *entry) {
    note("%s(%lu)=%d ", how, (unsigned long)key, ours);
    *entry = (struct hami_entry){.key = key, .hold = {.device = 3, .bytes = 77, .flags = 0}, .tag = 0, .references = 1};
    return ours;
}

bool hami_book_take(enum hami_book book, uint64_t key, struct hami_entry *entry) {
    note("%d:", book);
    return taken("take", key, entry);
}

void hami_book_return(enum hami_book book, const struct hami_entry *entry) {
    note("%d:return(%lu) ", book, (unsigned long)entry->key);
}

bool hami_linear_take(const struct hami_linear *how, uint64_t pointer, struct hami_entry *entry) {
    (void)how;
    return taken("linear_take", pointer, entry);
}

void hami_linear_freed(const struct hami_linear *how, struct hami_entry *entry) {
    (void)how;
    note("linear_freed(%lu) ", (unsigned long)entry->key);
}

void hami_linear_return(const struct hami_linear *how, const struct hami_entry *entry) {
    (void)how;
    note("linear_return(%lu) ", (unsigned long)entry->key);
}

bool hami_compute_limited(void) {
    return limited;
}

enum hami_verdict hami_launch_begin(int device, uint64_t function, uint64_t work, bool may_wait, struct hami_launch *launch) {
    note("begin(%d, %lu, %lu, %s)=%d ", device, (unsigned long)function, (unsigned long)work, may_wait ? "wait" : "no wait", verdict);
    *launch = (struct hami_launch){.device = device, .key = function, .charged_ns = 1, .sample = sample};
    return (enum hami_verdict)verdict;
}

void hami_launch_failed(const struct hami_launch *launch) {
    note("failed(%lu) ", (unsigned long)launch->key);
}

bool hami_sample_before(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, uint64_t context) {
    note("before(%s, %lu, stream %lu, context %lu) ", calls->create ? "events" : "none", (unsigned long)launch->key, (unsigned long)(uintptr_t)stream, (unsigned long)context);
    return true;
}

void hami_sample_after(const struct hami_event_calls *calls, struct hami_launch *launch, void *stream, bool launched) {
    (void)calls;
    (void)launch;
    (void)stream;
    note("after(%s) ", launched ? "launched" : "refused");
}
