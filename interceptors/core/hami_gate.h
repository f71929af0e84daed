/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hami_gate.h: the gate in front of a launch, for generated wrappers only. hami_compute_limited() answers the same question,
 * but a call makes the wrapper save a launch's eleven arguments first, which costs more than the answer.
 */
#ifndef HAMI_GATE_H
#define HAMI_GATE_H

#include "internal.h"

/* True: the policy was read, nothing has changed since, and no limit applies. False: ask hami_compute_limited(). */
static inline bool hami_gate_open(void) {
    const _Atomic uint32_t *generation = atomic_load_explicit(&hami_gate_cache.generation, memory_order_acquire);
    uint64_t word = atomic_load_explicit(&hami_gate_cache.word, memory_order_acquire);
    return (uint32_t)(word >> 32) == atomic_load_explicit(generation, memory_order_relaxed) && (word & HAMI_GATE_LIMITED) == 0;
}

#endif
