/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forks.c: what a forked child must forget. The driver itself does not survive a fork, so that a child that uses it began
 * anew, or gets the driver's errors; it must never wait for a lock whose owner stayed behind in the parent.
 */
#include <stdatomic.h>

#include "cuda_shim.h"

static void reset(void) {
    cuda_device_reset();
    cuda_pools_reset();
    cuda_graphs_reset();
    cuda_contexts_reset();
    cuda_captures_reset();
}

void cuda_watch_forks(void) {
    static _Atomic bool watched;
    if (HAMI_LIKELY(atomic_load_explicit(&watched, memory_order_relaxed))) return;
    hami_on_child(reset);
    atomic_store_explicit(&watched, true, memory_order_relaxed);
}
