/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lock.h: a lock of this process for what is short and rare. It names its owner's PID, so that a child that was forked in the
 * middle does not wait for a thread that it does not have.
 */
#ifndef HAMI_SHIM_LOCK_H
#define HAMI_SHIM_LOCK_H

#include <sched.h>
#include <stdatomic.h>
#include <unistd.h>

struct hami_own_lock { _Atomic int owner; };

static inline void hami_own_lock(struct hami_own_lock *lock) {
    int me = (int)getpid(), owner = 0;
    while (!atomic_compare_exchange_weak_explicit(&lock->owner, &owner, me, memory_order_acquire, memory_order_relaxed)) {
        if (owner == me) (void)sched_yield();
        if (owner == me) owner = 0; /* else: free after all, or held when this process was forked: take it over */
    }
}

static inline void hami_own_unlock(struct hami_own_lock *lock) { atomic_store_explicit(&lock->owner, 0, memory_order_release); }

#endif
