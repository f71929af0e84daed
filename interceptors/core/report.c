/* SPDX-License-Identifier: Apache-2.0 */
/*
 * report.c: what the library has to say to a human, and the write points of the tests. One line on stderr per subject, in one
 * write, without stdio's locks (the program may be inside them), without blocking on a full pipe, and without letting
 * a broken pipe end the program.
 */
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "internal.h"

#define SUBJECTS 64
#define LINE 640

static _Atomic uint64_t said[SUBJECTS];

/* True for whoever is the first in this process to speak of `what`. When the table is full, nobody is. */
static bool first_to_say(const char *what) {
    uint64_t subject = hami_fnv1a(HAMI_FNV_START, what, strlen(what)) | 1;
    for (size_t i = 0; i < SUBJECTS; i++) {
        uint64_t free_place = 0;
        if (atomic_compare_exchange_strong(&said[i], &free_place, subject)) {
            return true;
        }
        if (free_place == subject) {
            return false;
        }
    }
    return false;
}

/* A write to a pipe that nobody reads raises SIGPIPE, which would end the program: it is held back and taken off again. */
static void write_unharmed(const char *line, size_t length) {
    struct pollfd ready = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&ready, 1, 0) != 1 || (ready.revents & POLLOUT) == 0) {
        return;
    }
    sigset_t pipe, before, pending;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    sigpending(&pending);
    bool was_pending = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe, &before);
    if (write(STDERR_FILENO, line, length) < 0 && errno == EPIPE && !was_pending) {
        const struct timespec at_once = {0, 0};
        while (sigtimedwait(&pipe, NULL, &at_once) < 0 && errno == EINTR) {
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void hami_say_once(const char *what, const char *format, ...) {
    if (!first_to_say(what)) {
        return;
    }
    HAMI_KEEP_ERRNO;
    static const char prefix[] = "hami: ";
    char line[LINE];
    memcpy(line, prefix, sizeof prefix - 1);
    va_list arguments;
    va_start(arguments, format);
    int wanted = vsnprintf(line + sizeof prefix - 1, sizeof line - sizeof prefix, format, arguments);
    va_end(arguments);
    if (wanted < 0) {
        return;
    }
    size_t length = strlen(line);
    line[length] = '\n';
    write_unharmed(line, length + 1);
}

#ifdef HAMI_TESTING
/* Where to die, and at which visit (1: the first). Set by the environment on first use, or by the test itself. */
HAMI_EXPORT _Atomic int hami_test_die_at = -1;
HAMI_EXPORT _Atomic int hami_test_die_visit = 1;
HAMI_EXPORT _Atomic int hami_test_die_signal = SIGKILL; /* SIGSTOP: stay there, alive */

void hami_write_point(int number) {
    if (atomic_load(&hami_test_die_at) < 0) {
        const char *point = getenv("HAMI_TEST_DIE_AT");
        atomic_store(&hami_test_die_at, point != NULL ? atoi(point) : 0);
    }
    if (number == atomic_load(&hami_test_die_at) && atomic_fetch_sub(&hami_test_die_visit, 1) == 1) {
        kill(getpid(), atomic_load(&hami_test_die_signal));
    }
}
#endif
