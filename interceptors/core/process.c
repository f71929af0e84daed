/* SPDX-License-Identifier: Apache-2.0 */
/*
 * process.c: one life of a process: how a forked child is noticed, locks that a child finds open, and the per-thread mark
 * that says "already inside a hook".
 *
 * fork, clone and posix_spawn are noticed by a page that the kernel wipes in every child with a memory of its own
 * (MADV_WIPEONFORK, Linux 4.14), so that no call has to ask for the process's id. An older kernel gets a fork handler. A
 * child that shares its parent's memory (vfork) is, to the core, its parent; it may only call exec.
 */
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define BORN_PREPARING 1
#define BORN_READY 2
#define CHILD_RESETS 16

_Atomic(struct hami_process *) hami_process_page;

static struct hami_process unwiped; /* for a process to which even one page is denied */
static _Atomic uint32_t lives;      /* inherited by a child, and so its parent's number there */
static _Atomic(void (*)(void)) child_resets[CHILD_RESETS];
static HAMI_TLS int inside;

#ifdef HAMI_TESTING
HAMI_EXPORT bool hami_test_no_wipe = false; /* play an old kernel */
#else
#define hami_test_no_wipe false
#endif

static void wipe_in_child(void) {
    struct hami_process *process = atomic_load(&hami_process_page);
    unsigned char *byte = (unsigned char *)process;
    for (size_t i = 0; process != NULL && i < sizeof *process; i++) {
        ((volatile unsigned char *)byte)[i] = 0;
    }
}

static void make_page(void) {
    struct hami_process *page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool mapped = page != MAP_FAILED;
    bool wiped = mapped && !hami_test_no_wipe && madvise(page, sizeof *page, MADV_WIPEONFORK) == 0;
    struct hami_process *none = NULL;
    if (!atomic_compare_exchange_strong(&hami_process_page, &none, mapped ? page : &unwiped)) {
        if (mapped) {
            munmap(page, sizeof *page);
        }
        return;
    }
    if (!wiped) {
        pthread_atfork(NULL, NULL, wipe_in_child);
    }
}

static void prepare(struct hami_process *process) {
    uint32_t number = atomic_fetch_add(&lives, 1) + 1;
    if (number > 1) {
        for (size_t i = 0; i < CHILD_RESETS; i++) {
            void (*reset)(void) = atomic_load(&child_resets[i]);
            if (reset != NULL) {
                reset();
            }
        }
    }
    atomic_store(&process->number, number);
}

struct hami_process *hami_process_born(void) {
    HAMI_KEEP_ERRNO;
    if (atomic_load(&hami_process_page) == NULL) {
        make_page();
    }
    struct hami_process *process = atomic_load(&hami_process_page);
    uint32_t unborn = 0;
    if (atomic_compare_exchange_strong(&process->born, &unborn, BORN_PREPARING)) {
        prepare(process);
        atomic_store_explicit(&process->born, BORN_READY, memory_order_release);
    }
    while (atomic_load_explicit(&process->born, memory_order_acquire) != BORN_READY) {
        sched_yield(); /* another thread of a very young child; it does nothing that takes time */
    }
    return process;
}

void hami_on_child(void (*reset)(void)) {
    (void)hami_process(); /* a fork is only noticed from then on */
    for (size_t i = 0; i < CHILD_RESETS; i++) {
        void (*there)(void) = NULL;
        if (atomic_compare_exchange_strong(&child_resets[i], &there, reset) || there == reset) {
            return;
        }
    }
    hami_say_once("child resets", "more than %d parts of the library want to know of forks; a forked child may be counted wrongly", CHILD_RESETS);
}

static void futex(_Atomic uint32_t *word, int operation, uint32_t value) {
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* 0 open, 1 held, 2 held and awaited. */
void hami_local_lock(_Atomic uint32_t *lock) {
    uint32_t open = 0;
    if (atomic_compare_exchange_strong_explicit(lock, &open, 1, memory_order_acquire, memory_order_relaxed)) {
        return;
    }
    HAMI_KEEP_ERRNO;
    while (atomic_exchange_explicit(lock, 2, memory_order_acquire) != 0) {
        futex(lock, FUTEX_WAIT, 2);
    }
}

void hami_local_unlock(_Atomic uint32_t *lock) {
    if (atomic_exchange_explicit(lock, 0, memory_order_release) == 2) {
        HAMI_KEEP_ERRNO;
        futex(lock, FUTEX_WAKE, 1);
    }
}

bool hami_enter(void) {
    if (inside != 0) {
        return false;
    }
    inside = 1;
    struct hami_process *process = atomic_load_explicit(&hami_process_page, memory_order_acquire);
    if (HAMI_UNLIKELY(process != NULL && atomic_load_explicit(&process->born, memory_order_acquire) != BORN_READY)) {
        hami_process_born(); /* a child: its resets run before any hook looks at a book */
    }
    return true;
}

void hami_leave(void) {
    inside = 0;
}
