/* SPDX-License-Identifier: Apache-2.0 */
/* bench.c: what the core's own part of a hook costs, over the stub of the rest of the core. Prints "<what> <ns>" lines. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "internal.h"

void stub_begin(uint32_t devices, uint32_t milli, uint32_t burst_us);

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static void pair(uint64_t live) {
    struct hami_hold hold;
    struct hami_entry entry;
    for (uint64_t i = 0; i < live; i++) {
        hold = (struct hami_hold){.device = 0, .bytes = 0};
        hami_book_keep(HAMI_BOOK_POINTER, UINT64_C(0x7f0000000000) + i * 512, &hold, 0, 0);
    }
    double best = 1e9;
    for (int round = 0; round < 20; round++) {
        double begin = now();
        for (uint64_t i = 0; i < 50000; i++) {
            hold = (struct hami_hold){.device = 0, .bytes = 0};
            uint64_t key = UINT64_C(0x6f0000000000) + ((i * 2654435761u) % 1000000) * 512;
            hami_book_keep(HAMI_BOOK_POINTER, key, &hold, 0, 0);
            hami_book_take(HAMI_BOOK_POINTER, key, &entry);
        }
        double each = (now() - begin) / 50000;
        best = each < best ? each : best;
    }
    printf("pair_%llu %.1f\n", (unsigned long long)live, best);
}

int main(void) {
    stub_begin(1, 50000, 0);
    pair(0);
    pair(1000);
    pair(100000);
    double best = 1e9;
    volatile bool limited = false;
    for (int round = 0; round < 20; round++) {
        double begin = now();
        for (int i = 0; i < 100000; i++) {
            limited = hami_compute_limited();
        }
        double each = (now() - begin) / 100000;
        best = each < best ? each : best;
    }
    printf("gate %.1f\n", best + 0 * limited);
    struct hami_launch launch;
    for (int i = 0; i < 100; i++) {
        hami_launch_begin(0, 42, 64, true, &launch);
        hami_launch_observed(0, launch.key, launch.charged_ns, 1);
    }
    best = 1e9;
    for (int round = 0; round < 20; round++) {
        double begin = now();
        for (int i = 0; i < 100000; i++) {
            hami_launch_begin(0, 42, 64, true, &launch);
        }
        double each = (now() - begin) / 100000;
        best = each < best ? each : best;
    }
    printf("launch %.1f charged %llu\n", best, (unsigned long long)launch.charged_ns);
    best = 1e9;
    for (int round = 0; round < 20; round++) {
        double begin = now();
        for (int i = 0; i < 100000; i++) {
            hami_now_ns();
        }
        double each = (now() - begin) / 100000;
        best = each < best ? each : best;
    }
    printf("clock %.1f\n", best);
    return 0;
}
