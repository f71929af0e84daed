/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.c: the one clock of the core, CLOCK_MONOTONIC (the same for all containers of a host), and sleeping by it. Tests
 * put their own in its place.
 */
#include <time.h>

#include "internal.h"

#define NS_PER_SECOND UINT64_C(1000000000)

#ifdef HAMI_TESTING
HAMI_EXPORT uint64_t (*hami_test_clock)(void) = NULL;
HAMI_EXPORT void (*hami_test_sleep)(uint64_t until_ns) = NULL;
#endif

uint64_t hami_now_ns(void) {
#ifdef HAMI_TESTING
    if (hami_test_clock != NULL) {
        return hami_test_clock();
    }
#endif
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now); /* vDSO; cannot fail for this clock, and leaves errno alone then */
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

void hami_sleep_until(uint64_t until_ns) {
#ifdef HAMI_TESTING
    if (hami_test_sleep != NULL) {
        hami_test_sleep(until_ns);
        return;
    }
#endif
    const struct timespec until = {.tv_sec = (time_t)(until_ns / NS_PER_SECOND), .tv_nsec = (long)(until_ns % NS_PER_SECOND)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL); /* answers its error, does not touch errno */
}
