/* SPDX-License-Identifier: Apache-2.0 */
/*
 * race.c: threads keep, find, take and sweep in the same book and share the same chunks, launch on the same device, and one
 * of them forks: the child has empty books. At the end nothing may be held.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "internal.h"

void stub_begin(uint32_t devices, uint32_t milli, uint32_t burst_us);
uint64_t stub_held(void);

static const struct hami_linear how = {2 << 20, 1 << 20, 2 << 20};
static int rounds;

static bool mine(const struct hami_entry *entry, void *context) {
    return entry->key >> 40 == (uint64_t)(uintptr_t)context;
}

static void one(uint64_t pointer, uint64_t bytes) {
    struct hami_hold hold;
    struct hami_entry entry;
    if (hami_linear_reserve(&how, 0, bytes, &hold) != HAMI_OK || hami_linear_keep(&how, pointer, bytes, &hold) != HAMI_OK) {
        abort();
    }
    if (!hami_book_find(HAMI_BOOK_POINTER, pointer, &entry)) {
        abort();
    }
}

/* Events that are done at once, each an allocation of its own, so that a sanitizer sees one that is used after it went. */
static bool create(void **event) {
    *event = malloc(8);
    return *event != NULL;
}
static bool record(void *event, void *stream) {
    *(volatile char *)event = 1;
    return stream != NULL;
}
static bool done(void *event) {
    return *(volatile char *)event == 1;
}
static bool elapsed(void *from, void *to, uint64_t *ns) {
    *ns = 1000;
    return from != to;
}
static const struct hami_event_calls events = {create, record, done, elapsed, free};

static void timed_launch(uint64_t function, uint64_t context) {
    struct hami_launch launch;
    if (hami_launch_begin(0, function, 1, true, &launch) != HAMI_OK) {
        abort();
    }
    void *stream = (void *)(uintptr_t)(8 + function % 3);
    if (launch.sample && hami_sample_before(&events, &launch, stream, context)) {
        hami_sample_after(&events, &launch, stream, function % 5 != 0);
    }
}

static void *run(void *argument) {
    uint64_t number = (uint64_t)(uintptr_t)argument;
    for (int i = 0; i < rounds; i++) {
        uint64_t own = number * 512 + (uint64_t)(i % 8) * 8192; /* chunks that all threads share */
        one(own, 512);
        one(number << 40 | (uint64_t)i << 22, 3 << 20);
        struct hami_entry entry;
        if (!hami_linear_take(&how, own, &entry)) {
            abort();
        }
        if (i % 3 == 0) {
            hami_linear_return(&how, &entry);
            hami_linear_take(&how, own, &entry);
        }
        hami_linear_freed(&how, &entry);
        struct hami_launch launch;
        if (hami_launch_begin(0, number & 1, 1, false, &launch) != HAMI_OK) {
            abort();
        }
        if (launch.sample) {
            hami_launch_observed(0, launch.key, launch.charged_ns, 1000);
        }
        timed_launch((uint64_t)i / 8, number & 1);
        if (number == 1 && i % 100 == 99) {
            hami_sample_forget(1); /* while another thread still launches there */
        }
        if (i % 500 == 499) {
            hami_linear_sweep(&how, mine, argument);
        }
    }
    hami_linear_sweep(&how, mine, argument);
    return NULL;
}

static int child(void) {
    struct hami_entry entry;
    hami_enter();
    hami_leave();
    return hami_book_find(HAMI_BOOK_POINTER, 77, &entry) ? 1 : 0;
}

int main(int count, char **arguments) {
    int threads = count > 1 ? atoi(arguments[1]) : 4;
    rounds = count > 2 ? atoi(arguments[2]) : 1000;
    stub_begin(1, 50000, 0);
    one(77, 512);
    pthread_t thread[64];
    for (int i = 0; i < threads; i++) {
        pthread_create(&thread[i], NULL, run, (void *)(uintptr_t)(i + 1));
    }
    for (int i = 0; i < 3; i++) {
        pid_t forked = fork();
        if (forked == 0) {
            _exit(child());
        }
        int status = 0;
        waitpid(forked, &status, 0);
        if (status != 0) {
            printf("the child ended with %d\n", status);
            return 1;
        }
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(thread[i], NULL);
    }
    struct hami_entry entry;
    hami_linear_take(&how, 77, &entry);
    hami_linear_freed(&how, &entry);
    printf("held %llu\n", (unsigned long long)stub_held());
    return 0;
}
