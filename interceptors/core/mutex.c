/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mutex.c: the one lock of the books: robust, shared among the container's processes, never held over a driver call or a
 * system call. Whoever finds its owner dead counts the books anew before anybody else may look.
 */
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "internal.h"

#define PATIENCE_S 10 /* it is held for some tens of nanoseconds; longer means that its owner is stopped, or that it was scribbled over */
#define SLICE_MS 20    /* a wake-up can be lost: nobody sleeps longer without looking */

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(((struct hami_state_file *)0)->mutex), "a mutex has room in the state file");

static pthread_mutex_t *mutex_of(const struct hami_state_file *state) {
    return (pthread_mutex_t *)(uintptr_t)state->mutex;
}

static int make_mutex(pthread_mutex_t *mutex) {
    pthread_mutexattr_t attributes;
    int error = pthread_mutexattr_init(&attributes);
    if (error != 0) {
        return error;
    }
    error = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (error == 0) {
        error = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    }
    if (error == 0) {
        error = pthread_mutex_init(mutex, &attributes);
    }
    pthread_mutexattr_destroy(&attributes);
    return error;
}

int hami_books_initialise(struct hami_state_file *state) {
    memset(state->mutex, 0, sizeof state->mutex);
    return make_mutex(mutex_of(state));
}

/*
 * Whether the mutex still is of our kind. The C library asserts (and so ends the program) or waits for ever on some others,
 * and any process of the container may write here.
 */
#ifdef __GLIBC__
#define ROBUST_SHARED_NORMAL (16 | 128)
#define ELISION (256 | 512) /* a hint, without meaning here */
bool hami_books_sound(const struct hami_state_file *state) {
    return (__atomic_load_n(&mutex_of(state)->__data.__kind, __ATOMIC_RELAXED) & ~ELISION) == ROBUST_SHARED_NORMAL;
}
#else
bool hami_books_sound(const struct hami_state_file *state) {
    return state != NULL;
}
#endif

/*
 * Wakes itself up now and then. A thread that was woken and then killed before it had the mutex takes the wake-up with it if a
 * third was quicker: neither the kernel's robust list nor the C library passes it on, and who sleeps then sleeps until the
 * next contention, which may never come.
 */
static int wait_for(pthread_mutex_t *mutex) {
    int error = ETIMEDOUT;
    for (int slice = 0; slice < PATIENCE_S * 1000 / SLICE_MS && error == ETIMEDOUT; slice++) {
        struct timespec until = {0, 0};
        clock_gettime(CLOCK_REALTIME, &until); /* the only clock that glibc 2.17 knows here */
        until.tv_nsec += SLICE_MS * 1000000L;
        if (until.tv_nsec >= 1000000000L) {
            until.tv_nsec -= 1000000000L;
            until.tv_sec++;
        }
        error = pthread_mutex_timedlock(mutex, &until);
    }
    return error == ETIMEDOUT ? EBUSY : error;
}

static bool repair(struct hami_state_file *state) {
    hami_write_point(HAMI_POINT_RECOUNT_BEGUN);
    hami_recount(state);
    if (pthread_mutex_consistent(mutex_of(state)) != 0) {
        pthread_mutex_unlock(mutex_of(state)); /* not repairable, and everybody is told so at once instead of waiting */
        return false;
    }
    hami_write_point(HAMI_POINT_RECOUNT_CONSISTENT);
    return true;
}

bool hami_books_lock(struct hami_state_file *state) {
    const char *trouble = "was written over";
    if (HAMI_LIKELY(hami_books_sound(state))) {
        pthread_mutex_t *mutex = mutex_of(state);
        int error = pthread_mutex_trylock(mutex);
        if (HAMI_UNLIKELY(error == EBUSY)) {
            error = wait_for(mutex);
        }
        if (HAMI_LIKELY(error == 0) || (error == EOWNERDEAD && repair(state))) {
            return true;
        }
        trouble = error == EBUSY ? "has been held for 10 s by a process that is stopped, or that wrote over it" : "cannot be locked";
    }
    hami_say_once("books", "the lock of the container's state file %s: its devices are refused", trouble);
    return false;
}

void hami_books_unlock(struct hami_state_file *state) {
    pthread_mutex_unlock(mutex_of(state));
}
